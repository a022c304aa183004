import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbound
from jaxbound import relax

STRATEGIES = {
    "adaptive": relax.adaptive,
    "tight": relax.tight,
    "one": relax.one,
    "same_slope": relax.same_slope,
    "constant": relax.constant,
}
CHORDED = [name for name in STRATEGIES if name != "constant"]
ENDS = [-1e4, -3.0, -1.0, -1e-3, -1e-9, 0.0, 1e-9, 1e-3, 0.7, 1.0, 2.0, 1e4]
GRID = jaxbound.Interval(*np.array([(a, b) for a in ENDS for b in ENDS if a <= b]).T)
CROSSING = (GRID.lower < 0) & (GRID.upper > 0)
INSIDE = np.linspace(0, 1, 41)[:, None]

pytestmark = pytest.mark.usefixtures("double")


def leaky(z, slope):
    return jnp.where(z > 0, z, slope * z)


def lines(name, slope=0.0, x=GRID):
    """The lower and the upper line."""
    return STRATEGIES[name](x, slope)


def slopes(name, slope=0.0):
    """The slopes of both lines."""
    return [side.slopes[0] for side in lines(name, slope)]


def points(x=GRID):
    """Points of each interval [44, N], its ends and zero among them."""
    inside = x.lower + INSIDE * (x.upper - x.lower)
    return np.concatenate([inside, [x.lower, x.upper, np.clip(0, *x)]]).clip(*x)


