import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxbound
from jaxbound.rules.relaxation import Affine
from jaxbound.rules.smooth import derivative
from tests import soundness

CASES = {
    "exp": jnp.exp,
    "exp2": jnp.exp2,
    "expm1": jnp.expm1,
    "log": lambda x: jnp.log(x + 6),
    "log2": lambda x: jnp.log2(x + 6),
    "log1p": lambda x: jnp.log1p(x + 6),
    "sqrt": lambda x: jnp.sqrt(x + 6),
    "rsqrt": lambda x: lax.rsqrt(x + 6),
    "tanh": jnp.tanh,
    "logistic": jax.nn.sigmoid,
    "erf": lax.erf,
    "erfc": lax.erfc,
    "atan": jnp.arctan,
    "asinh": jnp.arcsinh,
    "tanh_derivative": jax.grad(lambda x: jnp.sum(jnp.tanh(x))),
    "acosh": lambda x: jnp.arccosh(x + 6),
    "atanh": lambda x: jnp.arctanh(x / 4),
    "sinh": jnp.sinh,
    "cosh": jnp.cosh,
    "sin": jnp.sin,
    "cos": jnp.cos,
    "sin_fast": lambda x: jnp.sin(7 * x + 1),
    "square": jnp.square,
    "x_times_x": lambda x: x * x,
    "power_3": lambda x: x**3,
    "power_4": lambda x: x**4,
    "power_-1": lambda x: (x + 6) ** -1,
    "power_-2_left": lambda x: (x - 6) ** -2,
    "power_-3_left": lambda x: (x - 6) ** -3,
    "power_-3": lambda x: (x + 6) ** -3,
    "power_1.5": lambda x: (x + 6) ** 1.5,
    "power_0.3": lambda x: (x + 6) ** 0.3,
    "power_-0.7": lambda x: (x + 6) ** -0.7,
}


@pytest.mark.parametrize("name", CASES)
def test_sound(name, double):
    soundness.check(CASES[name], *soundness.boxes(4))


FEW = ("tanh", "exp", "log", "sin", "power_-3")
FURTHER = pytest.mark.slow(reason="the test in float64 is the sharper one")


@pytest.mark.parametrize("name", [name if name in FEW else pytest.param(name, marks=FURTHER) for name in CASES])
def test_sound_in_single_precision(name):
    soundness.check(CASES[name], *soundness.boxes(4))


def planes(fn, lower, upper):
    """Slope and intercept of both lines of a scalar function on an interval."""
    lower, upper = jax.jit(jaxbound.linear_bounds(fn))(jaxbound.Interval(jnp.array(lower), jnp.array(upper)))
    return Affine((lower.coeffs,), lower.bias), Affine((upper.coeffs,), upper.bias)


def gaps(fn, lower, upper, count=20_001):
    """How far a function stays from its lower and its upper line over an interval."""
    below, above = planes(fn, lower, upper)
    x = jnp.linspace(lower, upper, count)
    return fn(x) - below.slopes[0] * x - below.intercept, above.slopes[0] * x + above.intercept - fn(x)


@pytest.mark.parametrize("fn", [jnp.tanh, jax.nn.sigmoid, lax.erf, jnp.arctan, jnp.arcsinh, jnp.sinh, lambda x: x**3])
@pytest.mark.parametrize("ends", [(-2.0, 0.5), (-0.5, 2.0), (-3.0, 3.0), (0.5, 2.0), (-2.0, -0.5), (-4.0, 0.01)])
def test_s_shaped_lines_touch_the_curve(fn, ends, double):
    """Neither line could move closer without crossing the function."""
    for gap in gaps(fn, *ends):
        assert gap.min() >= -1e-12
        assert gap.min() < 1e-7


@pytest.mark.parametrize("fn", [jnp.sin, jnp.cos])
@pytest.mark.parametrize("ends", [(-2.0, 0.5), (0.1, 3.0), (-1.0, 5.0), (4.0, 10.2), (100.0, 104.0), (-60.0, -57.0)])
def test_wave_lines_touch_the_curve(fn, ends, double):
    for gap in gaps(fn, *ends):
        assert gap.min() >= -1e-12
        assert gap.min() < 1e-6


@pytest.mark.parametrize("fn, shift", [(jnp.sin, 0.0), (jnp.cos, 0.5 * np.pi)])
def test_range_of_a_wave(fn, shift, double):
    """Around its peaks and troughs, and beyond a period."""
    for center in np.pi * np.arange(-3, 4) / 2:
        for radius in (0.3, 1.7, 3.2, 40.0):
            x = jnp.linspace(center - radius, center + radius, 100_001)
            lower, upper = jaxbound.ibp(fn)(soundness.box(center, radius))
            np.testing.assert_allclose([lower, upper], [fn(x).min(), fn(x).max()], atol=1e-6)


