import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbound.rules.curves import convex
from jaxbound.rules.relaxation import (
    Affine,
    Relaxation,
    choose,
    chord_slope,
    constant,
    flipped,
    highest,
    line,
    lowest,
    settled,
    support,
)
from jaxbound.sets import Interval
from tests import soundness
from tests.rules.test_curves import gaps, intervals

pytestmark = pytest.mark.usefixtures("double")


def test_chord_slope_of_a_tiny_interval_is_the_derivative():
    for width, rtol in ((0.0, 0), (1e-300, 0), (1e-15, 0), (1e-6, 1e-5), (0.5, 1)):
        slope = chord_slope(Interval(jnp.array(1.0), jnp.array(1.0 + width)), jnp.exp, jnp.exp)
        np.testing.assert_allclose(slope, jnp.e, rtol=rtol or 1e-12)
    np.testing.assert_allclose(chord_slope(Interval(jnp.array(0.0), jnp.array(2.0)), jnp.square, lambda v: 2 * v), 2)


def test_support_lines_pass_through_the_extreme_points():
    points = [jnp.array([p]) for p in (-1.0, 0.5, 2.0)]
    below, above = support(jnp.square, jnp.array([0.3]), points)
    offsets = [p**2 - 0.3 * p for p in (-1.0, 0.5, 2.0)]
    np.testing.assert_allclose([below(0.0)[0], above(0.0)[0]], [min(offsets), max(offsets)])
    assert below.slopes[0] == above.slopes[0] == 0.3


def test_values_that_tie_have_the_derivative_of_one_of_them():
    values = jnp.array([1.0, 2.0, 1.0]), jnp.array([1.0, 1.0, 1.0]), jnp.array(1.0)
    for fn, expected, plain in ((lowest, 0, jnp.minimum), (highest, 1, jnp.maximum)):
        found, pullback = jax.vjp(jax.jit(fn), *values)
        np.testing.assert_array_equal(found, plain(plain(*values[:2]), values[2]))
        shares = np.array([np.broadcast_to(share, 3) for share in pullback(jnp.array([1.0, 0.0, 0.0]))])[:, 0]
        assert sorted(shares) == [0, 0, 1], "at a tie `minimum` has halves"
        first, second, third = pullback(jnp.array([0.0, 1.0, 0.0]))
        assert first[1] == expected and first[1] + second[1] + third == 1
    assert jax.grad(lowest)(3.0) == 1


def test_flipped_is_the_relaxation_of_the_negative():
    lower, upper = flipped(Relaxation(line(1.0, 2.0), Affine((3.0, 4.0), 5.0)))
    assert lower == Affine((-3.0, -4.0), -5.0) and upper == Affine((-1.0,), -2.0)
    x = intervals(-3, 3)
    lines = flipped(convex(x, jnp.exp, jnp.exp))
    for gap in gaps(lambda v: -jnp.exp(v), lines, x):
        assert (gap >= -1e-12).all()


def test_constant_and_choose():
    x = soundness.box([0.0, 1.0], 0.5)
    flat = constant(x, jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0]))
    other = convex(x, jnp.exp, jnp.exp)
    mixed = choose(jnp.array([True, False]), flat, other)
    for side, first, second in zip(mixed, flat, other, strict=True):
        np.testing.assert_array_equal(side.slopes[0], [first.slopes[0][0], second.slopes[0][1]])
        np.testing.assert_array_equal(side(x.lower), [first(x.lower)[0], second(x.lower)[1]])
    assert (flat.lower.slopes[0] == 0).all() and (flat.upper.slopes[0] == 0).all()


def test_settled_values_come_from_a_loop():
    """So that no compiler can compute them again for another use; they have the derivatives of the values."""

    @jax.jit
    def twice(x):
        slope, (point,) = settled(jnp.tanh(x), (x > 0,))
        return slope + 1, jnp.where(point, slope, 2 * slope)

    x = jnp.array([0.5, -0.5])
    assert twice.lower(x).compile().as_text().count(" while(") == 1
    np.testing.assert_allclose(twice(x)[1], [np.tanh(0.5), -2 * np.tanh(0.5)], rtol=1e-6)
    slopes = jax.vmap(jax.grad(lambda x: twice(x)[1]))(x)
    np.testing.assert_allclose(slopes, np.array([1, 2]) * (1 - np.tanh(0.5) ** 2), rtol=1e-6)
