"""Networks in their usual Flax code, bounded with no change to it."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxbound
from benchmarks.compile import ResNet
from tests import soundness


class UNet(nn.Module):
    """Down by strides, up by transposed convolutions and by resizing, with what was seen on the way down."""

    @nn.compact
    def __call__(self, x):
        """Maps a batch of images to images."""
        fine = nn.relu(nn.Conv(3, (3, 3))(x))
        coarse = nn.relu(nn.Conv(4, (3, 3), strides=(2, 2))(fine))
        coarser = nn.relu(nn.Conv(4, (3, 3), strides=(2, 2), kernel_dilation=1)(coarse))
        up = nn.ConvTranspose(4, (2, 2), strides=(2, 2))(coarser)
        y = nn.relu(nn.Conv(4, (3, 3), feature_group_count=2)(jnp.concatenate([coarse, up], axis=-1)))
        y = jax.image.resize(y, (*fine.shape[:3], y.shape[-1]), "bilinear")
        nearest = jax.image.resize(coarse, (*fine.shape[:3], coarse.shape[-1]), "nearest")
        return nn.Conv(1, (1, 1))(jnp.concatenate([fine, y, nearest], axis=-1))


class LstmClassifier(nn.Module):
    """A sequence, read by an LSTM; the last step is classified."""

    @nn.compact
    def __call__(self, x):
        """Maps a batch of sequences to logits."""
        return nn.Dense(3)(nn.RNN(nn.OptimizedLSTMCell(4))(x)[:, -1])


class MixerBlock(nn.Module):
    """Mixes tokens, then channels."""

    @nn.compact
    def __call__(self, x):
        """Maps a batch of tokens."""
        y = jnp.swapaxes(nn.LayerNorm()(x), 1, 2)
        y = nn.Dense(y.shape[-1])(nn.relu(nn.Dense(6)(y)))
        x = x + jnp.swapaxes(y, 1, 2)
        return x + nn.Dense(x.shape[-1])(nn.relu(nn.Dense(6)(nn.LayerNorm()(x))))


class Mixer(nn.Module):
    """Patches, blocks, the mean of all tokens."""

    @nn.compact
    def __call__(self, x):
        """Maps a batch of images to logits."""
        x = nn.Conv(4, (2, 2), strides=(2, 2))(x)
        x = MixerBlock()(x.reshape(x.shape[0], -1, x.shape[-1]))
        return nn.Dense(3)(jnp.mean(x, axis=1))


class ViTBlock(nn.Module):
    """Attention between tokens, then a network for each."""

    @nn.compact
    def __call__(self, x):
        """Maps a batch of tokens."""
        x = x + nn.MultiHeadDotProductAttention(num_heads=2)(nn.LayerNorm()(x))
        return x + nn.Dense(x.shape[-1])(nn.gelu(nn.Dense(6)(nn.LayerNorm()(x))))


class NnxRecurrent(nnx.Module):
    """The same reading of a sequence in NNX, in both directions."""

    def __init__(self, rngs):
        forward, backward = (nnx.RNN(nnx.GRUCell(3, 2, rngs=rngs), rngs=rngs) for _ in range(2))
        self.read, self.head = nnx.Bidirectional(forward, backward, rngs=rngs), nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        """Maps a batch of sequences to logits."""
        return self.head(self.read(x)[:, -1])


# A model, the shape of one example and a radius at which interval bounds are still finite.
ARCHITECTURES = {
    "resnet": (ResNet((1, 1), width=2, classes=3), (8, 8, 3), 0.02),
    "unet": (UNet(), (8, 8, 1), 0.02),
    "lstm": (LstmClassifier(), (3, 3), 0.02),
    "mixer": (Mixer(), (4, 4, 2), 0.02),
    "vit": (ViTBlock(), (3, 4), 0.002),
}
LONG = pytest.mark.slow(reason="takes long to compile")
CROWN_IBP = {"crown_ibp": functools.partial(jaxbound.crown_ibp, relu=jaxbound.relax.tight)}
CROWN = {"crown": functools.partial(jaxbound.crown, chunk=64)}


def function_and_box(model, shape, radius):
    """A Linen model's function of one example, with perturbed parameters, and a small box."""
    rng = np.random.default_rng(0)
    variables = model.init(jax.random.key(0), jnp.zeros((1, *shape)))
    box = soundness.box(rng.uniform(-1, 1, shape), radius)
    return (lambda x: model.apply(variables, x[None])[0]), box


def check(name, methods):
    fn, box = function_and_box(*ARCHITECTURES[name])
    soundness.Subject(fn, methods, gradient=None).check((box,), 50)


@pytest.mark.parametrize("name", ["resnet", "unet", "lstm", *(pytest.param(k, marks=LONG) for k in ("mixer", "vit"))])
def test_sound(name):
    check(name, CROWN_IBP)


@pytest.mark.slow(reason="every intermediate bound by a backward pass of its own")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_crown_is_sound(name):
    check(name, CROWN)


def test_nnx_recurrent():
    graph, state = nnx.split(NnxRecurrent(nnx.Rngs(0)))  # as for any transform of JAX
    box = soundness.box(np.random.default_rng(0).uniform(-1, 1, (3, 3)), 0.02)
    soundness.Subject(lambda x: nnx.merge(graph, state, copy=True)(x[None])[0], CROWN_IBP, gradient=None).check(
        (box,), 50
    )


@pytest.mark.slow(reason="compiles a network of full depth")
def test_resnet_18_of_full_width():
    fn, box = function_and_box(ResNet((2, 2, 2, 2)), (32, 32, 3), 1e-4)
    lower, upper = jax.jit(jaxbound.crown_ibp(fn))(box)
    values = jax.vmap(lambda u: fn(soundness.point(box, u)))(soundness.as_float(soundness.units(box, 20)[-20:]))
    assert (lower <= values + 1e-4).all() and (values <= upper + 1e-4).all()
