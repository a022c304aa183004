import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbound
from jaxbound.methods.problem import prepare
from tests import soundness

nn = jax.nn
CASES = {
    "leaky_relu": nn.leaky_relu,
    "leaky_relu_0.3": lambda x: nn.leaky_relu(x, 0.3),
    "leaky_relu_1.7": lambda x: nn.leaky_relu(x, 1.7),
    "leaky_relu_-0.5": lambda x: nn.leaky_relu(x, -0.5),
    "leaky_relu_each": lambda x: nn.leaky_relu(x, jnp.array([0.1, 0.5, 1.5, -0.2])),
    "elu": nn.elu,
    "elu_2": lambda x: nn.elu(x, 2.0),
    "celu": nn.celu,
    "celu_0.5": lambda x: nn.celu(x, 0.5),
    "selu": nn.selu,
    "silu": nn.silu,
    "mish": nn.mish,
    "softplus": nn.softplus,
    "squareplus": nn.squareplus,
    "sparse_plus": nn.sparse_plus,
    "soft_sign": nn.soft_sign,
    "hard_silu": nn.hard_silu,
    "hard_tanh": nn.hard_tanh,
    "relu6": nn.relu6,
    "clip": lambda x: jnp.clip(x, -0.5, 1),
    "ramp": lambda x: jaxbound.ramp(x, 0.5),
    "ramp_each": lambda x: jaxbound.ramp(x, jnp.array([0.5, 0.0, jnp.inf, -0.2]), jnp.array([0.0, 0.3, 0.1, 1.0])),
    "ramp_to_a_set": lambda x: jaxbound.ramp(x[::-1], x, 0.2),
    "ramp_of_a_constant": lambda x: jaxbound.ramp(jnp.array([-1.0, 0.2, 1.0, 9.0]), x, 0.2),
    "hard_sigmoid": nn.hard_sigmoid,
    "log_sigmoid": nn.log_sigmoid,
    "sparse_sigmoid": nn.sparse_sigmoid,
    "glu": nn.glu,
    "gelu": nn.gelu,
    "gelu_exact": lambda x: nn.gelu(x, approximate=False),
}
WHOLE = (
    "leaky_relu leaky_relu_0.3 leaky_relu_each elu elu_2 celu selu silu mish softplus squareplus sparse_plus "
    "soft_sign hard_silu hard_tanh relu6 clip ramp ramp_each"
).split()


@pytest.mark.parametrize("name", CASES)
def test_sound(name, double):
    soundness.check(CASES[name], *soundness.boxes(4)[:4])


@pytest.mark.parametrize("name", ["leaky_relu_0.3", "silu", "selu", "ramp_each"])
def test_sound_in_single_precision(name):
    soundness.check(CASES[name], *soundness.boxes(4)[:4])


@pytest.mark.parametrize("name", WHOLE)
def test_stays_one_equation(name):
    program = prepare(CASES[name], (soundness.boxes(4)[0],), {}).program
    assert len(program.equations) == 1


def test_a_function_that_only_bears_the_name_is_bounded_by_its_parts():
    @jax.jit
    def silu(x):
        return x + jnp.tanh(x)

    box = soundness.boxes(4)[0]
    assert len(prepare(silu, (box,), {}).program.equations) == 2
    soundness.check(silu, box)


def test_atomic_is_used_under_jit_vmap_and_in_a_network(double):
    def cube(x):
        return x**3

    def interval(x):
        return jaxbound.Interval(cube(x.lower), cube(x.upper))

    def relaxed(x):
        flat = jnp.zeros_like(x.lower)
        return jaxbound.Relaxation(*(jaxbound.Affine((flat,), end) for end in interval(x)))

    atom = jaxbound.atomic(cube, jaxbound.Elementwise(interval, relaxed))
    weight = soundness.weights(4, 4)

    def fn(x):
        return weight @ atom(weight @ x)

    assert [e.name.startswith("atomic_cube") for e in prepare(fn, (soundness.boxes(4)[0],), {}).program.equations] == [
        False,
        True,
        False,
    ]
    soundness.check(fn, *soundness.boxes(4)[:2])
    soundness.check(jax.vmap(lambda x: atom(x) * 2), *soundness.boxes(4)[:1])


# The ramp.

W = soundness.weights(4, 4)


@pytest.mark.parametrize("top", [0.0, 0.5, np.inf])
@pytest.mark.parametrize("slope", [0.0, 0.3, 1.0])
def test_values_and_derivatives_of_a_ramp(slope, top):
    x = jnp.array([-2.0, -0.1, 0.2, 3.0])
    np.testing.assert_allclose(
        jaxbound.ramp(x, top, slope),
        [slope * -2, slope * -0.1, *(slope * v + (1 - slope) * min(v, top) for v in x[2:])],
    )
    found = jax.grad(lambda *operands: jaxbound.ramp(*operands).sum(), (0, 1, 2))(x, jnp.full(4, top), slope)
    np.testing.assert_allclose(found[0], [slope, slope, 1 if top > 0.2 else slope, 1 if top > 3 else slope])
    met = x > 0 if top == 0 else jnp.full(4, True)  # at top = 0 all points below zero are a bend
    np.testing.assert_allclose(found[1][met], ((1 - slope) * (x > top))[met], atol=1e-7)
    np.testing.assert_allclose(found[2], (x - jnp.clip(x, 0, top)).sum(), atol=1e-6)


