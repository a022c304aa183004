"""The networks that the benchmarks time, as short layer lists.

Both the plain forward pass here and the hand-written bounds of `benchmarks.reference` interpret the same lists, so
they cannot disagree about what a network is. Images are NHWC, kernels HWIO.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Conv:
    """A square convolution with a bias; `padding` zeros on every side."""

    name: str
    features: int
    kernel: int
    stride: int = 1
    padding: int = 0

    @property
    def strides(self):
        """The stride of each spatial axis."""
        return (self.stride, self.stride)

    @property
    def pads(self):
        """The zeros before and after each spatial axis."""
        return ((self.padding, self.padding), (self.padding, self.padding))


@dataclasses.dataclass(frozen=True)
class Dense:
    """A matrix product with a bias; flattens its input."""

    name: str
    features: int


@dataclasses.dataclass(frozen=True)
class Relu:
    """max(x, 0); the name labels its bounds."""

    name: str


@dataclasses.dataclass(frozen=True)
class Residual:
    """x + body(x)."""

    body: tuple


@dataclasses.dataclass(frozen=True)
class Network:
    """A layer list and the shape of one input; the last layer is a `Dense` one of a flat input."""

    name: str
    input_shape: tuple
    layers: tuple


def hidden_and_relu(layers):
    """Put a ReLU after every given layer."""
    return tuple(item for layer in layers for item in (layer, Relu(f"{layer.name}_relu")))


KW = Network(
    "kw",
    (28, 28, 1),
    hidden_and_relu((Conv("conv1", 16, 4, 2, 1), Conv("conv2", 32, 4, 2, 1), Dense("dense1", 100)))
    + (Dense("out", 10),),
)
DM_SMALL = Network(
    "dm_small",
    (28, 28, 1),
    hidden_and_relu((Conv("conv1", 16, 4, 2), Conv("conv2", 32, 4), Dense("dense1", 100))) + (Dense("out", 10),),
)
MLP = Network(
    "mlp",
    (784,),
    hidden_and_relu((Dense("dense1", 256), Dense("dense2", 256), Dense("dense3", 256))) + (Dense("out", 10),),
)
RESIDUAL_CNN = Network(
    "residual_cnn",
    (28, 28, 1),
    (
        *hidden_and_relu((Conv("stem", 16, 3, 1, 1),)),
        Residual((*hidden_and_relu((Conv("block1", 16, 3, 1, 1),)), Conv("block2", 16, 3, 1, 1))),
        Relu("block_relu"),
        *hidden_and_relu((Conv("down", 32, 3, 2, 1), Dense("dense1", 100))),
        Dense("out", 10),
    ),
)
NETWORKS = {network.name: network for network in (KW, DM_SMALL, MLP, RESIDUAL_CNN)}


def convolve(x, kernel, layer):
    """Convolve a batch of images with one layer's kernel, without its bias."""
    return jax.lax.conv_general_dilated(
        x, kernel, layer.strides, layer.pads, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def forward(layers, params, x):
    """The plain forward pass of a batch: [B, *input_shape] -> [B, K]."""
    for layer in layers:
        match layer:
            case Conv():
                x = convolve(x, params[layer.name]["kernel"], layer) + params[layer.name]["bias"]
            case Dense():
                x = x.reshape(x.shape[0], -1) @ params[layer.name]["kernel"] + params[layer.name]["bias"]
            case Relu():
                x = jax.nn.relu(x)
            case Residual():
                x = x + forward(layer.body, params, x)
    return x


def apply(network, params, x):
    """The logits [K] of ONE example: the function that jaxbound is given."""
    return forward(network.layers, params, x[None])[0]


def output_shape(layer, shape):
    """The shape of one example after a layer, from its shape before."""
    match layer:
        case Conv():
            return (*((n + 2 * layer.padding - layer.kernel) // layer.stride + 1 for n in shape[:2]), layer.features)
        case Dense():
            return (layer.features,)
        case _:
            return shape


def input_shapes(layers, shape):
    """The shape of one example before each layer of the list."""
    shapes = []
    for layer in layers:
        shapes.append(shape)
        shape = output_shape(layer, shape)
    return shapes


def init(network, key, dtype=jnp.float32):
    """Random parameters: He-normal kernels and small random biases, as {layer: {"kernel": ..., "bias": ...}}."""
    return _init_layers(network.layers, network.input_shape, key=key, dtype=dtype)


def _init_layers(layers, shape, *, key, dtype):
    params = {}
    for layer, before in zip(layers, input_shapes(layers, shape), strict=True):
        key, kernel_key, bias_key = jax.random.split(key, 3)
        match layer:
            case Conv():
                kernel_shape = (layer.kernel, layer.kernel, before[-1], layer.features)
            case Dense():
                kernel_shape = (math.prod(before), layer.features)
            case Residual():
                params |= _init_layers(layer.body, before, key=kernel_key, dtype=dtype)
                continue
            case _:
                continue
        scale = math.sqrt(2 / math.prod(kernel_shape[:-1]))
        params[layer.name] = {
            "kernel": scale * jax.random.normal(kernel_key, kernel_shape, dtype),
            "bias": 0.1 * jax.random.normal(bias_key, (layer.features,), dtype),
        }
    return params
