import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxbound
from tests import soundness

W = soundness.weights(4, 4)


def within(x):
    """In (-1, 1)."""
    return 0.95 * jax.nn.soft_sign(x)


METHODS = {name: soundness.METHODS[name] for name in ("ibp", "crown_ibp")}
CASES = {
    "asin": lambda x: jnp.arcsin(within(x)),
    "acos": lambda x: jnp.arccos(within(x)),
    "erf_inv": lambda x: lax.erf_inv(within(x)),
    "cbrt": jnp.cbrt,
    "tan": lambda x: jnp.tan(within(x)) + jnp.tan(within(x[::-1]) + 3),
    "lgamma": lambda x: lax.lgamma(0.2 + jnp.abs(x)),
    "digamma": lambda x: lax.digamma(1.2 + within(x)),
    "atan2": lambda x: jnp.arctan2(W @ x, x),
    "atan2_of_a_constant": lambda x: jnp.arctan2(0.5, x) - jnp.arctan2(x, np.array([-1.0, 2.0, 0.0, 1.0])),
    "nextafter": lambda x: jnp.nextafter(*lax.stop_gradient((x, W @ x))),
    "base": lambda x: 1.7**x - 0.3**x,
    "power_of_sets": lambda x: (1.5 + within(x)) ** (W @ x / 4),
}


@pytest.mark.parametrize("name", CASES)
def test_sound(name, double):
    soundness.check(CASES[name], *soundness.boxes(4)[:2], methods=METHODS)


@pytest.mark.parametrize("name", ["lgamma", "atan2"])
def test_sound_in_single_precision(name):
    soundness.check(CASES[name], *soundness.boxes(4)[:2])


@pytest.mark.parametrize("method", [jaxbound.ibp, jaxbound.crown_ibp])
@pytest.mark.parametrize(
    "fn, low, high", [(jnp.tan, 1.0, 2.0), (lax.lgamma, -0.5, 1.0), (lax.digamma, -1.0, 1.0), (jnp.arcsin, 0.5, 1.5)]
)
def test_nothing_is_known_at_poles_and_outside_of_the_domain(method, fn, low, high):
    bound = method(fn)(jaxbound.Interval(jnp.array(low), jnp.array(high)))
    assert bound == (-jnp.inf, jnp.inf)


@pytest.mark.parametrize("method", [jaxbound.ibp, jaxbound.crown_ibp])
def test_tan_is_tight_on_a_piece_far_from_zero(method, double):
    box = jaxbound.Interval(jnp.array(2 * np.pi - 1.0), jnp.array(2 * np.pi + 1.2))
    lower, upper = method(jnp.tan)(box)
    assert jnp.tan(-1.0) - 1.5 <= lower <= jnp.tan(-1.0) + 1e-9 and jnp.tan(1.2) - 1e-9 <= upper <= jnp.tan(1.2) + 1.5


def test_angles_of_what_may_be_nan():
    box = jaxbound.Interval(jnp.array([-1.0]), jnp.array([1.0]))
    found = jaxbound.ibp(lambda x: jnp.arctan2(jnp.sqrt(x), 1.0))(box)
    np.testing.assert_array_equal(found, [[-jnp.inf], [jnp.inf]])


def test_poles_of_tan_far_from_zero():
    """In single precision: the number of half turns is known, and where they end is not."""
    tan = jaxbound.ibp(jnp.tan)
    rng = np.random.default_rng(0)
    low = jnp.asarray(rng.uniform(1e3, 2e4, 500), jnp.float32)
    high = low + jnp.asarray(rng.uniform(0, 1, 500), jnp.float32)
    lower, upper = tan(jaxbound.Interval(low, high))
    for share in np.linspace(0, 1, 201, dtype=np.float32):
        value = jnp.tan(jnp.clip(low + share * (high - low), low, high))
        slack = 1e-3 * (1 + value**2)  # the rounding of an angle this large
        assert jnp.all((lower <= value + slack) & (value - slack <= upper))