@pytest.mark.parametrize("power", range(-4, 5))
@pytest.mark.parametrize("ends", [(-2.0, -0.5), (-1.0, 2.0), (0.25, 3.0), (0.0, 1.0), (-1.0, 0.0)])
def test_range_of_a_power(power, ends, double):
    def fn(x):
        return lax.integer_pow(x, power)

    lower, upper = jaxbound.ibp(fn)(jaxbound.Interval(*map(jnp.array, ends)))
    values = fn(jnp.linspace(*ends, 100_001))
    if power < 0 and ends[0] <= 0 <= ends[1]:
        assert (lower, upper) == (-np.inf if power % 2 else 0, np.inf) or lower == -np.inf
    else:
        np.testing.assert_allclose([lower, upper], [values.min(), values.max()], atol=1e-7)


@pytest.mark.parametrize("fn", [lambda x: x**-1, lambda x: 1 / x, lambda x: x**-3])
def test_a_pole_inside_bounds_nothing(fn):
    """And no method makes a number of it."""
    region = soundness.box([0.0, 2.0], 1.0)
    for make in soundness.METHODS.values():
        lower, upper = make(fn)(region)
        assert np.isneginf(lower[0]) and np.isposinf(upper[0])
        assert lower[1] <= fn(3.0) and upper[1] >= fn(1.0)
    np.testing.assert_allclose(jaxbound.ibp(fn)(region)[1][1], fn(1.0))


@pytest.mark.parametrize("fn", [jnp.log, jnp.sqrt, lambda x: x**0.5, lambda x: x**1.5, jnp.log1p])
def test_outside_the_domain_nothing_is_bounded(fn):
    for make in soundness.METHODS.values():
        lower, upper = make(fn)(soundness.box([-1.0], 1.5))
        assert np.isneginf(lower) and np.isposinf(upper)


def test_a_flat_stretch_is_bounded():
    """Computed values of tanh fall by a rounding here and there where it is nearly 1; that is no invalid interval."""
    center = jnp.linspace(2.0, 12.0, 20_001, dtype=jnp.float32)
    region = jaxbound.Interval(center, jnp.nextafter(center, jnp.float32(20)))
    for fn in (jnp.tanh, jax.nn.sigmoid, lax.erf, lambda x: -lax.erfc(x), jnp.arctan, jnp.exp, jnp.log):
        bound = jax.jit(lambda region, fn=fn: jaxbound.ibp(fn)(region))(region)
        assert (bound.lower <= bound.upper).all()
        spec = jnp.ones((1, center.size), jnp.float32)
        assert np.isfinite(
            jax.jit(lambda region, fn=fn, spec=spec: jaxbound.crown_ibp(fn)(region, spec=spec))(region)
        ).all()


def test_lines_of_exp_stay_positive(double):
    """Softmax divides by sums of exponentials; the tangent must not reach zero inside the interval."""
    for ends in ((-3.0, 3.0), (-1.0, 1.0), (0.0, 20.0)):
        below, _ = planes(jnp.exp, *ends)
        assert below.slopes[0] * ends[0] + below.intercept > 0


def test_derivative():
    x = jnp.linspace(-2, 2, 9)
    np.testing.assert_allclose(derivative(jnp.tanh)(x), 1 - jnp.tanh(x) ** 2, rtol=1e-5)


@pytest.mark.parametrize(
    "fn", [lambda x: lax.rsqrt(-x), lambda x: (-x) ** -1.0, lambda x: lax.pow(-x, jnp.full_like(x, -0.5))]
)
@pytest.mark.parametrize("method", [jaxbound.ibp, jaxbound.crown_ibp])
def test_a_pole_at_minus_zero(fn, method):
    box = jaxbound.Interval(jnp.array([-4.0]), jnp.array([0.0]))
    lower, upper = jax.jit(method(fn))(box)
    for x in (-4.0, -1.0, -1e-2, -1e-30):
        assert lower <= fn(jnp.array([x])) <= upper


def test_constant_powers_of_a_scalar():
    powers = jnp.array([0.5, -2.0, 3.0])
    soundness.check(lambda x: x[0] ** powers, jaxbound.Interval(jnp.ones(1), 2 * jnp.ones(1)))


def test_a_power_whose_exponent_is_an_integer_that_depends_on_a_set():
    soundness.check(
        lambda x: lax.pow(jnp.full((1,), 2.0), x.astype(jnp.int32)),
        jaxbound.Interval(jnp.ones(1), 3 * jnp.ones(1)),
        gradient=None,
    )
