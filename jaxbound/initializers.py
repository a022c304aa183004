"""Initial weights under which interval bounds neither explode nor vanish with depth.

An initializer is a function `(key, shape, dtype) -> array`, the same thing that a JAX or Flax initializer is.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp


def ibp(gain: float = 1.0) -> Callable[..., jax.Array]:
    """Normal weights with which a ReLU layer keeps, on average, the radius of the interval that it gets.

    With n inputs the weights are N(0, sigma^2), sigma = sqrt(2 pi) / n * gain. Then the mean of |W| is 2 gain / n, so
    an affine layer multiplies a mean radius by 2 gain; a ReLU passes what is above zero, which is half of intervals
    that are as often on either side: together `gain`. The usual initial weights, with sigma in the order of
    1 / sqrt(n), make it grow as sqrt(n) in each layer.

    Give it to every convolution and dense layer but the last one (biases stay as they are), with gain 0.5 where the
    input is a sum of two branches of a residual network, each of which has the full radius.

    Args:
      gain: what a layer and its ReLU multiply the radius by.

    Returns:
      `(key, shape, dtype=float32) -> weights`, for shapes with the output features last, as Flax has them: n is the
      product of all other axes.

    Raises:
      ValueError: when called, for a shape of fewer than two axes.

    Example:
      >>> weights = jaxbound.initializers.ibp()(jax.random.key(0), (1000, 500))
      >>> round(float(abs(weights).sum(axis=0).mean()), 1)
      2.0

    References:
      Shi et al. 2021, arXiv:2103.17268.
    """

    def init(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32, **_: Any) -> jax.Array:
        if len(shape) < 2:
            raise ValueError(f"ibp initialises weights, of two axes or more, not the shape {tuple(shape)}")
        return gain * math.sqrt(2 * math.pi) / math.prod(shape[:-1]) * jax.random.normal(key, shape, dtype)

    return init
