import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbound.rules.relaxation import (
    Affine,
    Relaxation,
    choose,
    chord_slope,
    concave,
    constant,
    convex,
    flipped,
    line,
    parallel,
    sigmoidal,
    support,
)
from jaxbound.sets import Interval
from tests import soundness

pytestmark = pytest.mark.usefixtures("double")


def slope_of(fn):
    return lambda x: jax.jvp(fn, (x,), (jnp.ones_like(x),))[1]


def wave_critical(slope):
    angle = jnp.arccos(jnp.clip(slope, -1, 1))
    return [side * angle + 2 * np.pi * turn for turn in range(-2, 3) for side in (-1, 1)]


def cubic_critical(slope):
    """Of x^3 - x."""
    root = jnp.sqrt(jnp.maximum((slope + 1) / 3, 0))
    return [root, -root]


# name -> function, its lines on an interval, ends between which that holds
SHAPES = {
    "convex_exp": (jnp.exp, convex, (-5, 5)),
    "convex_square": (jnp.square, convex, (-5, 5)),
    "convex_softplus": (jax.nn.softplus, convex, (-30, 30)),
    "convex_abs": (jnp.abs, convex, (-5, 5)),
    "concave_log": (jnp.log, concave, (1e-3, 9)),
    "concave_sqrt": (jnp.sqrt, concave, (1e-6, 9)),
    "sigmoidal_tanh": (jnp.tanh, sigmoidal, (-30, 30)),
    "sigmoidal_sigmoid": (jax.nn.sigmoid, sigmoidal, (-40, 40)),
    "sigmoidal_atan": (jnp.arctan, sigmoidal, (-1e3, 1e3)),
    "sigmoidal_steep": (lambda x: jnp.tanh(50 * x), sigmoidal, (-3, 3)),
    "parallel_sin": (jnp.sin, lambda x, fn, slope: parallel(x, fn, slope, wave_critical), (-6, 6)),
    "parallel_cubic": (lambda x: x**3 - x, lambda x, fn, slope: parallel(x, fn, slope, cubic_critical), (-4, 4)),
}


def intervals(low, high, count=200):
    """Wide, narrow, degenerate and tied intervals within two numbers, around zero too."""
    rng = np.random.default_rng(0)
    middles = np.concatenate([rng.uniform(low, high, count), np.clip([0, 1e-9, -1e-9, low, high], low, high)])
    wide, narrow = rng.uniform(0, high - low, middles.size), rng.choice([0, 1e-300, 1e-15, 1e-9, 1e-3], middles.size)
    lower = np.concatenate([middles - wide, middles, middles, np.nextafter(middles, -np.inf), [low]])
    upper = np.concatenate([middles + wide * 0.3, middles + narrow, middles, middles, [high]])
    return Interval(*(jnp.clip(jnp.array(end), low, high) for end in (lower, upper)))


def gaps(fn, relaxation, x, count=1001):
    """How far the function stays from its lower and upper lines over the intervals: two arrays [count, N]."""
    z = jnp.clip(x.lower + jnp.linspace(0, 1, count)[:, None] * (x.upper - x.lower), *x)
    below, above = (side(z) for side in relaxation)
    return fn(z) - below, above - fn(z)


@pytest.mark.parametrize("name", SHAPES)
def test_lines_enclose_the_function(name):
    fn, shape, ends = SHAPES[name]
    x = intervals(*ends)
    lines = jax.jit(lambda x: shape(x, fn, slope_of(fn)))(x)
    size = 1 + jnp.abs(fn(x.lower)) + jnp.abs(fn(x.upper)) + jnp.abs(lines.lower.slopes[0] * x.lower)
    for gap in gaps(fn, lines, x):
        assert (gap >= -1e-13 * size).all()


@pytest.mark.parametrize("name", SHAPES)
def test_on_a_point_both_lines_are_the_function(name):
    fn, shape, (low, high) = SHAPES[name]
    z = jnp.linspace(low, high, 30)[1:-1]
    lines = shape(Interval(z, z), fn, slope_of(fn))
    for gap in gaps(fn, lines, Interval(z, z), 1):
        np.testing.assert_allclose(gap[0], 0, atol=1e-12 * (1 + np.abs(fn(z)).max()))
    for side in lines:
        np.testing.assert_allclose(side.slopes[0], slope_of(fn)(z), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", SHAPES)
def test_neither_line_could_be_closer(name):
    """Each touches the function somewhere."""
    fn, shape, (low, high) = SHAPES[name]
    starts = jnp.linspace(low, high, 12)[:-1]
    x = Interval(starts, starts + 0.7 * (high - starts))
    size = 1 + jnp.abs(fn(x.lower)) + jnp.abs(fn(x.upper))
    for gap in gaps(fn, shape(x, fn, slope_of(fn)), x, 20_001):
        assert (gap.min(axis=0) <= 1e-6 * size).all()


def test_convex_is_a_tangent_below_and_the_chord_above():
    x = Interval(jnp.array([-1.0, 0.5]), jnp.array([2.0, 1.0]))
    for at in (None, jnp.array([0.0, 1.0])):
        below, above = convex(x, jnp.exp, jnp.exp, at)
        touching = (x.lower + x.upper) / 2 if at is None else at
        np.testing.assert_allclose(below.slopes[0], jnp.exp(touching), rtol=1e-12)
        np.testing.assert_allclose(below(touching), jnp.exp(touching), rtol=1e-12)
        for end in x:
            np.testing.assert_allclose(above(end), jnp.exp(end), rtol=1e-12)


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


@pytest.mark.parametrize("fn", [jnp.tanh, jnp.arctan])
def test_a_sigmoid_on_one_side_of_its_inflection_has_the_lines_of_its_curvature(fn):
    for x, shape in ((soundness.box([1.0, 2.0], 0.75), concave), (soundness.box([-1.0, -2.0], 0.75), convex)):
        found, expected = (s(x, fn, slope_of(fn)) for s in (sigmoidal, shape))
        for side, other in zip(found, expected, strict=True):
            for end in x:
                np.testing.assert_allclose(side(end), other(end), rtol=1e-9)


@pytest.mark.parametrize("name", ["sigmoidal_tanh", "convex_exp", "parallel_cubic"])
def test_lines_follow_the_ends_of_the_interval(name):
    """Their derivatives with respect to the ends are those of finite differences: slopes train networks."""
    fn, shape, _ = SHAPES[name]
    lower, upper = jnp.array([-1.0, -2.0, 0.3]), jnp.array([2.0, 0.4, 1.5])

    def heights(shift):
        lines = shape(Interval(lower + shift, upper - 2 * shift), fn, slope_of(fn))
        return jnp.stack([side(0.35) for side in lines])

    found = (heights(1e-6) - heights(-1e-6)) / 2e-6
    np.testing.assert_allclose(jax.jvp(heights, (0.0,), (1.0,))[1], found, rtol=1e-5, atol=1e-7)
