"""The architectures of the literature as Flax modules, which map one example or any number of leading batch axes.

Nothing here knows the activation, the initial weights or whether batches are normalised: a `Style` does. An affine
layer, its batch norm and its activation follow each other in this order.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from jax import lax

from experiments.common import convolution

Init = nn.initializers.Initializer


@dataclasses.dataclass(frozen=True)
class Style:
    """What all layers of a network have in common.

    Args:
      activation: axes of one neuron's index (3 behind a convolution, 1 behind a dense layer) -> a new activation.
      kernel: fan-in -> the initial weights of every layer but the last.
      residual_kernel: the same for a layer that is fed by the sum of two branches.
      last_kernel: the same for the last layer.
      bias: fan-in -> the initial biases.
      norms: whether every affine layer but the last is followed by a batch norm.
    """

    activation: Callable[[int], Callable[[jax.Array], jax.Array]]
    kernel: Callable[[int], Init]
    residual_kernel: Callable[[int], Init]
    last_kernel: Callable[[int], Init]
    bias: Callable[[int], Init]
    norms: bool = False


class Conv(NamedTuple):
    """A square convolution.

    Args:
      features: output channels.
      size: of the kernel.
      stride: the same along both axes.
      padding: pixels of zeros on every side.
      groups: how many parts the channels are split into.
    """

    features: int
    size: int
    stride: int = 1
    padding: int = 0
    groups: int = 1


def _conv(x: jax.Array, spec: Conv, style: Style, *, kernel: Callable[[int], Init]) -> jax.Array:
    fan_in = spec.size**2 * x.shape[-1] // spec.groups
    return nn.Conv(
        spec.features,
        (spec.size, spec.size),
        strides=spec.stride,
        padding=spec.padding,
        feature_group_count=spec.groups,
        kernel_init=kernel(fan_in),
        bias_init=style.bias(fan_in),
        conv_general_dilated=convolution.for_backend() if spec.groups == 1 else lax.conv_general_dilated,
    )(x)


def _dense(x: jax.Array, width: int, style: Style, *, kernel: Callable[[int], Init]) -> jax.Array:
    return nn.Dense(width, kernel_init=kernel(x.shape[-1]), bias_init=style.bias(x.shape[-1]))(x)


def _norm(x: jax.Array, style: Style, *, train: bool) -> jax.Array:
    return nn.BatchNorm(use_running_average=not train, epsilon=1e-5)(x) if style.norms else x


def _flatten(x: jax.Array) -> jax.Array:
    if not x.size:
        raise ValueError(f"the images are too small for this network: {x.shape[-3:]} is left of them for dense layers")
    return x.reshape(*x.shape[:-3], -1)


class Net(nn.Module):
    """What the architectures share: a body of convolutions, then dense layers.

    Attributes:
      style: the layers' common part.
      dense: widths of the hidden dense layers.
      num_classes: K.
    """

    style: Style | None = None
    dense: tuple[int, ...] = ()
    num_classes: int = 10

    def head(self, x: jax.Array, *, train: bool, kernel: Callable[[int], Init]) -> jax.Array:
        """The dense layers of features [..., H, W, C], the first one with weights from `kernel`."""
        x = _flatten(x)
        for width in self.dense:
            x = _norm(_dense(x, width, self.style, kernel=kernel), self.style, train=train)
            x, kernel = self.style.activation(1)(x), self.style.kernel
        return _dense(x, self.num_classes, self.style, kernel=self.style.last_kernel)


class ConvNet(Net):
    """Convolutions, then dense layers, with an activation after every layer but the last.

    Attributes:
      convs: the convolutions.
    """

    convs: tuple[Conv, ...] = ()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps images [..., H, W, C] to logits [..., K]; in training mode the statistics are the batch's."""
        for spec in self.convs:
            x = _norm(_conv(x, spec, self.style, kernel=self.style.kernel), self.style, train=train)
            x = self.style.activation(3)(x)
        return self.head(x, train=train, kernel=self.style.kernel)


class ResNet(Net):
    """A convolution, residual blocks and dense layers, without pooling.

    A block adds its input to what its convolutions make of it, with an activation between them and after the sum. Where
    the shape changes, the input goes through a convolution of size 1 first.

    Attributes:
      stem: the first convolution.
      blocks: the convolutions of each block.
    """

    stem: Conv = Conv(16, 3, 1, 1)
    blocks: tuple[tuple[Conv, ...], ...] = ()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps images [..., H, W, C] to logits [..., K]; in training mode the statistics are the batch's."""
        style = self.style
        x = _norm(_conv(x, self.stem, style, kernel=style.kernel), style, train=train)
        x, kernel = style.activation(3)(x), style.kernel
        for block in self.blocks:
            x = style.activation(3)(_residual(x, block, style, train=train, kernel=kernel))
            kernel = style.residual_kernel
        return self.head(x, train=train, kernel=kernel)


def _residual(
    x: jax.Array, block: Sequence[Conv], style: Style, *, train: bool, kernel: Callable[[int], Init]
) -> jax.Array:
    """The sum at the end of a block; `kernel` gives the weights of the layers that its input feeds."""
    first, *others = block
    out = _norm(_conv(x, first, style, kernel=kernel), style, train=train)
    for spec in others:
        out = _norm(_conv(style.activation(3)(out), spec, style, kernel=style.kernel), style, train=train)
    if x.shape == out.shape:
        return x + out
    shortcut = Conv(out.shape[-1], 1, functools.reduce(lambda n, spec: n * spec.stride, block, 1))
    return _norm(_conv(x, shortcut, style, kernel=kernel), style, train=train) + out


def basic_block(features: int, stride: int) -> tuple[Conv, ...]:
    """Two convolutions of size 3 (Wide-ResNet)."""
    return Conv(features, 3, stride, 1), Conv(features, 3, 1, 1)


def grouped_block(features: int, stride: int, *, groups: int, expansion: int = 2) -> tuple[Conv, ...]:
    """A bottleneck whose convolution of size 3 is in groups (ResNeXt)."""
    return Conv(features, 1), Conv(features, 3, stride, 1, groups), Conv(expansion * features, 1)


def with_last_stride(convs: Sequence[Conv], stride: int) -> tuple[Any, ...]:
    """The same convolutions with another stride of the last one."""
    return *convs[:-1], convs[-1]._replace(stride=stride)
