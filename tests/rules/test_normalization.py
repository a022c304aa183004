import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbound
from jaxbound.rules.normalization import layer_norm, rms_norm
from tests import soundness

W = soundness.weights(4, 4)
EPS = 1e-3
CASES = {
    "layer_norm": lambda x: layer_norm(x, EPS),
    "rms_norm": lambda x: rms_norm(x, EPS),
    "layer_norm_in_a_network": lambda x: W @ layer_norm(W @ x, EPS),
    "layer_norm_of_rows": lambda x: layer_norm((W @ x).reshape(2, 2), EPS),
    "layer_norm_of_one": lambda x: layer_norm(x[:, None], EPS) + x[:, None],
}


@pytest.mark.parametrize("name", CASES)
def test_sound(name, double):
    soundness.check(CASES[name], *soundness.boxes(4), nested=False)


def test_sound_forward(double):
    soundness.check(CASES["layer_norm_in_a_network"], *soundness.boxes(4)[:3], methods={"lbp": jaxbound.lbp})


@pytest.mark.parametrize("name", ["layer_norm_in_a_network", "rms_norm"])
def test_sound_in_single_precision(name):
    soundness.check(CASES[name], *soundness.boxes(4), nested=False)


def regions(count, seed=0):
    """Boxes of rows [6], from narrow to wide, with the centre close to zero and far from it."""
    rng = np.random.default_rng(seed)
    sizes = rng.choice([1e-3, 0.1, 1.0, 10.0], (count, 1))
    center = rng.normal(size=(count, 6)) + rng.choice([0.0, 5.0], (count, 1))
    return soundness.box(center, sizes * rng.uniform(size=(count, 6)))


def chain_of_layer_norm(x):
    """As Flax computes it, with a square root that is not recognised."""
    mean = jnp.mean(x)
    var = jnp.maximum(0.0, jnp.mean(x * x) - mean * mean)
    return (x - mean) * (jnp.exp(-0.5 * jnp.log(var + EPS)))


def chain_of_rms_norm(x):
    return x * (jnp.exp(-0.5 * jnp.log(jnp.mean(x * x) + EPS)))


@pytest.mark.parametrize(
    "fn, chain, most",
    [(layer_norm, chain_of_layer_norm, 5**0.5), (rms_norm, chain_of_rms_norm, 6**0.5)],
    ids=["layer", "rms"],
)
def test_intervals_are_tighter_than_the_chain(fn, chain, most, double):
    """By far on average. On a single box the largest variance may by chance be better found around zero."""
    boxes = regions(300)
    whole = jax.jit(jax.vmap(jaxbound.ibp(lambda x: fn(x, EPS))))(boxes)
    parts = jax.jit(jax.vmap(jaxbound.ibp(chain)))(boxes)
    slack = 0.01 * (parts.upper - parts.lower)
    assert (whole.lower >= parts.lower - slack).all() and (whole.upper <= parts.upper + slack).all()
    assert np.mean((whole.lower < parts.lower - 1e-9) | (whole.upper > parts.upper + 1e-9)) < 1e-2
    assert np.abs(whole).max() <= most + 1e-12
    assert np.mean(whole.upper - whole.lower) < 0.5 * np.mean(parts.upper - parts.lower)


@pytest.mark.parametrize("fn", [layer_norm, rms_norm])
def test_no_point_is_outside_the_planes(fn, double):
    """Where a gradient leads that looks for the largest violation, from corners and random points."""
    boxes = regions(40, seed=1)

    def worst(region):
        lower, upper = jaxbound.linear_bounds(lambda x: fn(x, EPS))(region)

        def violation(x):
            below, above = (side.coeffs @ x + side.bias for side in (lower, upper))
            return jnp.max(jnp.maximum(below - fn(x, EPS), fn(x, EPS) - above))

        def climb(unit):
            x = region.lower + unit * (region.upper - region.lower)
            for rate in (0.3, 0.1, 0.1, 0.03, 0.03, 0.01):
                x = jnp.clip(x + rate * (region.upper - region.lower) * jnp.sign(jax.grad(violation)(x)), *region)
            return violation(x)

        return jnp.max(jax.vmap(climb)(units))

    units = jnp.asarray(soundness.units(jax.tree.map(lambda x: x[0], boxes), 200))
    assert jax.jit(lambda boxes: jax.lax.map(worst, boxes))(boxes).max() <= 1e-10


@pytest.mark.parametrize("fn", [layer_norm, rms_norm])
def test_planes_are_tangent_on_a_small_box(fn, double):
    x = jnp.array([0.3, -1.0, 2.0, 0.7])
    lower, upper = jax.jit(jaxbound.linear_bounds(lambda x: fn(x, EPS)))(soundness.box(x, 1e-5))
    for side in (lower, upper):
        np.testing.assert_allclose(side.coeffs, jax.jit(jax.jacobian(lambda x: fn(x, EPS)))(x), atol=1e-3)
    np.testing.assert_allclose(lower.coeffs @ x + lower.bias, upper.coeffs @ x + upper.bias, atol=1e-8)


