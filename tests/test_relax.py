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
    """Slope and intercept of the lower and of the upper line."""
    return [(side.slopes[0], side.intercept) for side in STRATEGIES[name](x, slope)]


def points(x=GRID):
    """Points of each interval [41, N], its ends and zero among them."""
    inside = x.lower + INSIDE * (x.upper - x.lower)
    return np.concatenate([inside, [x.lower, x.upper, np.clip(0, *x)]]).clip(*x)


@pytest.mark.parametrize("slope", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("name", STRATEGIES)
def test_lines_enclose_the_function(name, slope):
    (a, b), (c, d) = lines(name, slope)
    z = points()
    slack = 1e-15 * (1 + np.abs(GRID.lower) + np.abs(GRID.upper))
    assert (a * z + b <= leaky(z, slope) + slack).all()
    assert (leaky(z, slope) <= c * z + d + slack).all()


@pytest.mark.parametrize("name", STRATEGIES)
def test_lines_enclose_the_function_in_single_precision(name):
    x = jaxbound.Interval(*(jnp.asarray(end, jnp.float32) for end in GRID))
    (a, b), (c, d) = (map(np.float64, side) for side in lines(name, 0.2, x))
    z = points(jaxbound.Interval(*map(np.float64, x)))
    slack = 1e-6 * (1 + np.abs(z))
    assert (a * z + b <= leaky(z, 0.2) + slack).all() and (leaky(z, 0.2) <= c * z + d + slack).all()


@pytest.mark.parametrize("slope", [0.0, 0.2])
@pytest.mark.parametrize("name", CHORDED)
def test_exact_where_zero_is_not_crossed_and_a_chord_above_where_it_is(name, slope):
    (a, b), (c, d) = lines(name, slope)
    side = jnp.where(GRID.upper > 0, 1.0, slope)
    np.testing.assert_array_equal(a[~CROSSING], side[~CROSSING])
    np.testing.assert_array_equal(c[~CROSSING], side[~CROSSING])
    assert (b == 0).all() and (d[~CROSSING] == 0).all()
    for end in GRID:
        np.testing.assert_allclose((c * end + d)[CROSSING], leaky(end, slope)[CROSSING], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("slope", [0.0, 0.2])
def test_slopes_of_the_lower_line_where_zero_is_crossed(slope):
    found = {name: lines(name, slope)[0][0][CROSSING] for name in STRATEGIES}
    chord = lines("tight", slope)[1][0][CROSSING]
    assert (found["tight"] == slope).all() and (found["one"] == 1).all() and (found["constant"] == 0).all()
    np.testing.assert_array_equal(found["same_slope"], chord)
    np.testing.assert_array_equal(found["adaptive"], np.where((GRID.upper >= -GRID.lower)[CROSSING], 1, slope))


@pytest.mark.parametrize("slope", [0.0, 0.2])
def test_tight_is_never_below_the_intervals_own_bound(slope):
    (a, b), _ = lines("tight", slope)
    assert (jnp.minimum(a * GRID.lower, a * GRID.upper) + b >= leaky(GRID.lower, slope) - 1e-12).all()


def test_adaptive_leaves_the_smallest_area():
    """Lines through the origin: the higher one at the middle of the interval."""
    middle = (GRID.lower + GRID.upper) / 2
    heights = {name: lines(name)[0][0] * middle + lines(name)[0][1] for name in CHORDED}
    assert all((heights["adaptive"] >= height - 1e-12).all() for height in heights.values())


@pytest.mark.parametrize("slope", [0.0, 0.2])
def test_constant_is_the_interval(slope):
    (a, b), (c, d) = lines("constant", slope)
    assert (a == 0).all() and (c == 0).all()
    np.testing.assert_allclose([b, d], [leaky(end, slope) for end in GRID], rtol=1e-12)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_single_point_has_finite_lines_and_derivatives(name):
    def gap(lower, width):
        (a, b), (c, d) = lines(name, 0.1, jaxbound.Interval(lower, lower + width))
        return jnp.sum(a * lower + b - c * lower - d)

    for z in (-1.0, 0.0, 1.0):
        value, slopes = jax.value_and_grad(gap, (0, 1))(jnp.array(z), jnp.array(0.0))
        assert value == 0 and np.isfinite(slopes).all()


def test_lines_of_a_leaky_function_with_a_slope_for_each_element():
    slopes = jnp.array([0.0, 0.1, 0.5])
    x = jaxbound.Interval(jnp.full(3, -1.0), jnp.full(3, 2.0))
    for name in STRATEGIES:
        each = [lines(name, s, jaxbound.Interval(*(end[:1] for end in x))) for s in slopes]
        np.testing.assert_allclose(lines(name, slopes, x), np.concatenate(each, axis=-1), rtol=1e-12)
