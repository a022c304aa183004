import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbound
from jaxbound.rules.softmax import logsumexp, others, softmax
from tests import soundness

W = soundness.weights(4, 4)
CASES = {
    "softmax": jax.nn.softmax,
    "softmax_in_a_network": lambda x: W @ jax.nn.softmax((W @ x).reshape(2, 2), axis=0).ravel(),
    "log_softmax": jax.nn.log_softmax,
    "logsumexp": lambda x: jax.nn.logsumexp(x.reshape(2, 2), axis=1),
    "softmax_of_one": lambda x: jax.nn.softmax(x[:, None]) * x[:, None],
}
METHODS = soundness.METHODS | {"lbp": jaxbound.lbp}


@pytest.mark.parametrize("name", CASES)
def test_sound(name, double):
    soundness.check(CASES[name], *soundness.boxes(4), methods=METHODS)


@pytest.mark.parametrize("name", ["softmax_in_a_network", "logsumexp"])
def test_sound_in_single_precision(name):
    soundness.check(CASES[name], *soundness.boxes(4))


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
def test_intervals_are_exact(name, double):
    """Every element takes its extremes at corners."""
    for region in soundness.boxes(4):
        soundness.check_exact(CASES[name], region, methods={"ibp": jaxbound.ibp})


def planes(fn, region):
    return jax.jit(jaxbound.linear_bounds(fn))(region)


@pytest.mark.parametrize("fn", [softmax, jax.nn.log_softmax, logsumexp])
def test_no_point_is_outside_the_planes(fn, double):
    """Where a gradient leads that looks for the largest violation."""
    for region in soundness.boxes(4):
        lower, upper = planes(fn, region)

        def violation(x, lower=lower, upper=upper):
            value = fn(x)
            below, above = (side.coeffs @ x + side.bias for side in (lower, upper))
            return jnp.ravel(jnp.maximum(below - value, value - above))

        x = soundness.point(region, jnp.asarray(soundness.units(region, 64)))
        step = jax.jit(jax.vmap(lambda x, violation=violation: jax.grad(lambda x: jnp.max(violation(x)))(x)))
        for _ in range(30):
            x = jnp.clip(x + 0.1 * (region.upper - region.lower) * jnp.sign(step(x)), *region)
        assert jax.vmap(violation)(x).max() <= 1e-12


def test_planes_touch_at_the_middle_of_a_small_box(double):
    """To first order in its size they are the function's own tangent."""
    x = jnp.array([0.3, -1.0, 2.0])
    for fn in (softmax, jax.nn.log_softmax, logsumexp):
        lower, upper = planes(fn, soundness.box(x, 1e-4))
        for side in (lower, upper):
            np.testing.assert_allclose(side.coeffs, jax.jacobian(fn)(x), atol=1e-3)
        np.testing.assert_allclose(lower.coeffs @ x + lower.bias, upper.coeffs @ x + upper.bias, atol=1e-7)


def test_a_dominating_element_is_the_maximum(double):
    region = soundness.box([50.0, 0.0, 3.0], 2.0)
    lower, upper = jax.jit(jaxbound.crown_ibp(lambda x: jax.nn.logsumexp(x) - x[0]))(region)
    assert 0 <= upper - lower < 1e-15
    lower, upper = jax.jit(jaxbound.crown_ibp(jax.nn.softmax))(region)
    np.testing.assert_allclose(lower, [1, 0, 0], atol=1e-15)
    np.testing.assert_allclose(upper, [1, 0, 0], atol=1e-15)


@pytest.mark.parametrize(
    "fn",
    [
        jax.nn.softmax,
        pytest.param(jax.nn.log_softmax, marks=pytest.mark.slow(reason="a variant")),
        lambda x: jax.nn.logsumexp(x)[None],
    ],
)
def test_finite_and_sound_at_any_size_and_offset(fn, precision):
    """Also with a gradient; the offset is what rounding is relative to, so single precision takes smaller ones."""
    bound = jax.jit(jaxbound.crown_ibp(fn))
    sides = jax.jit(jax.grad(lambda region: sum(jnp.sum(end) for end in jaxbound.crown_ibp(fn)(region))))
    offsets = (0.0, -300.0, 1e4 if precision == 64 else 30.0)
    for radius, offset in itertools.product((1e-8, 1e-4, 1.0, 30.0, 1e3), offsets):
        region = soundness.box(offset + jnp.array([0.0, 0.5, -1.0, 0.5]), radius)
        lower, upper = bound(region)
        values = jax.vmap(fn)(soundness.point(region, jnp.asarray(soundness.units(region, 50), lower.dtype)))
        slack = soundness.tolerance() * (1 + abs(offset) + radius)
        assert np.isfinite([lower, upper]).all() and np.isfinite(jax.tree.leaves(sides(region))).all()
        assert (values >= lower - slack).all() and (values <= upper + slack).all()


def test_infinite_boxes(double):
    x = jaxbound.Interval(jnp.array([0.0, -jnp.inf, -1.0]), jnp.array([1.0, jnp.inf, 1.0]))
    lower, upper = jaxbound.ibp(jax.nn.softmax)(x)
    np.testing.assert_allclose(lower, 0, atol=1e-12)
    np.testing.assert_allclose(upper[1], 1)
    assert upper[0] < 1