def test_operands_of_a_ramp_are_broadcast():
    assert jaxbound.ramp(jnp.ones((2, 1)), jnp.ones(3)).shape == (2, 3)
    assert jaxbound.ramp(1, 2).dtype == jnp.float32
    assert jaxbound.ramp(jnp.ones(2, jnp.bfloat16), 0.5, 0.1).dtype == jnp.bfloat16


def test_a_ramp_that_is_not_monotone_has_no_bounds():
    with pytest.raises(ValueError, match="must lie in"):
        jaxbound.ramp(jnp.ones(2), 1.0, -0.1)
    box = soundness.boxes(4)[0]
    for method in (jaxbound.ibp, jaxbound.crown_ibp):
        bound = jax.jit(lambda slope, method=method: method(lambda x: jaxbound.ramp(x, 0.5, slope))(box))(1.5)
        assert np.isneginf(bound.lower).all() and np.isposinf(bound.upper).all()


RAMPS = {
    "hard_tanh": nn.hard_tanh,
    "relu6": lambda x: nn.relu6(4 * x),
    "clip": lambda x: jnp.clip(x, -0.3, 0.6),
    "ramp": lambda x: jaxbound.ramp(x, 0.5),
    "leaky_ramp": lambda x: jaxbound.ramp(x, jnp.array([0.5, 0.1, jnp.inf, 0.0]), 0.1),
}


@pytest.mark.parametrize("name", RAMPS)
def test_tight_lines_of_ramps_are_never_looser_than_intervals(name, double):
    def fn(x):
        return W @ RAMPS[name](W @ RAMPS[name](W @ x + 0.1))

    spec = soundness.weights(7, 4, seed=1).astype(float)
    ibp = jax.jit(lambda box: jaxbound.ibp(fn)(box, spec=spec))
    linear = jax.jit(lambda box: jaxbound.crown_ibp(fn, relu=jaxbound.relax.tight)(box, spec=spec))
    wins = [(linear(box) - ibp(box)) for box in soundness.boxes(4)]
    assert all((win >= -1e-12).all() for win in wins) and np.max(wins) > 1e-3


@pytest.mark.parametrize("strategy", [jaxbound.relax.adaptive, jaxbound.relax.tight])
def test_derivatives_of_bounds_of_a_ramp(strategy, double):
    """With respect to weights, tops, slope and radius, of the linear bound on intervals that are held fixed."""
    arguments = (jnp.asarray(W, float), jnp.array([0.5, 0.2, 0.8, 3.0]), jnp.array(0.1), jnp.array(0.4))

    @jax.jit
    def bound(weight, top, slope, radius):
        def fn(x):
            return weight @ jaxbound.ramp(weight @ x, top, slope)

        return jaxbound.crown_ibp(fn, relu=strategy)(soundness.box(W[0], radius), spec=W.astype(float)).sum()

    for k, gradient in enumerate(jax.grad(bound, (0, 1, 2, 3))(*arguments)):
        direction = jnp.asarray(np.random.default_rng(k).normal(size=arguments[k].shape))
        moved = [bound(*arguments[:k], arguments[k] + step * direction, *arguments[k + 1 :]) for step in (1e-6, -1e-6)]
        np.testing.assert_allclose((gradient * direction).sum(), (moved[0] - moved[1]) / 2e-6, rtol=1e-6)


# GELU, recognised by its primitives.


@pytest.mark.parametrize("approximate, minimum, bend", [(True, -0.75246142, 1.4185040), (False, -0.7517915, 2**0.5)])
def test_shape_of_gelu(approximate, minimum, bend, double):
    """The range and both lines on boxes around its minimum and its inflections are as tight as they can be."""

    def fn(x):
        return nn.gelu(x, approximate=approximate)

    interval, planes = jax.jit(jaxbound.ibp(fn)), jax.jit(jaxbound.linear_bounds(fn))
    for center in (minimum, bend, -bend, 0.0, 5.0, -5.0):
        for radius in (0.01, 0.5, 3.0):
            region = soundness.box(center, radius)
            x = jnp.linspace(*region, 20_001)
            np.testing.assert_allclose(interval(region), [fn(x).min(), fn(x).max()], atol=1e-7)
            lower, upper = planes(region)
            for gap in (fn(x) - lower.coeffs * x - lower.bias, upper.coeffs * x + upper.bias - fn(x)):
                assert gap.min() >= -1e-12 and gap.min() < 1e-6


@pytest.mark.parametrize("fn", [nn.gelu, nn.silu, jnp.tanh, nn.sigmoid])
def test_finite_on_boxes_of_any_size(fn, precision):
    bound = jax.jit(jaxbound.crown_ibp(fn))
    for radius in (1e-8, 1e-4, 1.0, 30.0, 1e3):
        region = soundness.box([0.0, 0.5, -3.0, 40.0], radius)
        lower, upper = bound(region)
        values = fn(soundness.point(region, jnp.asarray(soundness.units(region, 50), lower.dtype)))
        slack = soundness.tolerance() * (1 + radius + 40)
        assert np.isfinite([lower, upper]).all()
        assert (values >= lower - slack).all() and (values <= upper + slack).all()
