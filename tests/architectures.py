"""Small random networks as programs whose steps are layers.

Every layer takes an array of any shape, so that leaving one out of a network leaves a network: shrinking needs no more.
Weights are fixed by the shapes and by the number `k` behind a layer's name.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

import jaxbound
from tests.programs import Program, Step
from tests.soundness import weights

nn = jax.nn


def constant(x, *shape, k, fan_in=1):
    """Fixed random numbers of the precision of x."""
    return jnp.asarray(weights(*shape, seed=k) / math.sqrt(fan_in), x.dtype)


def linear(x, features, k):
    return constant(x, features, x.size, k=k, fan_in=x.size) @ x.ravel() + constant(x, features, k=k) / 4


def image(x):
    """[H, W, C]; what is no image becomes one row of pixels."""
    return x if x.ndim == 3 else x.reshape(1, -1, 1)


def tokens(x):
    """[T, D]; what has another rank becomes tokens of two features (of one, where their number is odd)."""
    return x if x.ndim == 2 else x.reshape(-1, 2 if x.size % 2 == 0 else 1)


def conv(x, k, features=3, strides=1, groups=1, padding="SAME"):
    x = image(x)
    inside = x.shape[-1] // groups
    kernel = constant(x, 3, 3, inside, features, k=k, fan_in=9 * inside)
    return lax.conv_general_dilated(
        x[None],
        kernel,
        (strides, strides),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )[0]


def pool(x, init, reduce):
    return lax.reduce_window(image(x), init, reduce, (2, 2, 1), (2, 2, 1), "SAME")


def batch_norm(x, k):
    """As at evaluation: the running statistics are constants."""
    mean, scale, offset = (constant(x, x.shape[-1], k=k + n) / 2 for n in range(3))
    return (x - mean) * lax.rsqrt(scale * scale + 0.1) * (1 + offset) + offset


def residual(x, k):
    x = image(x)
    return x + conv(nn.relu(batch_norm(conv(x, k, x.shape[-1]), k)), k + 1, x.shape[-1])


def attention(x, k):
    x = tokens(x)
    queries, keys, values = (x @ constant(x, x.shape[-1], 2, k=k + n, fan_in=x.shape[-1]) for n in range(3))
    return nn.softmax(queries @ keys.T / math.sqrt(2)) @ values


def recurrent(x, k):
    x = tokens(x)
    carry, inside = constant(x, 3, 3, k=k, fan_in=3), constant(x, x.shape[-1], 3, k=k, fan_in=x.shape[-1])

    def step(hidden, token):
        hidden = jnp.tanh(hidden @ carry + token @ inside)
        return hidden, nn.relu(hidden)

    last, outputs = lax.scan(step, jnp.zeros(3, x.dtype), x)
    return last + outputs[0]


def gated(x, k):
    """A product of two sets, as in gated recurrent units."""
    gate = nn.sigmoid(linear(x, x.size, k)).reshape(x.shape)
    return gate * x + (1 - gate) * jnp.tanh(linear(x, x.size, k + 1)).reshape(x.shape)


def layer_norm(x, k):
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    return centred * lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + 0.1 * (k + 1))


LAYERS = {
    "dense": lambda x, k: linear(x, 4 + k, k),
    "head": lambda x, k: linear(x, 3, k),
    "conv": lambda x, k: conv(x, k, 2 + k),
    "conv_stride": lambda x, k: conv(x, k, 3, strides=2, padding=[(k, 1), (1, k)]),
    "depthwise": lambda x, k: conv(x, k, 2 * image(x).shape[-1], groups=image(x).shape[-1]),
    "max_pool": lambda x, k: pool(x, -jnp.inf, lax.max),
    "average_pool": lambda x, k: pool(x, 0.0, lax.add) / 4,
    "global_pool": lambda x, k: jnp.mean(image(x), axis=(0, 1)),
    "batch_norm": batch_norm,
    "layer_norm": layer_norm,
    "residual": residual,
    "attention": attention,
    "recurrent": recurrent,
    "gated": gated,
    "quotient": lambda x, k: x / (1.5 + nn.softplus(linear(x, x.size, k))).reshape(x.shape),
    "relu": lambda x, k: nn.relu(x),
    "leaky_relu": lambda x, k: nn.leaky_relu(x, 0.1 * k),
    "ramp": lambda x, k: jaxbound.ramp(x, jnp.asarray(0.3 + 0.2 * k, x.dtype), 0.05 * k),
    "hard_tanh": lambda x, k: nn.hard_tanh(x),
    "tanh": lambda x, k: jnp.tanh(x),
    "sigmoid": lambda x, k: nn.sigmoid(x),
    "softplus": lambda x, k: nn.softplus(x),
    "silu": lambda x, k: nn.silu(x),
    "gelu": lambda x, k: nn.gelu(x, approximate=k == 0),
}
ACTIVATIONS = ("relu",) * 4 + ("leaky_relu", "ramp", "hard_tanh", "tanh", "sigmoid", "softplus", "silu", "gelu")

# Layers of two arrays, which may both be sets.
JOINTS = {
    "join": lambda x, y: jnp.concatenate([x.ravel(), y.ravel()]),
    "modulate": lambda x, y: x.ravel() * jnp.tanh(linear(y, x.size, 0)),
    "perturbed_weights": lambda x, y: x.ravel()[: x.size // 4 * 4].reshape(-1, 4) @ linear(y, 4, 1),
    "ratio": lambda x, y: x.ravel() / (1 + jnp.abs(linear(y, x.size, 2))),
    "distance": lambda x, y: jnp.square(linear(x, 3, 0) - linear(y, 3, 1)),
    "attend": lambda x, y: nn.softmax(tokens(x) @ linear(y, tokens(x).shape[-1], 0)) @ tokens(x),
}


# What tells a layer's name from that of a step of `tests.programs`.
PREFIX = "net."


def step(name, operands):
    """A layer by its name, such as "net.dense:2"."""
    kind = name.removeprefix(PREFIX)
    if kind in JOINTS:
        return Step(name, JOINTS[kind], operands)
    kind, k = kind.split(":")
    return Step(name, functools.partial(LAYERS[kind], k=int(k)), operands)


# family -> shapes of the inputs, then for each place of the chain what may stand there ("" is nothing).
MLP = (("dense",), ACTIVATIONS)
CNN = (("conv", "conv_stride", "depthwise"), ("", "batch_norm"), ACTIVATIONS, ("", "max_pool", "average_pool"))
FAMILIES = {
    "mlp": (((4,),), (*MLP, *MLP, ("", "gated", "layer_norm"))),
    "deep_mlp": (((3,),), (*MLP, *MLP, *MLP, *MLP)),
    "cnn": (((4, 4, 2),), (*CNN, ("", "residual", "conv"), ACTIVATIONS, ("", "global_pool"))),
    "attention": (((3, 2),), (("", "layer_norm"), ("attention",), ("", *ACTIVATIONS), ("", "attention", "dense"))),
    "recurrent": (((3, 2),), (("recurrent",), ("", *ACTIVATIONS))),
    "gated": (((4,),), (("dense",), ("gated", "quotient"), ACTIVATIONS, ("", "quotient"))),
    "joint": (((4,), (3,)), (MLP[0], ACTIVATIONS, JOINTS, MLP[0], ACTIVATIONS)),
}


def generate(choose):
    """A random network of a random family; `choose` as for `programs.generate`."""
    shapes, places = FAMILIES[sorted(FAMILIES)[choose(len(FAMILIES))]]
    steps, newest = [], 0
    for place in (*places, ("head",)):
        name = list(place)[choose(len(place))]
        if name in JOINTS:
            steps.append(step(PREFIX + name, (newest, 1)))
        elif name:
            steps.append(step(f"{PREFIX}{name}:{choose(3)}", (newest,)))
        newest = len(shapes) - 1 + len(steps) if steps else 0
    return Program(tuple(steps), shapes, outputs=1)
