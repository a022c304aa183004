import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import jaxbound
from tests import soundness

W = [soundness.weights(4, 4, seed=k) for k in range(3)]
KERNEL = soundness.weights(3, 3, 1, 2)


def network(activation):
    def fn(x):
        for weight in W[:2]:
            x = activation(weight @ x + 0.1)
        return W[2] @ x

    return fn


def pooled(x):
    image = jnp.concatenate([x, -x, 0.5 * x, x * x]).reshape(1, 4, 4, 1)
    image = lax.conv_general_dilated(
        image, KERNEL.astype(x.dtype), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return lax.reduce_window(image, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "SAME").ravel()[:4]


CASES = {
    "relu": network(jax.nn.relu),
    "leaky_relu": network(lambda x: jax.nn.leaky_relu(x, 0.1)),
    "ramp": network(lambda x: jaxbound.ramp(x, 0.7, 0.1)),
    "clip": network(lambda x: jnp.clip(x, -0.5, 0.7)),
    "tanh": network(jnp.tanh),
    "silu": network(jax.nn.silu),
    "sin": network(jnp.sin),
    "residual": lambda x: x + W[0] @ jax.nn.relu(W[1] @ jax.nn.relu(x) + x),
    "maximum": lambda x: jnp.maximum(W[0] @ x, W[1] @ x) - jnp.min(x) * jnp.max(W[2] @ x),
    "product": lambda x: (W[0] @ x) * (W[1] @ jnp.tanh(x)) / (2 + jnp.abs(x)),
    "matmul": lambda x: (W[0] * x) @ (jnp.tanh(x)[:, None] * W[1]) @ jnp.ones(4, x.dtype),
    "pooled": pooled,
    "scan": lambda x: jax.nn.relu(lax.scan(lambda c, w: (jax.nn.relu(w @ c), None), x, jnp.stack(W))[0]),
}
SPEC = soundness.weights(3, 4, seed=5)
SLOW = pytest.mark.slow(reason="compiles alpha-CROWN once more")


def largest_gain(fn, spec, **options):
    """Over CROWN, by alpha-CROWN with these options, whose bounds are sound and never looser."""
    gained = []
    bound = jaxbound.alpha_crown(fn, **options)
    methods = jax.jit(lambda box: [make(box, spec=spec) for make in (jaxbound.crown(fn), bound)])
    for box in soundness.boxes(spec.shape[1])[:3]:
        crown, optimized = methods(box)
        points = jax.vmap(functools.partial(soundness.point, box))(soundness.as_float(soundness.units(box, 500)))
        values = jax.vmap(fn)(points) @ spec.T
        assert (values >= optimized - 1e-12 * (1 + jnp.abs(optimized))).all()
        assert (optimized >= crown).all()
        gained.append((optimized - crown).max())
    return max(gained)


QUICK = ("relu", "tanh")


@pytest.mark.parametrize("name", [name if name in QUICK else pytest.param(name, marks=SLOW) for name in CASES])
def test_sound_and_never_looser_than_crown(name, double):
    gained = largest_gain(CASES[name], SPEC.astype(float))
    assert name == "scan" or gained > 1e-6  # the loop's own lines stay


def test_lines_between_zero_and_the_identity_make_the_bound_of_one_layer_exact(double):
    """The lowest value of w . relu(V x) over a box, which here a linear bound reaches."""

    def fn(x):
        return jnp.array([[1.0, -0.5]]) @ jax.nn.relu(jnp.array([[1.0, 1.0], [1.0, -1.0]]) @ x)

    region = jaxbound.Interval(-jnp.ones(2), jnp.ones(2))
    grid = jnp.stack(jnp.meshgrid(*[jnp.linspace(-1, 1, 201)] * 2), axis=-1).reshape(-1, 2)
    lowest = jax.vmap(fn)(grid).min()
    assert jaxbound.crown(fn)(region).lower[0] < -2
    found = jax.jit(jaxbound.alpha_crown(fn, steps=50))(region)
    np.testing.assert_allclose(found.lower[0], lowest, atol=1e-6)


@pytest.mark.parametrize("name", ["relu", *(pytest.param(name, marks=SLOW) for name in ("matmul", "pooled"))])
def test_going_on_from_earlier_lines(name, double):
    box, fn, spec = soundness.boxes(4)[2], CASES[name], SPEC.astype(float)
    first = jax.jit(jaxbound.optimized_lines(fn, steps=2))(box, spec=spec)
    again = jax.jit(jaxbound.optimized_lines(fn, steps=0))(box, spec=spec, free=first.free)
    further = jax.jit(jaxbound.optimized_lines(fn, steps=8))(box, spec=spec, free=first.free)
    np.testing.assert_allclose(again.bounds, first.bounds, rtol=1e-12)
    assert (further.bounds >= first.bounds - 1e-12).all() and (further.bounds > first.bounds + 1e-9).any()
    labels = list(first.free)
    assert labels == sorted(labels) and all("test_optimized.py:" in label for label in labels)


def test_each_row_has_lines_of_its_own(double):
    box, spec = soundness.boxes(4)[1], SPEC.astype(float)
    bound = jax.jit(jaxbound.alpha_crown(CASES["relu"], patience=100))
    together = bound(box, spec=spec)
    np.testing.assert_allclose(together, [bound(box, spec=row[None])[0] for row in spec], rtol=1e-12)
    chunked = jax.jit(jaxbound.alpha_crown(CASES["relu"], patience=100, chunk=2))(box, spec=spec)
    np.testing.assert_allclose(together, chunked, rtol=1e-12)


def test_ends_when_all_rows_are_verified_or_none_gains(double):
    box, spec = soundness.boxes(4)[1], SPEC.astype(float)
    crown = jaxbound.crown(CASES["relu"])(box, spec=spec)
    verified = jaxbound.alpha_crown(CASES["relu"], until=-1e9)(box, spec=spec)
    np.testing.assert_allclose(verified, crown, rtol=1e-12)
    idle = jaxbound.alpha_crown(CASES["relu"], optimizer=optax.sgd(0.0), steps=10**9, patience=3)(box, spec=spec)
    np.testing.assert_allclose(idle, crown, rtol=1e-12)


@SLOW
def test_derivative_is_that_of_the_bound_with_these_lines(double):
    box, spec = soundness.boxes(4)[1], SPEC.astype(float)
    weight = jnp.asarray(W[0], float)

    def optimize(weight, free=None):
        def fn(x):
            return W[2] @ jnp.tanh(W[1] @ jax.nn.relu(weight @ x))

        return jaxbound.optimized_lines(fn, steps=0 if free else 8)(box, spec=spec, free=free)

    free = optimize(weight).free
    direction = soundness.weights(4, 4, seed=9)
    slope = (jax.grad(lambda w: optimize(w).bounds.sum())(weight) * direction).sum()
    ends = [optimize(weight + step * direction, free).bounds.sum() for step in (1e-6, -1e-6)]
    np.testing.assert_allclose(slope, (ends[0] - ends[1]) / 2e-6, rtol=1e-5)


@SLOW
def test_vmap_is_a_loop(double):
    boxes = jax.tree.map(lambda *x: jnp.stack(x), *soundness.boxes(4)[:3])
    bound = jaxbound.alpha_crown(CASES["relu"], steps=3, patience=100)
    batched = jax.jit(jax.vmap(bound))(boxes)
    for k in range(3):
        alone = bound(jax.tree.map(lambda x, k=k: x[k], boxes))
        jax.tree.map(lambda a, b, k=k: np.testing.assert_allclose(a[k], b, rtol=1e-9, atol=1e-12), batched, alone)


@SLOW
def test_what_bounds_nothing_stays_infinite():
    region = jaxbound.Interval(jnp.array([-1.0]), jnp.array([1.0]))
    bound = jaxbound.alpha_crown(lambda x: jax.nn.relu(1 / x) + jax.nn.relu(x))(region)
    assert np.isneginf(bound.lower) and np.isposinf(bound.upper)
    empty = jax.jit(jaxbound.alpha_crown(jax.nn.relu))(jaxbound.Interval(region.upper, region.lower))
    assert np.isneginf(empty.lower) and np.isposinf(empty.upper)


def test_errors():
    with pytest.raises(ValueError, match="steps must be at least 0"):
        jaxbound.alpha_crown(jax.nn.relu, steps=-1)
    box, spec = soundness.boxes(4)[0], SPEC
    free = jax.jit(jaxbound.optimized_lines(jax.nn.relu, steps=1))(box, spec=spec).free
    with pytest.raises(ValueError, match="same function with as many rows"):
        jaxbound.optimized_lines(jax.nn.relu)(box, spec=spec[:1], free=free)
    with pytest.raises(ValueError, match="same function"):
        jaxbound.optimized_lines(lambda x: jax.nn.relu(x) + jnp.tanh(x))(box, spec=spec, free=free)
