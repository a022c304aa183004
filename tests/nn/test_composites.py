"""Flax's normalisation and attention layers, unchanged: recognised, and bounded."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxbound.methods.problem import prepare
from jaxbound.program import walk
from tests import soundness


def linen(module, shape):
    variables = module.init(jax.random.key(0), jnp.zeros(shape))
    # Scales and biases other than one and zero.
    variables = jax.tree.map(lambda v: v + 0.1 * soundness.weights(*v.shape), variables)
    return lambda x: module.apply(variables, x)


def of_nnx(make, shape, **options):
    del shape
    return make(**options, rngs=nnx.Rngs(0))


TOKENS, PIXELS = (3, 4), (1, 2, 2, 4)
CASES = {
    "linen_layer": (linen, nn.LayerNorm(), TOKENS, "layer_norm"),
    "linen_layer_of_a_vector": (linen, nn.LayerNorm(), (4,), "layer_norm"),
    "linen_layer_two_passes": (linen, nn.LayerNorm(use_fast_variance=False, use_bias=False), TOKENS, "layer_norm"),
    "linen_layer_unscaled": (linen, nn.LayerNorm(use_scale=False, use_bias=False), TOKENS, "layer_norm"),
    "linen_rms": (linen, nn.RMSNorm(), TOKENS, "rms_norm"),
    "linen_group": (linen, nn.GroupNorm(num_groups=2), PIXELS, "layer_norm"),
    "linen_instance": (linen, nn.InstanceNorm(), PIXELS, "layer_norm"),
    "nnx_layer": (of_nnx, functools.partial(nnx.LayerNorm, 4), TOKENS, "layer_norm"),
    "nnx_layer_two_passes": (
        of_nnx,
        functools.partial(nnx.LayerNorm, 4, use_fast_variance=False),
        TOKENS,
        "layer_norm",
    ),
    "nnx_rms": (of_nnx, functools.partial(nnx.RMSNorm, 4), TOKENS, "rms_norm"),
    "nnx_group": (of_nnx, functools.partial(nnx.GroupNorm, 4, num_groups=2), PIXELS, "layer_norm"),
    "nnx_instance": (of_nnx, functools.partial(nnx.InstanceNorm, 4), PIXELS, "layer_norm"),
}


@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("name", CASES)
def test_normalisation_is_one_equation(name, axis):
    build, module, shape, expected = CASES[name]
    fn = build(module, shape)
    if axis is not None:
        fn, shape = jax.vmap(fn, in_axes=axis), (*shape[:axis], 2, *shape[axis:])
    x = soundness.weights(*shape)
    program = prepare(fn, (soundness.box(x, 0.1),), {}).program
    found = [e.name for e in program.equations]
    assert found.count(expected) == 1 and not {"rsqrt", "max", "square"} & set(found)
    values = walk(program, [x], lambda equation, operands, mask: equation.apply(*operands))
    np.testing.assert_allclose(values[program.outputs[0]], fn(x), rtol=1e-4, atol=1e-5)


class Block(nn.Module):
    """Of a vision transformer."""

    @nn.compact
    def __call__(self, x):
        h = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=2)(h, h)
        return x + nn.Dense(4)(nn.gelu(nn.Dense(4)(nn.LayerNorm()(x))))


class NnxBlock(nnx.Module):
    """The same."""

    def __init__(self, rngs):
        self.norms = nnx.List([nnx.LayerNorm(4, rngs=rngs) for _ in range(2)])
        self.attention = nnx.MultiHeadAttention(2, 4, decode=False, rngs=rngs)
        self.dense = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(2)])

    def __call__(self, x):
        x = x + self.attention(self.norms[0](x))
        return x + self.dense[1](nnx.gelu(self.dense[0](self.norms[1](x))))


BLOCKS = {"linen": lambda: linen(Block(), (3, 4)), "nnx": lambda: NnxBlock(nnx.Rngs(0))}


@pytest.mark.parametrize("name", BLOCKS)
def test_parts_of_a_transformer_block_are_recognised(name):
    box = soundness.box(soundness.weights(3, 4), 0.1)
    found = [e.name for e in prepare(BLOCKS[name](), (box,), {}).program.equations]
    parts = ("layer_norm", "softmax", "gelu_tanh", "exp", "rsqrt", "tanh")
    assert [part for part in found if part in parts] == ["layer_norm", "softmax", "layer_norm", "gelu_tanh"]


VARIANT = pytest.mark.slow(reason="the same parts as in Linen's, which the other test compares")


@pytest.mark.parametrize("name", ["linen", pytest.param("nnx", marks=VARIANT)])
def test_transformer_block(name):
    x = soundness.weights(3, 4)
    methods = {name: soundness.METHODS[name] for name in ("ibp", "crown_ibp")}
    boxes = [soundness.box(x, radius) for radius in (0.01, 3.0)]
    soundness.check(BLOCKS[name](), *boxes, methods=methods, nested=False)