@pytest.mark.parametrize("slope", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("name", STRATEGIES)
def test_lines_enclose_the_function(name, slope):
    below, above = lines(name, slope)
    z, slack = points(), 1e-15 * (1 + np.abs(GRID.lower) + np.abs(GRID.upper))
    assert (below(z) <= leaky(z, slope) + slack).all()
    assert (leaky(z, slope) <= above(z) + slack).all()


@pytest.mark.parametrize("name", STRATEGIES)
def test_lines_enclose_the_function_in_single_precision(name):
    x = jaxbound.Interval(*(jnp.asarray(end, jnp.float32) for end in GRID))
    below, above = jax.tree.map(np.float64, lines(name, 0.2, x))
    z = points(jaxbound.Interval(*map(np.float64, x)))
    slack = 1e-6 * (1 + np.abs(z))
    assert (below(z) <= leaky(z, 0.2) + slack).all() and (leaky(z, 0.2) <= above(z) + slack).all()


@pytest.mark.parametrize("slope", [0.0, 0.2])
@pytest.mark.parametrize("name", CHORDED)
def test_exact_where_zero_is_not_crossed_and_a_chord_above_where_it_is(name, slope):
    below, above = lines(name, slope)
    for end in GRID:
        np.testing.assert_array_equal(below(end)[~CROSSING], leaky(end, slope)[~CROSSING])
        np.testing.assert_array_equal(above(end)[~CROSSING], leaky(end, slope)[~CROSSING])
        np.testing.assert_allclose(above(end)[CROSSING], leaky(end, slope)[CROSSING], rtol=1e-12, atol=1e-12)
    assert (below(jnp.zeros_like(GRID.lower)) == 0).all()


@pytest.mark.parametrize("slope", [0.0, 0.2])
def test_slopes_of_the_lower_line_where_zero_is_crossed(slope):
    found = {name: slopes(name, slope)[0][CROSSING] for name in STRATEGIES}
    chord = slopes("tight", slope)[1][CROSSING]
    assert (found["tight"] == slope).all() and (found["one"] == 1).all() and (found["constant"] == 0).all()
    np.testing.assert_array_equal(found["same_slope"], chord)
    np.testing.assert_array_equal(found["adaptive"], np.where((GRID.upper >= -GRID.lower)[CROSSING], 1, slope))


@pytest.mark.parametrize("slope", [0.0, 0.2])
def test_tight_is_never_below_the_intervals_own_bound(slope):
    below, _ = lines("tight", slope)
    assert (jnp.minimum(below(GRID.lower), below(GRID.upper)) >= leaky(GRID.lower, slope) - 1e-12).all()


def test_adaptive_leaves_the_smallest_area():
    """Lines through the origin: the higher one at the middle of the interval."""
    heights = {name: lines(name).lower((GRID.lower + GRID.upper) / 2) for name in CHORDED}
    assert all((heights["adaptive"] >= height - 1e-12).all() for height in heights.values())


@pytest.mark.parametrize("slope", [0.0, 0.2])
def test_constant_is_the_interval(slope):
    for side, end in zip(lines("constant", slope), GRID, strict=True):
        assert (side.slopes[0] == 0).all()
        np.testing.assert_allclose(side(end), leaky(end, slope), rtol=1e-12)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_single_point_has_finite_lines_and_derivatives(name):
    def gap(lower, width):
        below, above = lines(name, 0.1, jaxbound.Interval(lower, lower + width))
        return below(lower) - above(lower)

    for z in (-1.0, 0.0, 1.0):
        value, derivatives = jax.value_and_grad(gap, (0, 1))(jnp.array(z), jnp.array(0.0))
        assert value == 0 and np.isfinite(derivatives).all()


def test_lines_of_a_leaky_function_with_a_slope_for_each_element():
    each, x = jnp.array([0.0, 0.1, 0.5]), jaxbound.Interval(jnp.full(3, -1.0), jnp.full(3, 2.0))
    first = jaxbound.Interval(x.lower[:1], x.upper[:1])
    for name in STRATEGIES:
        together, alone = lines(name, each, x), [lines(name, slope, first) for slope in each]
        for k, side in enumerate(together):
            for z in (-1.0, 1.5):
                np.testing.assert_allclose(side(z), [lines[k](z)[0] for lines in alone], rtol=1e-12)


# Ramps.

TOPS = [0.0, 0.5, np.inf]
KEYED = [(name, slope, top) for name in STRATEGIES for slope in (0.0, 0.01, 0.3) for top in TOPS]
# Intervals of every state, for a top of 0.5, with bends at their ends and inside.
RAMP_ENDS = [-1e4, -2.0, -0.6, -0.3, -1e-9, 0.0, 1e-9, 0.2, 0.4, 0.5, np.nextafter(0.5, 1.0), 0.6, 0.9, 3.0, 1e4]
RAMP_GRID = jaxbound.Interval(*np.array([(a, b) for a in RAMP_ENDS for b in RAMP_ENDS if a <= b]).T)


def ramp(z, slope, top):
    return slope * z + (1 - slope) * np.clip(z, 0, top)


def ramp_points(x):
    """Points of each interval, its ends and the bends among them."""
    return np.concatenate([points(x), [np.clip(0.5, *x)]])


@pytest.mark.parametrize(("name", "slope", "top"), KEYED)
def test_lines_enclose_a_ramp(name, slope, top):
    below, above = STRATEGIES[name](RAMP_GRID, slope, top)
    z = ramp_points(RAMP_GRID)
    slack = 1e-15 * (1 + np.abs(RAMP_GRID.lower) + np.abs(RAMP_GRID.upper))
    assert (below(z) <= ramp(z, slope, top) + slack).all()
    assert (ramp(z, slope, top) <= above(z) + slack).all()


@pytest.mark.parametrize("name", STRATEGIES)
def test_lines_enclose_random_ramps_in_single_precision(name):
    rng = np.random.default_rng(3)
    low, width = rng.normal(size=4000), np.abs(rng.normal(size=4000)) * rng.choice([1e-8, 1e-3, 1.0], 4000)
    x = jaxbound.Interval(*(jnp.asarray(end, jnp.float32) for end in (low, low + width)))
    slope, top = (jnp.asarray(each, jnp.float32) for each in rng.uniform(size=(2, 4000)))
    near = rng.choice([0, 1, 2], 4000)  # where a bend is at an end, rounding decides on which side
    top = jnp.where(near == 0, top, jnp.maximum(jnp.where(near == 1, x.lower, x.upper), 0))
    below, above = jax.tree.map(np.float64, jax.jit(STRATEGIES[name])(x, slope, top))
    z = ramp_points(jaxbound.Interval(*map(np.float64, x)))
    value, slack = ramp(z, np.float64(slope), np.float64(top)), 1e-6 * (1 + np.abs(z))
    assert (below(z) <= value + slack).all() and (value <= above(z) + slack).all()


@pytest.mark.parametrize("name", STRATEGIES)
def test_lines_of_a_ramp_keep_their_digits_on_long_intervals(name):
    """An error of the slope is multiplied by the length, which the ramp's values have nothing to do with."""
    ends = [(a, b) for a in (-0.2, 0.0, 0.3, 0.9) for b in (3e3, 1e6, 1e12)]
    x = jaxbound.Interval(*(jnp.array(end, jnp.float32) for end in zip(*ends, strict=True)))
    for box in (x, jaxbound.Interval(0.8 - x.upper, 0.8 - x.lower)):
        below, above = jax.tree.map(np.float64, jax.jit(STRATEGIES[name])(box, 0.0, 0.8))
        for end in map(np.float64, box):
            value = ramp(end, 0.0, np.float64(np.float32(0.8)))
            assert (below(end) <= value + 1e-6).all() and (value <= above(end) + 1e-6).all()


@pytest.mark.parametrize("slope", [0.0, 0.2])
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_ramp_without_a_top_is_a_leaky_function(name, slope):
    plain, endless = STRATEGIES[name](GRID, slope), STRATEGIES[name](GRID, slope, np.inf)
    for side, other in zip(plain, endless, strict=True):
        for end in GRID:
            np.testing.assert_allclose(side(end), other(end), rtol=1e-12, atol=1e-11)


# An interval of each state for a top of 1 and a slope of 0.1 -> slope and intercept of (tight: lower, upper), and of
# those that are different with adaptive lines.
SIX = {
    "left_dead": ((-2.0, -1.0), ((0.1, 0.0), (0.1, 0.0)), (None, None)),
    "left_unstable": ((-1.0, 0.5), ((0.1, 0.0), (0.4, 0.3)), (None, None)),
    "left_unstable_high": ((-0.5, 1.0), ((0.1, 0.0), (0.7, 0.3)), ((1.0, 0.0), None)),
    "alive": ((0.25, 0.75), ((1.0, 0.0), (1.0, 0.0)), (None, None)),
    "right_unstable": ((0.5, 2.0), ((0.4, 0.3), (0.1, 0.9)), (None, None)),
    "right_unstable_low": ((0.0, 1.5), ((0.7, 0.0), (0.1, 0.9)), (None, (1.0, 0.0))),
    "right_dead": ((1.5, 2.0), ((0.1, 0.9), (0.1, 0.9)), (None, None)),
    "unstable": ((-2.0, 1.8), ((0.1, 0.0), (0.1, 0.9)), (None, (0.4, 0.6))),
    "unstable_high": ((-0.5, 4.0), ((0.1, 0.0), (0.1, 0.9)), ((0.325, 0.0), None)),
    "unstable_both": ((-1.0, 2.0), ((0.1, 0.0), (0.1, 0.9)), ((0.55, 0.0), (0.55, 0.45))),
}


@pytest.mark.parametrize("name", SIX)
def test_lines_of_the_six_states(name):
    interval, tight, changed = SIX[name]
    adaptive = [other or line for line, other in zip(tight, changed, strict=True)]
    for strategy, expected in ((relax.tight, tight), (relax.adaptive, adaptive)):
        found = [(side.slopes[0], side.intercept) for side in strategy(jaxbound.Interval(*interval), 0.1, 1.0)]
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("slope", [0.0, 0.01, 0.3])
@pytest.mark.parametrize("top", TOPS)
def test_tight_lines_of_a_ramp_are_within_the_intervals_own_bounds(slope, top):
    below, above = relax.tight(RAMP_GRID, slope, top)
    for end in RAMP_GRID:
        assert (below(end) >= ramp(RAMP_GRID.lower, slope, top) - 1e-12).all()
        assert (above(end) <= ramp(RAMP_GRID.upper, slope, top) + 1e-12).all()


@pytest.mark.parametrize("name", CHORDED)
def test_lines_of_a_ramp_are_exact_where_it_has_no_bend_inside(name):
    straight = ~((RAMP_GRID.lower < 0) & (RAMP_GRID.upper > 0)) & ~((RAMP_GRID.lower < 0.5) & (RAMP_GRID.upper > 0.5))
    for side in STRATEGIES[name](RAMP_GRID, 0.3, 0.5):
        for end in RAMP_GRID:
            np.testing.assert_allclose(side(end)[straight], ramp(end, 0.3, 0.5)[straight], rtol=1e-12)


@pytest.mark.parametrize("name", STRATEGIES)
def test_derivatives_of_a_ramps_lines(name):
    """All with respect to interval, slope and top, away from where the choice of lines changes."""
    rng = np.random.default_rng(5)
    lower = rng.uniform(-2, 1, 200)
    arguments = (lower, lower + rng.uniform(0.1, 2, 200), rng.uniform(0.05, 0.9, 200), rng.uniform(0.1, 1, 200))

    @jax.jit
    def numbers(lower, upper, slope, top):
        sides = STRATEGIES[name](jaxbound.Interval(lower, upper), slope, top)
        return jnp.stack([part for side in sides for part in (side.slopes[0], side.intercept)])

    found = jax.jit(lambda directions: jax.vmap(lambda d: jax.jvp(numbers, arguments, d)[1])(directions))
    directions = np.broadcast_to(np.eye(4)[:, :, None], (4, 4, 200))
    steps = [[a + h * d for a, d in zip(arguments, each, strict=True)] for each in directions for h in (1e-6, -1e-6)]
    moved = np.array([numbers(*step) for step in steps])
    expected = (moved[::2] - moved[1::2]) / 2e-6
    np.testing.assert_allclose(found(tuple(directions)), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", STRATEGIES)
def test_derivatives_of_a_ramps_lines_are_finite(name):
    @jax.jit
    @jax.grad
    def gradient(arguments):
        x, slope, tops = arguments
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(STRATEGIES[name](x, slope, tops)))

    for top in TOPS:
        tops = jnp.full(RAMP_GRID.lower.shape, top)
        found = gradient((jax.tree.map(jnp.asarray, RAMP_GRID), jnp.array(0.1), tops))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
        assert top < np.inf or (found[2] == 0).all()
