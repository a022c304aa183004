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
