import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxbound
from jaxbound import relax
from jaxbound.rules import piecewise
from tests import soundness

W = soundness.weights(4, 4)
LOW = np.array([0.0, np.inf, -0.5, 1e30])
CASES = {
    "reduce_precision": lambda x: lax.reduce_precision(x, 5, 3),
    "relu": jax.nn.relu,
    "min": lambda x: jnp.minimum(x, 0.3),
    "max_of_sets": lambda x: jnp.maximum(x, W @ x),
    "min_of_sets": lambda x: jnp.minimum(x[::-1], W @ x),
    "abs": jnp.abs,
    "sign": jnp.sign,
    "floor": jnp.floor,
    "ceil": jnp.ceil,
    "round": jnp.round,
    "clamp": lambda x: lax.clamp(-0.5, x, 0.7),
    "clip": lambda x: jnp.clip(x, -0.5, 0.7),
    "clip_to_ends_of_all_kinds": lambda x: jnp.clip(x, np.array([-np.inf, -0.1, 0.5, -1e30]), LOW + 0.3),
    "clamp_without_ends": lambda x: lax.clamp(-jnp.inf, x, jnp.inf),
    "clip_to_sets": lambda x: jnp.clip(x, W @ x - 0.4, W.T @ x + 0.3),
    "clip_below_a_set": lambda x: jnp.clip(x, -0.4, W @ x),
    "clip_a_constant": lambda x: jnp.clip(0.1 * W[0], -0.4, x),
    "rem": lambda x: lax.rem(x, np.array([0.5, -0.75, 2.0, 9.0])),
    "mod": lambda x: jnp.mod(x, 0.75) + jnp.fmod(x, -1.25),
    "clamp_to_sets": lambda x: lax.clamp(W @ x - 0.4, x, x + 1),
    "max_with_infinity": lambda x: jnp.maximum(x, -jnp.inf),
}


@pytest.mark.parametrize("name", CASES)
def test_sound(name, double):
    soundness.check(CASES[name], *soundness.boxes(4))


@pytest.mark.parametrize("name", ["relu", "clamp", "clip_to_ends_of_all_kinds", "abs"])
def test_sound_in_single_precision(name):
    soundness.check(CASES[name], *soundness.boxes(4))


@pytest.mark.parametrize("strategy", [relax.adaptive, relax.tight, relax.one, relax.same_slope, relax.constant])
def test_every_strategy_is_sound(strategy, double):
    def method(fn):
        return jaxbound.crown_ibp(fn, relu=strategy)

    def fn(x):
        return W @ jax.nn.leaky_relu(W @ jax.nn.relu(x) + 0.1, 0.2)

    soundness.check(fn, *soundness.boxes(4), methods={"crown_ibp": method}, nested=False)


def mine(x, slope):
    """A strategy that knows nothing of ramps."""
    return relax.tight(x, slope)


@pytest.mark.parametrize("strategy", [relax.adaptive, relax.one, relax.same_slope, relax.constant, mine])
def test_every_strategy_is_sound_for_ramps(strategy, double):
    def method(fn):
        return jaxbound.crown_ibp(fn, relu=strategy)

    def fn(x):
        x = W @ jaxbound.ramp(W @ x, jnp.array([0.5, 0.0, jnp.inf, 2.0]), 0.2)
        return jnp.clip(x, -0.5, 0.7)

    soundness.check(fn, *soundness.boxes(4), methods={"crown_ibp": method}, nested=False)


def test_clips_have_the_lines_of_a_ramp():
    lower = jnp.array([0.5, -2.0, 1.5, -2.5])
    x = jaxbound.Interval(lower, lower + jnp.array([0.25, 2.5, 1.0, 5.0]))
    for strategy in (relax.adaptive, relax.tight):
        found = piecewise.relax_clip(-1.0, x, 1.0, relu=strategy)
        lines = strategy(jaxbound.Interval(x.lower + 1, x.upper + 1), 0.0, 2.0)
        for side, expected in zip(found, lines, strict=True):
            for z in (*x, jnp.zeros(4)):
                np.testing.assert_allclose(side(z), expected(z + 1) - 1, atol=1e-6)


@pytest.mark.parametrize("method", [jaxbound.ibp, jaxbound.crown_ibp])
def test_remainders_of_what_may_be_nan(method):
    box = jaxbound.Interval(jnp.array([-1.0]), jnp.array([1.0]))
    for fn in (lambda x: lax.rem(jnp.log(x), 1.0), lambda x: lax.rem(jnp.sqrt(x) - 2, 3.0)):
        np.testing.assert_array_equal(method(fn)(box), [[-jnp.inf], [jnp.inf]])


def test_the_least_integer_has_no_absolute_value():
    box = jaxbound.Interval(jnp.array([-3e9]), jnp.array([0.0]))
    lower, upper = jaxbound.ibp(lambda x: jnp.abs(x.astype(jnp.int32)).astype(float))(box)
    assert lower <= -(2.0**31) and upper >= 2.0**31 - 1
