import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbound.rules.curves import bent, concave, convex, enveloped, mirrored, sigmoidal
from jaxbound.rules.relaxation import Freedom
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


def silu_lines(x, fn, slope, free=None):
    return bent(x, fn, slope, free, inflections=(-2.399357280515468, 2.399357280515468))


def wave_lines(x, fn, slope, free=None):
    return enveloped(x, fn, slope, free, critical=wave_critical, steepness=(-1.0, 1.0))


def cubic_lines(x, fn, slope, free=None):
    return enveloped(x, fn, slope, free, critical=cubic_critical, steepness=(-1.0, 50.0))


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
    "mirrored_sinh": (jnp.sinh, mirrored(sigmoidal), (-5, 5)),
    "bent_silu": (jax.nn.silu, silu_lines, (-12, 12)),
    "enveloped_sin": (jnp.sin, wave_lines, (-6, 6)),
    "enveloped_cubic": (lambda x: x**3 - x, cubic_lines, (-4, 4)),
}


@functools.cache
def compiled(name):
    """Lines on intervals by a shape."""
    fn, shape, _ = SHAPES[name]
    return jax.jit(lambda x: shape(x, fn, slope_of(fn)))


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
    lines = compiled(name)(x)
    size = 1 + jnp.abs(fn(x.lower)) + jnp.abs(fn(x.upper)) + jnp.abs(lines.lower.slopes[0] * x.lower)
    for gap in gaps(fn, lines, x):
        assert (gap >= -1e-13 * size).all()


@pytest.mark.parametrize("name", SHAPES)
def test_on_a_point_both_lines_are_the_function(name):
    fn, shape, (low, high) = SHAPES[name]
    z = jnp.linspace(low, high, 30)[1:-1]
    lines = compiled(name)(Interval(z, z))
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
    for gap in gaps(fn, compiled(name)(x), x, 20_001):
        assert (gap.min(axis=0) <= 1e-6 * size).all()


def envelope_heights(z, values, at):
    """The convex envelope of sampled points [M] at some points, by the lower hull."""
    hull = []
    for point in zip(z, values, strict=True):
        while len(hull) > 1 and cross(hull[-2], hull[-1], point) <= 0:
            hull.pop()
        hull.append(point)
    return np.interp(at, *np.array(hull).T)


def cross(a, b, c):
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


@pytest.mark.parametrize("name", SHAPES)
def test_lines_touch_the_envelopes_at_the_midpoint(name):
    """No line is higher there: none leaves a smaller area."""
    fn, shape, (low, high) = SHAPES[name]
    ends = np.sort(np.random.default_rng(1).uniform(low, high, (2, 15)), axis=0)
    at = ends.mean(axis=0)
    lines = compiled(name)(Interval(*map(jnp.asarray, ends)))
    for side, sign in zip(lines, (1, -1), strict=True):
        heights = sign * np.asarray(side(at))
        for k in range(15):
            # Finer around zero, where steep functions bend.
            z = np.concatenate([np.linspace(*ends[:, k], 1001), np.sinh(np.linspace(-12, 12, 2001)) / 100])
            z = np.unique(np.clip(z, *ends[:, k]))
            best = envelope_heights(z, sign * np.asarray(fn(z)), at[k])
            assert heights[k] >= best - 1e-5 * (1 + np.abs(fn(z)).max()), (name, ends[:, k])


@pytest.mark.parametrize("name", SHAPES)
def test_lines_of_free_choice_touch_the_function(name):
    """Each bounds it, and could not be closer without another slope."""
    fn, shape, (low, high) = SHAPES[name]
    rng = np.random.default_rng(2)
    x = Interval(*map(jnp.asarray, np.sort(rng.uniform(low, high, (2, 40)), axis=0)))
    size = 1 + jnp.abs(fn(x.lower)) + jnp.abs(fn(x.upper))
    lines = jax.jit(lambda x, free: shape(x, fn, slope_of(fn), free))
    found = []
    for parts in (np.zeros((2, 40)), np.ones((2, 40)), rng.uniform(size=(2, 40))):
        found.append(lines(x, Freedom(*map(jnp.asarray, parts))))
        for gap, side in zip(gaps(fn, found[-1], x, 4001), found[-1], strict=True):
            steep = size + jnp.abs(side.slopes[0]) * (x.upper - x.lower)
            assert (gap >= -1e-12 * steep).all() and (gap.min(axis=0) <= 1e-5 * steep).all()
    first, last = (jnp.concatenate([side.slopes[0] for side in each]) for each in found[:2])
    assert (first != last).any()


def test_convex_is_a_tangent_below_and_the_chord_above():
    x = Interval(jnp.array([-1.0, 0.5]), jnp.array([2.0, 1.0]))
    for at in (None, jnp.array([0.0, 1.0])):
        below, above = convex(x, jnp.exp, jnp.exp, at=at)
        touching = (x.lower + x.upper) / 2 if at is None else at
        np.testing.assert_allclose(below.slopes[0], jnp.exp(touching), rtol=1e-12)
        np.testing.assert_allclose(below(touching), jnp.exp(touching), rtol=1e-12)
        for end in x:
            np.testing.assert_allclose(above(end), jnp.exp(end), rtol=1e-12)


@pytest.mark.parametrize("fn", [jnp.tanh, jnp.arctan])
def test_a_sigmoid_on_one_side_of_its_inflection_has_the_lines_of_its_curvature(fn):
    for x, shape in ((soundness.box([1.0, 2.0], 0.75), concave), (soundness.box([-1.0, -2.0], 0.75), convex)):
        found, expected = (s(x, fn, slope_of(fn)) for s in (sigmoidal, shape))
        for side, other in zip(found, expected, strict=True):
            for end in x:
                np.testing.assert_allclose(side(end), other(end), rtol=1e-9)


@pytest.mark.parametrize("name", ["sigmoidal_tanh", "convex_exp", "bent_silu", "enveloped_cubic"])
def test_lines_follow_the_ends_of_the_interval(name):
    """Their derivatives with respect to the ends are those of finite differences: slopes train networks."""
    fn, shape, _ = SHAPES[name]
    lower, upper = jnp.array([-1.0, -2.0, 0.3]), jnp.array([2.0, 0.4, 1.5])

    def heights(shift):
        lines = shape(Interval(lower + shift, upper - 2 * shift), fn, slope_of(fn))
        return jnp.stack([side(0.35) for side in lines])

    found = (heights(1e-6) - heights(-1e-6)) / 2e-6
    np.testing.assert_allclose(jax.jvp(heights, (0.0,), (1.0,))[1], found, rtol=1e-5, atol=1e-7)