@pytest.mark.parametrize("fn", [layer_norm, pytest.param(rms_norm, marks=pytest.mark.slow(reason="a variant"))])
def test_finite_and_sound_at_any_size_and_offset(fn, precision):
    bound = jax.jit(jaxbound.crown_ibp(lambda x: fn(x, 1e-6)))
    gradient = jax.jit(jax.grad(lambda box: sum(jnp.sum(v) for v in jaxbound.crown_ibp(lambda x: fn(x, 1e-6))(box))))
    value = jax.jit(jax.vmap(lambda x: fn(x, 1e-6)))
    places = ((0.0, 1.0), (0.0, 0.0), (30.0, 1.0))
    for radius, (offset, spread) in itertools.product((1e-8, 1e-4, 1.0, 1e3), places):
        region = soundness.box(offset + spread * jnp.array([0.0, 0.5, -1.0, 0.5]), radius)
        lower, upper = bound(region)
        values = value(soundness.point(region, jnp.asarray(soundness.units(region, 50), lower.dtype)))
        slack = 10 * soundness.tolerance() * (1 + offset)
        assert np.isfinite([lower, upper]).all() and np.isfinite(jax.tree.leaves(gradient(region))).all()
        assert (values >= lower - slack).all() and (values <= upper + slack).all()


def test_no_blow_up_without_eps(double):
    """A row that may vanish has no direction; every element still lies within the factor."""
    region = soundness.box(jnp.zeros(4), 1.0)
    for make in soundness.METHODS.values():
        lower, upper = jax.jit(make(lambda x: x / jnp.linalg.norm(x)))(region)
        assert (lower >= -4).all() and (upper <= 4).all() and (upper >= 1).all() and (lower <= -1).all()
    np.testing.assert_allclose(jaxbound.ibp(lambda x: x / jnp.linalg.norm(x))(region), [[-1] * 4, [1] * 4])


def test_infinite_and_invalid_boxes():
    ends = jnp.array([0.0, 0.0, -jnp.inf]), jnp.array([1.0, 1.0, jnp.inf])
    lower, upper = jaxbound.ibp(lambda x: layer_norm(x, EPS))(jaxbound.Interval(*ends))
    np.testing.assert_allclose([lower, upper], [[-(2**0.5)] * 3, [2**0.5] * 3], rtol=1e-6)
    invalid = jax.jit(lambda low: jaxbound.ibp(lambda x: rms_norm(x, EPS))(jaxbound.Interval(low, low - 1)))
    assert np.isinf(invalid(jnp.ones(3))).all()


@pytest.mark.slow(reason="compiles derivatives of bounds")
def test_derivatives_of_bounds(double):
    """With respect to the box; at several sizes, against differences."""
    x = jnp.array([0.3, -1.0, 2.0, 0.7])
    spec = soundness.weights(3, 4).astype(float)

    def bound(center, radius):
        return jaxbound.crown_ibp(lambda x: layer_norm(x, EPS))(soundness.box(center, radius), spec=spec).sum()

    for radius in (0.01, 0.3):
        gradients = jax.jit(jax.grad(bound, (0, 1)))(x, jnp.array(radius))
        step = 1e-6
        along = jnp.array([1.0, -2.0, 0.5, 0.3])
        moved = [jax.jit(bound)(x + sign * step * along, radius) for sign in (1, -1)]
        np.testing.assert_allclose(gradients[0] @ along, (moved[0] - moved[1]) / (2 * step), rtol=1e-4)


def test_on_a_point_bounds_have_the_derivative_of_the_function(double):
    heads, xs = soundness.weights(3, 4), jnp.asarray(soundness.weights(3, 4), float)

    def network(kernel, x):
        return heads @ layer_norm(W[::-1] @ jnp.tanh(kernel @ x), EPS)

    def lowest(kernel, x):
        return jaxbound.crown_ibp(network)(kernel, jaxbound.Interval(x, x)).lower

    found, expected = (
        jax.jit(jax.grad(lambda kernel, fn=fn: jax.vmap(lambda x: fn(kernel, x))(xs).sum()))(jnp.asarray(W, float))
        for fn in (lowest, network)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)


def test_a_row_with_an_infinite_element_has_no_norm():
    box = jaxbound.Interval(jnp.array([0.0, -jnp.inf, 1.0]), jnp.array([1.0, -jnp.inf, 2.0]))
    for norm in (layer_norm, rms_norm):
        lower, upper = jaxbound.ibp(lambda x, norm=norm: norm(x, 1e-5))(box)
        assert np.isneginf(lower).all() and np.isposinf(upper).all()
