"""The networks of the literature as Flax modules, which map one example or any number of leading batch axes."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.common import convolution

Apply = Callable[[Any, Any], Any]  # params, images [..., H, W, C] -> logits [..., K]


def torch_uniform(fan_in: int) -> nn.initializers.Initializer:
    """The initial weights and biases that PyTorch gives by default: uniform in +-1/sqrt(fan_in).

    The published nets were trained from it. It is a third as large as Flax's default at the same fan-in, and random
    biases are part of it; bounds that start narrow are what certified training needs.
    """
    bound = 1 / math.sqrt(fan_in)

    def init(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32, **_: Any) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class ConvNet(nn.Module):
    """Convolutions, then dense layers, with ReLU after every layer but the last.

    Attributes:
      convs: (channels, kernel size, stride, padding) of each convolution; padding in pixels.
      dense: widths of the hidden dense layers.
      num_classes: K.
    """

    convs: tuple[tuple[int, int, int, int], ...] = ()
    dense: tuple[int, ...] = ()
    num_classes: int = 10

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps images [..., H, W, C] with pixels in [0, 1] to logits [..., K]."""
        for features, size, stride, padding in self.convs:
            init = torch_uniform(size * size * x.shape[-1])
            x = nn.Conv(
                features,
                (size, size),
                strides=stride,
                padding=padding,
                kernel_init=init,
                bias_init=init,
                conv_general_dilated=convolution.for_backend(),
            )(x)
            x = nn.relu(x)
        x = x.reshape(*x.shape[:-3], -1)
        for width in self.dense:
            x = nn.relu(_dense(x, width))
        return _dense(x, self.num_classes)


def _dense(x: jax.Array, width: int) -> jax.Array:
    init = torch_uniform(x.shape[-1])
    return nn.Dense(width, kernel_init=init, bias_init=init)(x)


_DM_LARGE = ((64, 3, 1, 1), (64, 3, 1, 1), (128, 3, 2, 1), (128, 3, 1, 1), (128, 3, 1, 1))

# The names that the literature uses: DM-* from Gowal et al. 2018 (arXiv:1810.12715), kw from Wong and Kolter 2018.
MODELS: dict[str, nn.Module] = {
    "dm_small": ConvNet(convs=((16, 4, 2, 0), (32, 4, 1, 0)), dense=(100,)),
    "dm_medium": ConvNet(convs=((32, 3, 1, 0), (32, 4, 2, 0), (64, 3, 1, 0), (64, 4, 2, 0)), dense=(512, 512)),
    "dm_large": ConvNet(convs=_DM_LARGE, dense=(512,)),
    "kw": ConvNet(convs=((16, 4, 2, 1), (32, 4, 2, 1)), dense=(100,)),
    "mlp": ConvNet(dense=(256, 256, 256)),
}


def create(name: str, *, shape: tuple[int, ...], num_classes: int, seed: int) -> tuple[Apply, Any]:
    """Returns a network as a pure function, and its initial parameters.

    Args:
      name: a key of `MODELS`.
      shape: (H, W, C) of one image.
      num_classes: K.
      seed: of the initial parameters.
    """
    model = MODELS[name].clone(num_classes=num_classes)

    def apply(params: Any, x: Any) -> Any:
        return model.apply({"params": params}, x)

    return apply, model.init(jax.random.key(seed), jnp.zeros(shape))["params"]
