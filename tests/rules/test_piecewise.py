import jax
import jax.numpy as jnp
import pytest
from jax import lax

import jaxbound
from jaxbound import relax
from tests import soundness

W = soundness.weights(4, 4)
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
    "max_with_infinity": lambda x: jnp.maximum(x, -jnp.inf),
}


@pytest.mark.parametrize("name", CASES)
def test_sound(name, double):
    soundness.check(CASES[name], *soundness.boxes(4))


@pytest.mark.parametrize("name", ["relu", "clamp", "abs"])
def test_sound_in_single_precision(name):
    soundness.check(CASES[name], *soundness.boxes(4))


@pytest.mark.parametrize("strategy", [relax.adaptive, relax.tight, relax.one, relax.same_slope, relax.constant])
def test_every_strategy_is_sound(strategy, double):
    def method(fn):
        return jaxbound.crown_ibp(fn, relu=strategy)

    def fn(x):
        return W @ jax.nn.leaky_relu(W @ jax.nn.relu(x) + 0.1, 0.2)

    soundness.check(fn, *soundness.boxes(4), methods={"crown_ibp": method}, nested=False)