def test_sum_of_the_others():
    x = jnp.array([[1e8, 1.0, 2.0], [3.0, 3.0, 0.5], [1.0, 2.0, -4.0]], jnp.float32)
    np.testing.assert_allclose(others(x), [[3, 1e8 + 2, 1e8 + 1], [3.5, 3.5, 6], [-2, -3, 3]], rtol=1e-6)


def test_attention_over_sets(double):
    def attention(query, key, value):
        return jax.nn.softmax(query @ key.T / 2) @ value

    query, key, value = (soundness.weights(3, 2, seed=k) for k in range(3))
    soundness.check(
        attention, (soundness.box(query, 0.1), soundness.box(key, 0.2), soundness.box(value, 0.1)), count=50
    )


@pytest.mark.parametrize("fn", [jax.nn.softmax, jax.nn.log_softmax])
@pytest.mark.parametrize("method", [jaxbound.ibp, jaxbound.crown_ibp])
def test_a_row_that_is_masked_throughout_has_no_bounds(fn, method):
    box = jaxbound.Interval(jnp.zeros((2, 3)), jnp.ones((2, 3)))
    mask = jnp.array([[True, True, False], [False, False, False]])
    lower, upper = method(lambda x: fn(jnp.where(mask, x, -jnp.inf), axis=-1))(box)
    assert np.isneginf(lower[1]).all() and np.isposinf(upper[1]).all()
    if method is jaxbound.ibp:
        assert np.isfinite(upper[0, :2]).all()


MASK = jnp.tril(jnp.ones((3, 3), bool))
V = soundness.weights(3, 2)
MASKED = {
    "where": lambda x, low: jax.nn.softmax(jnp.where(MASK, x, low)) @ V,
    "added": lambda x, low: jax.nn.softmax(x + jnp.where(jnp.tril(jnp.ones((3, 3), bool)), 0.0, low)) @ V,
    "attention": lambda x, low: jax.nn.softmax(jnp.where(MASK, x @ x.T, low)) @ x,
    "log_softmax": lambda x, low: jnp.where(MASK, jax.nn.log_softmax(jnp.where(MASK, x, low)), 0.0),
    "logsumexp": lambda x, low: jax.nn.logsumexp(jnp.where(MASK, x, low), axis=1),
    "max": lambda x, low: jnp.max(x, axis=1, initial=low, where=MASK),
}


def square(eps):
    return jaxbound.linf_ball(jnp.array(soundness.weights(3, 3, seed=1), float), eps, clip=None)


@pytest.mark.parametrize("name", MASKED)
def test_a_mask_of_minus_infinity_is_one_of_large_numbers(name, double):
    """Nothing hangs on its size, in the bounds and in their derivatives."""

    @functools.partial(jax.jit, static_argnums=0)
    def both(low, eps):
        def lowest(eps):
            lower, upper = jaxbound.crown_ibp(lambda x: MASKED[name](x, low))(square(eps))
            return jnp.sum(lower), (lower, upper)

        return jax.grad(lowest, has_aux=True)(eps)

    jax.tree.map(lambda *x: np.testing.assert_allclose(*x, rtol=1e-6, atol=1e-9), both(-jnp.inf, 0.1), both(-1e6, 0.1))


@pytest.mark.parametrize("method", [jaxbound.crown, jaxbound.lbp, jaxbound.crown_lbp])
def test_every_method_sees_what_a_mask_hides(method, double):
    attention = MASKED["attention"]
    found = jax.jit(method(lambda x: attention(x, -jnp.inf)))(square(0.1))
    expected = jax.jit(method(lambda x: attention(x, -1e6)))(square(0.1))
    for end, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(end, other, rtol=1e-6)


def test_masked_attention_is_sound(double):
    soundness.check(lambda x: MASKED["attention"](x, -jnp.inf), square(0.2), methods=METHODS)


def masked(x):
    return jnp.where(MASK, x, -jnp.inf)


@pytest.mark.parametrize("method", [jaxbound.crown_ibp, jaxbound.crown, jaxbound.lbp])
@pytest.mark.parametrize(
    "undefined",
    [
        lambda x: jax.nn.relu(masked(x)[:2] @ jnp.zeros((3, 3))),
        lambda x: masked(x)[0, 1:] - masked(x)[1, 2:],
        lambda x: (lambda y: y[0, 3:] - y[1, 3:])(jnp.pad(x, ((0, 0), (0, 2)), constant_values=-jnp.inf)),
        lambda x: jax.lax.scan(lambda c, row: (c, jnp.where(MASK[0, 1:], row[1:], -jnp.inf) * 0), 0, x)[1],
    ],
)
def test_an_infinite_constant_that_makes_nan_is_no_mask(undefined, method):
    assert np.isnan(undefined(square(0.0).lower)).all()
    lower, upper = jax.jit(method(undefined))(square(0.1))
    assert np.isneginf(lower).all() and np.isposinf(upper).all()


@pytest.mark.parametrize("method", [jaxbound.crown_ibp, jaxbound.lbp])
def test_an_infinite_result_has_no_finite_bound(method):
    lower, upper = method(masked)(square(0.1))
    assert np.isneginf(lower[~MASK]).all()
    np.testing.assert_allclose(upper[MASK] - lower[MASK], 0.2, rtol=1e-5)


def test_the_logarithm_of_a_hidden_probability_is_infinite(double):
    lower, upper = jaxbound.ibp(lambda x: jax.nn.log_softmax(masked(x)))(square(0.1))
    assert np.isneginf(lower[~MASK]).all() and np.isfinite(lower[MASK]).all() and np.isfinite(upper[MASK]).all()
