import jax
import jax.numpy as jnp
import pytest
from jax import lax

from tests import soundness

W = soundness.weights(4, 4)


def image(x):
    return jnp.stack([jnp.sin(x), W @ x, x - 1, -x]).reshape(1, 4, 4, 1)


def pool(x, init, reduce, window=2, stride=1, padding="VALID"):
    return lax.reduce_window(image(x), init, reduce, (1, window, window, 1), (1, stride, stride, 1), padding)


CASES = {
    "max": lambda x: jnp.max(W @ x),
    "min": lambda x: jnp.min(W @ x),
    "max_axis": lambda x: jnp.max(jnp.tanh(x).reshape(2, 2), axis=0),
    "sum_mean": lambda x: jnp.sum(jnp.tanh(x)) + jnp.mean(x),
    "cumsum": lambda x: jnp.cumsum(jnp.tanh(x)),
    "cummax": lambda x: lax.cummax(W @ x),
    "cummin": lambda x: lax.cummin(W @ x, reverse=True),
    "max_pool": lambda x: pool(x, -jnp.inf, lax.max, stride=2),
    "max_pool_same": lambda x: pool(x, -jnp.inf, lax.max, window=3, padding="SAME"),
    "min_pool": lambda x: pool(x, jnp.inf, lax.min),
    "product": lambda x: jnp.prod(jnp.tanh(x)) + jnp.prod(jnp.sin(x).reshape(2, 2), axis=0),
    "cumprod": lambda x: lax.cumprod(jnp.tanh(x), reverse=True),
    "cumlogsumexp": lambda x: lax.cumlogsumexp(x),
    "max_pool_gradient": jax.grad(lambda x: jnp.sum(jnp.sin(pool(x, -jnp.inf, lax.max, stride=1)))),
    "min_pool_gradient": jax.grad(lambda x: jnp.sum(pool(x, jnp.inf, lax.min, stride=2, padding="SAME"))),
    "max_pool_tangent": lambda x: jax.jvp(lambda y: pool(y, -jnp.inf, lax.max), (x,), (jnp.cos(x),))[1],
    "average_pool": lambda x: pool(jnp.tanh(x), 0.0, lax.add, stride=2) / 4,
}


@pytest.mark.parametrize("name", CASES)
def test_sound(name, double):
    soundness.check(CASES[name], *soundness.boxes(4)[:3])


@pytest.mark.parametrize("name", ["max", "max_pool_same"])
def test_sound_in_single_precision(name):
    soundness.check(CASES[name], *soundness.boxes(4)[:3])
