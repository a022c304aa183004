"""The networks of the literature by name, as pure functions with initial variables."""

import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

import jaxbound.nn
from experiments.common import nets
from experiments.common.nets import Conv


class Network(NamedTuple):
    """A network as pure functions of its variables.

    Attributes:
      apply: (variables, images [..., H, W, C] with pixels in [0, 1]) -> logits [..., K], with the batch statistics that
        are in the variables. One example needs no batch axis.
      train: (variables, images [B, H, W, C]) -> (logits, batch_stats), normalised by the batch's own statistics; {}
        without batch norm.
      variables: the initial ones, {"params": ...} and, with batch norm, {"batch_stats": ...}.
      num_classes: K.
      scale: what pixels are divided by inside, one number for each channel or one for all.
    """

    apply: Callable[[Any, Any], Any]
    train: Callable[[Any, Any], tuple[Any, Any]]
    variables: dict[str, Any]
    num_classes: int
    scale: Any = 1.0


LEAKY_SLOPE = 0.01  # below zero, of the leaky activations


# The initial weights.


def torch_uniform(fan_in: int) -> nn.initializers.Initializer:
    """The initial weights and biases that PyTorch gives by default: uniform in +-1/sqrt(fan_in).

    The published nets were trained from it. It is a third as large as Flax's default at the same fan-in, and random
    biases are part of it; bounds that start narrow are what certified training needs.
    """
    bound = 1 / math.sqrt(fan_in)

    def init(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32, **_: Any) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def _ibp(fan_in: int, gain: float = 1.0) -> nn.initializers.Initializer:
    del fan_in  # it reads the shape
    return jaxbound.initializers.ibp(gain)


def _orthogonal(fan_in: int) -> nn.initializers.Initializer:
    del fan_in
    return nn.initializers.orthogonal()


# name -> (weights, weights behind a sum of two branches, weights of the last layer), each a function of the fan-in.
INITS: dict[str, tuple[Callable[[int], nn.initializers.Initializer], ...]] = {
    "torch": (torch_uniform, torch_uniform, torch_uniform),
    "ibp": (_ibp, functools.partial(_ibp, gain=0.5), torch_uniform),
    "orthogonal": (_orthogonal, _orthogonal, torch_uniform),
}


# The activations: the number of axes of a neuron's index -> a function, or a module that the calling one then owns.


def _leaky_relu(x: jax.Array) -> jax.Array:
    return nn.leaky_relu(x, LEAKY_SLOPE)


def _ramp(neuron_ndim: int, slope: float = 0.0) -> nn.Module:
    return jaxbound.nn.ParamRamp(neuron_ndim=neuron_ndim, slope=slope)


ACTIVATIONS: dict[str, Callable[[int], Callable[[jax.Array], jax.Array]]] = {
    "relu": lambda neuron_ndim: nn.relu,
    "leaky": lambda neuron_ndim: _leaky_relu,
    "ramp": _ramp,
    "leaky_ramp": functools.partial(_ramp, slope=LEAKY_SLOPE),
}
RAMPS = frozenset({"ramp", "leaky_ramp"})


# The architectures.

_DM_SMALL = (Conv(16, 4, 2), Conv(32, 4))
_DM_MEDIUM = (Conv(32, 3), Conv(32, 4, 2), Conv(64, 3), Conv(64, 4, 2))
_CNN7 = (Conv(64, 3, 1, 1), Conv(64, 3, 1, 1), Conv(128, 3, 2, 1), Conv(128, 3, 1, 1), Conv(128, 3, 1, 1))
_WIDE_RESNET8 = tuple(nets.basic_block(features, stride) for features, stride in ((128, 1), (256, 2), (512, 2)))
_RESNEXT = tuple(nets.grouped_block(f, stride, groups=2) for f, stride in ((64, 1), (128, 2), (256, 2)))

# DM-* are from Gowal et al. 2018 (arXiv:1810.12715), kw from Wong and Kolter 2018 (arXiv:1711.00851), the residual ones
# and the batch norms of cnn7_bn from Shi et al. 2021 (arXiv:2103.17268), where cnn7 is another name of DM-large.
MODELS: dict[str, nets.Net] = {
    "dm_small": nets.ConvNet(convs=_DM_SMALL, dense=(100,)),
    "dm_medium": nets.ConvNet(convs=_DM_MEDIUM, dense=(512, 512)),
    "dm_large": nets.ConvNet(convs=_CNN7, dense=(512,)),
    "kw": nets.ConvNet(convs=(Conv(16, 4, 2, 1), Conv(32, 4, 2, 1)), dense=(100,)),
    "mlp": nets.ConvNet(dense=(256, 256, 256)),
    "cnn7": nets.ConvNet(convs=_CNN7, dense=(512,)),
    "cnn7_bn": nets.ConvNet(convs=_CNN7, dense=(512,)),
    "cnn_small_bn": nets.ConvNet(convs=_DM_SMALL, dense=(100,)),
    "wide_resnet8": nets.ResNet(blocks=_WIDE_RESNET8, dense=(512,)),
    "resnext": nets.ResNet(stem=Conv(64, 3, 1, 1), blocks=_RESNEXT, dense=(512,)),
}
WITH_BATCH_NORM = frozenset({"wide_resnet8", "resnext"})  # and all whose name ends with _bn
WITH_STRIDE_ON_LARGE_IMAGES = frozenset({"cnn7", "cnn7_bn"})
LARGE = 56  # TinyImageNet's images are 64 pixels wide, cropped ones 56

