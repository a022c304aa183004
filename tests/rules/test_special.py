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