# The families of Zhang et al. 2020 (arXiv:1906.06316): convolutions of 4w and 8w channels, dense layers of width l, and
# batch norm where the name ends with _bn.
_FAMILIES = re.compile(
    r"((?P<layers>[24])layer_w(?P<width>\d+)_l(?P<dense>\d+)"
    r"|(?P<three>3)layer_k(?P<kernel>[35])_w(?P<width3>\d+)(_l(?P<dense3>\d+))?)(_bn)?"
)

# The sets that its figures are averages over. In `mnist_medium` the published list names the first network twice.
MODEL_SETS: dict[str, tuple[str, ...]] = {
    "mnist_small": (
        *("2layer_w1_l128", "2layer_w2_l256"),
        *("4layer_w1_l256", "4layer_w2_l256", "4layer_w1_l512", "4layer_w2_l512"),
        *("3layer_k3_w1", "3layer_k3_w2", "3layer_k5_w1", "3layer_k5_w2"),
    ),
    "mnist_medium": (
        *("4layer_w4_l512", "4layer_w8_l512", "4layer_w16_l512"),
        *("3layer_k5_w16_l512", "3layer_k5_w8_l512", "3layer_k5_w4_l512", "3layer_k3_w8_l512"),
    ),
    "cifar_small": (
        *("2layer_w2_l256", "4layer_w1_l256", "4layer_w2_l256", "4layer_w1_l512", "4layer_w2_l512"),
        *("3layer_k3_w8", "3layer_k3_w2", "3layer_k5_w1", "3layer_k5_w2"),
    ),
    "cifar_medium": (
        *("2layer_w8_l128", "2layer_w16_l256"),
        *("4layer_w8_l256", "4layer_w16_l256", "4layer_w8_l512", "4layer_w16_l512"),
        *("3layer_k3_w8_l256", "3layer_k3_w16_l512"),
    ),
}
NAMES = (*MODELS, *dict.fromkeys(name for names in MODEL_SETS.values() for name in names))


def is_model(name: str) -> bool:
    """Tells whether `create` knows a name: a key of `MODELS`, or of a family, as `4layer_w2_l256` or `3layer_k5_w1`."""
    return name in MODELS or _FAMILIES.fullmatch(name) is not None


def architecture(name: str, shape: tuple[int, ...]) -> nets.Net:
    """The module of a name for images of a shape (H, W, C), without a style.

    Raises:
      ValueError: an unknown name.
    """
    if name in MODELS:
        net = MODELS[name]
        if name in WITH_STRIDE_ON_LARGE_IMAGES and shape[0] >= LARGE:
            return net.clone(convs=nets.with_last_stride(net.convs, 2))
        return net
    if not (match := _FAMILIES.fullmatch(name)):
        raise ValueError(
            f"there is no model {name!r}: choose one of {', '.join(MODELS)}, or of a family, as {NAMES[-1]}"
        )
    if match["three"]:
        kernel, width = int(match["kernel"]), int(match["width3"])
        convs = (Conv(4 * width, kernel, 1, 1), Conv(8 * width, kernel, 1, 1), Conv(8 * width, 4, 4))
        return nets.ConvNet(convs=convs, dense=(int(match["dense3"] or 64 * width),))
    width, dense = int(match["width"]), int(match["dense"])
    if match["layers"] == "2":
        return nets.ConvNet(convs=(Conv(4 * width, 4, 2, 1), Conv(8 * width, 4, 2, 1)), dense=(dense,))
    convs = tuple(conv for w in (4 * width, 8 * width) for conv in (Conv(w, 3, 1, 1), Conv(w, 4, 2, 1)))
    return nets.ConvNet(convs=convs, dense=(dense, dense))


def create(
    name: str,
    *,
    shape: tuple[int, ...],
    num_classes: int,
    seed: int,
    activation: str = "relu",
    init: str = "torch",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Network:
    """Returns a network of the literature.

    Args:
      name: one that `is_model` accepts.
      shape: (H, W, C) of one image.
      num_classes: K.
      seed: of the initial parameters.
      activation: a key of `ACTIVATIONS`.
      init: a key of `INITS`.
      mean: subtracted from the pixels inside the network, one number per channel or one for all; None for 0.
      std: what they are then divided by; None for 1.

    Returns:
      The network; its input, and so the set around it, is in units of pixels whatever `mean` and `std` are.
    """
    kernel, residual_kernel, last_kernel = INITS[init]
    style = nets.Style(
        activation=ACTIVATIONS[activation],
        kernel=kernel,
        residual_kernel=residual_kernel,
        last_kernel=last_kernel,
        bias=torch_uniform,
        norms=name in WITH_BATCH_NORM or name.endswith("_bn"),
    )
    model = architecture(name, shape).clone(num_classes=num_classes, style=style)

    def apply(variables: Any, x: Any, **options: Any) -> Any:
        return model.apply(variables, _normalised(x, mean, std), **options)

    train = jaxbound.nn.batch_statistics(functools.partial(apply, train=True))
    variables = jax.jit(model.init)(jax.random.key(seed), jnp.zeros(shape))
    scale = 1.0 if std is None else jnp.asarray(std)
    return Network(lambda variables, x: apply(variables, x), train, variables, num_classes, scale)


def _normalised(x: Any, mean: Sequence[float] | None, std: Sequence[float] | None) -> Any:
    if mean is not None:
        x = x - jnp.asarray(mean, x.dtype)
    return x if std is None else x / jnp.asarray(std, x.dtype)
