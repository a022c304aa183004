"""Every stock layer of Linen and of NNX, called as its users call it: what the matrix and its tests go through.

A layer is a function of one example and the shape of that example. Layers see a batch of one, as in Flax code.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import __version__ as flax_version
from flax import linen, nnx

__all__ = ["LINEN", "NNX", "flax_version"]

SEQUENCE = (3, 4)  # steps, features
IMAGE = (6, 6, 2)
MASK = np.tril(np.ones((3, 3), bool))
TOKENS = np.array([[0, 2, 1]])


def of_linen(module, shape, **call):
    """A Linen module's function of one example, in inference."""
    variables = module.init(jax.random.key(0), jnp.linspace(-1, 1, int(np.prod(shape))).reshape(1, *shape), **call)
    return (lambda x: module.apply(variables, x[None], **call)[0]), shape


def of_nnx(make, shape, through=lambda call: call, **options):
    """An NNX module's function of one example, in inference; split, as for any transform of JAX."""
    module = make(nnx.Rngs(0))
    module.eval()
    graph, state = nnx.split(module)
    call = through(lambda module, x: module(x, **options))
    return (lambda x: call(nnx.merge(graph, state, copy=True), x[None])[0]), shape


def of_cell(module, shape):
    """One step of a Linen cell from its initial carry."""
    carry = module.initialize_carry(jax.random.key(1), (1, *shape))
    variables = module.init(jax.random.key(0), carry, jnp.zeros((1, *shape)))

    def fn(x):
        new_carry, y = module.apply(variables, carry, x[None])
        return new_carry, y

    return fn, shape


def of_nnx_cell(make, shape):
    """One step of an NNX cell from its initial carry."""
    graph, state = nnx.split(make(nnx.Rngs(0)))

    def fn(x):
        module = nnx.merge(graph, state, copy=True)
        return module(module.initialize_carry((1, *shape), nnx.Rngs(1)), x[None])

    return fn, shape


def embedded(embed, tokens):
    """Constant tokens are looked up, then the embeddings are perturbed."""
    return (lambda x: embed(tokens)[0] + x), (3, 4)


class Scanned(linen.Module):
    """Layers of one kind by `linen.remat_scan`."""

    @linen.compact
    def __call__(self, x):
        """Applies four layers."""
        return linen.remat_scan(linen.Dense, lengths=(2, 2))(4)(x)


class Gated(linen.Module):
    """`linen.compact` code that branches by its configuration and calls a scan over a cell."""

    @linen.compact
    def __call__(self, x):
        """Runs a scan of GRU cells, written by hand."""
        cell = linen.scan(
            linen.GRUCell, variable_broadcast="params", split_rngs={"params": False}, in_axes=1, out_axes=1
        )(4)
        _, y = cell(cell.initialize_carry(jax.random.key(0), x[:, 0].shape), x)
        return y


def _linen():
    norms, conv = {"use_running_average": True}, dict(features=3, kernel_size=(3, 3))
    yield "Dense", lambda: of_linen(linen.Dense(5), (4,))
    yield "DenseGeneral", lambda: of_linen(linen.DenseGeneral((2, 3), axis=(-2, -1)), (2, 4))
    yield "Einsum", lambda: of_linen(linen.Einsum((4, 5), "...a,ab->...b"), (4,))
    yield "Embed", lambda: embedded(linen.Embed(5, 4).bind({"params": {"embedding": jnp.ones((5, 4))}}), TOKENS)
    for padding in ("SAME", "VALID", "CIRCULAR", "REFLECT"):
        yield f"Conv {padding}", lambda p=padding: of_linen(linen.Conv(**conv, padding=p), IMAGE)
    yield "Conv CAUSAL", lambda: of_linen(linen.Conv(3, (3,), padding="CAUSAL"), (6, 2))
    yield "Conv strided", lambda: of_linen(linen.Conv(**conv, strides=2), IMAGE)
    yield "Conv dilated", lambda: of_linen(linen.Conv(**conv, kernel_dilation=2), IMAGE)
    yield "Conv depthwise", lambda: of_linen(linen.Conv(4, (3, 3), feature_group_count=2), IMAGE)
    for padding in ("SAME", "VALID", "CIRCULAR"):
        yield (
            f"ConvTranspose {padding}",
            lambda p=padding: of_linen(linen.ConvTranspose(**conv, strides=(2, 2), padding=p), IMAGE),
        )
    yield "ConvLocal", lambda: of_linen(linen.ConvLocal(**conv), (4, 4, 2))
    yield "BatchNorm", lambda: of_linen(linen.BatchNorm(**norms), (4,))
    yield "LayerNorm", lambda: of_linen(linen.LayerNorm(), (4,))
    yield "RMSNorm", lambda: of_linen(linen.RMSNorm(), (4,))
    yield "GroupNorm", lambda: of_linen(linen.GroupNorm(num_groups=2), (3, 3, 4))
    yield "InstanceNorm", lambda: of_linen(linen.InstanceNorm(), (3, 3, 2))
    yield "WeightNorm", lambda: of_linen(linen.WeightNorm(linen.Dense(3)), (4,))
    yield "SpectralNorm", lambda: of_linen(linen.SpectralNorm(linen.Dense(3)), (4,), update_stats=False)
    yield "Dropout", lambda: of_linen(linen.Dropout(0.5, deterministic=True), (4,))
    yield "PReLU", lambda: of_linen(linen.PReLU(), (4,))
    yield "MultiHeadDotProductAttention", lambda: of_linen(linen.MultiHeadDotProductAttention(2), SEQUENCE)
    yield "MultiHeadAttention", lambda: of_linen(linen.MultiHeadAttention(2), SEQUENCE)
    yield "SelfAttention masked", lambda: of_linen(linen.SelfAttention(2), SEQUENCE, mask=MASK)
    for name in ("LSTMCell", "OptimizedLSTMCell", "GRUCell", "SimpleCell", "MGUCell"):
        yield name, lambda n=name: of_cell(getattr(linen, n)(3), (4,))
        yield f"RNN {name}", lambda n=name: of_linen(linen.RNN(getattr(linen, n)(3)), SEQUENCE)
    yield "ConvLSTMCell", lambda: of_cell(linen.ConvLSTMCell(2, (3, 3)), (4, 4, 2))
    yield (
        "Bidirectional",
        lambda: of_linen(linen.Bidirectional(linen.RNN(linen.LSTMCell(2)), linen.RNN(linen.LSTMCell(2))), SEQUENCE),
    )
    yield "Sequential", lambda: of_linen(linen.Sequential([linen.Dense(3), linen.relu, linen.Dense(2)]), (4,))
    yield "remat", lambda: of_linen(linen.remat(linen.Dense)(3), (4,))
    yield "remat_scan", lambda: of_linen(Scanned(), (4,))
    yield "scan", lambda: of_linen(Gated(), SEQUENCE)
    yield from ((name, lambda f=fn, s=shape: (f, s)) for name, (fn, shape) in _functions(linen).items())
    yield "activation normalize", lambda: (linen.normalize, (4,))


def _nnx():
    conv = dict(in_features=2, out_features=3, kernel_size=(3, 3))
    yield "Linear", lambda: of_nnx(lambda r: nnx.Linear(4, 5, rngs=r), (4,))
    yield "LinearGeneral", lambda: of_nnx(lambda r: nnx.LinearGeneral((2, 4), (2, 3), axis=(-2, -1), rngs=r), (2, 4))
    yield "Einsum", lambda: of_nnx(lambda r: nnx.Einsum("...a,ab->...b", (4, 5), rngs=r), (4,))
    yield "Embed", lambda: embedded(nnx.Embed(5, 4, rngs=nnx.Rngs(0)), TOKENS)
    yield "LoRA", lambda: of_nnx(lambda r: nnx.LoRA(4, 2, 3, b_initializer=nnx.initializers.ones, rngs=r), (4,))
    yield "LoRALinear", lambda: of_nnx(lambda r: nnx.LoRALinear(4, 3, lora_rank=2, rngs=r), (4,))
    for padding in ("SAME", "VALID", "CIRCULAR", "REFLECT"):
        yield f"Conv {padding}", lambda p=padding: of_nnx(lambda r: nnx.Conv(**conv, padding=p, rngs=r), IMAGE)
    yield "Conv CAUSAL", lambda: of_nnx(lambda r: nnx.Conv(2, 3, (3,), padding="CAUSAL", rngs=r), (6, 2))
    yield "Conv strided", lambda: of_nnx(lambda r: nnx.Conv(**conv, strides=2, rngs=r), IMAGE)
    yield "Conv dilated", lambda: of_nnx(lambda r: nnx.Conv(**conv, kernel_dilation=2, rngs=r), IMAGE)
    yield "Conv depthwise", lambda: of_nnx(lambda r: nnx.Conv(2, 4, (3, 3), feature_group_count=2, rngs=r), IMAGE)
    for padding in ("SAME", "VALID", "CIRCULAR"):
        yield (
            f"ConvTranspose {padding}",
            lambda p=padding: of_nnx(lambda r: nnx.ConvTranspose(**conv, strides=(2, 2), padding=p, rngs=r), IMAGE),
        )
    yield "BatchNorm", lambda: of_nnx(lambda r: nnx.BatchNorm(4, rngs=r), (4,))
    yield "LayerNorm", lambda: of_nnx(lambda r: nnx.LayerNorm(4, rngs=r), (4,))
    yield "RMSNorm", lambda: of_nnx(lambda r: nnx.RMSNorm(4, rngs=r), (4,))
    yield "GroupNorm", lambda: of_nnx(lambda r: nnx.GroupNorm(4, num_groups=2, rngs=r), (3, 3, 4))
    yield "InstanceNorm", lambda: of_nnx(lambda r: nnx.InstanceNorm(2, rngs=r), (3, 3, 2))
    yield "WeightNorm", lambda: of_nnx(lambda r: nnx.WeightNorm(nnx.Linear(4, 3, rngs=r), rngs=r), (4,))
    yield "SpectralNorm", lambda: of_nnx(lambda r: nnx.SpectralNorm(nnx.Linear(4, 3, rngs=r), rngs=r), (4,))
    yield "Dropout", lambda: of_nnx(lambda r: nnx.Dropout(0.5, rngs=r), (4,))
    yield "PReLU", lambda: of_nnx(lambda r: nnx.PReLU(), (4,))
    yield (
        "MultiHeadAttention",
        lambda: of_nnx(lambda r: nnx.MultiHeadAttention(2, in_features=4, decode=False, rngs=r), SEQUENCE),
    )
    for name in ("LSTMCell", "OptimizedLSTMCell", "GRUCell", "SimpleCell"):
        yield name, lambda n=name: of_nnx_cell(lambda r: getattr(nnx, n)(4, 3, rngs=r), (4,))
        yield f"RNN {name}", lambda n=name: of_nnx(lambda r: nnx.RNN(getattr(nnx, n)(4, 3, rngs=r), rngs=r), SEQUENCE)
    yield (
        "Bidirectional",
        lambda: of_nnx(
            lambda r: nnx.Bidirectional(
                nnx.RNN(nnx.LSTMCell(4, 2, rngs=r), rngs=r), nnx.RNN(nnx.LSTMCell(4, 2, rngs=r), rngs=r), rngs=r
            ),
            SEQUENCE,
        ),
    )
    yield (
        "Sequential",
        lambda: of_nnx(lambda r: nnx.Sequential(nnx.Linear(4, 3, rngs=r), nnx.relu, nnx.Linear(3, 2, rngs=r)), (4,)),
    )
    yield "remat", lambda: of_nnx(lambda r: nnx.Linear(4, 3, rngs=r), (4,), through=nnx.remat)
    yield from ((name, lambda f=fn, s=shape: (f, s)) for name, (fn, shape) in _functions(nnx).items())


ACTIVATIONS = (
    "celu elu gelu glu hard_sigmoid hard_silu hard_swish hard_tanh leaky_relu log_sigmoid log_softmax logsumexp relu "
    "relu6 selu sigmoid silu soft_sign softmax softplus standardize swish tanh"
).split()


def _functions(library):
    """Activations, pools and attention, which are functions."""
    table = {f"activation {name}": (getattr(library, name), (4,)) for name in ACTIVATIONS if hasattr(library, name)}

    def attend(x):
        heads = x.reshape(1, 3, 2, 2)
        return library.dot_product_attention(heads, heads[:, ::-1], heads)[0]

    pools = {
        "avg_pool": lambda x: library.avg_pool(x[None], (2, 2), (2, 2))[0],
        "avg_pool SAME": lambda x: library.avg_pool(x[None], (3, 3), (2, 2), "SAME", count_include_pad=False)[0],
        "max_pool": lambda x: library.max_pool(x[None], (2, 2), (2, 2))[0],
        "max_pool SAME": lambda x: library.max_pool(x[None], (3, 3), (1, 1), "SAME")[0],
        "min_pool": lambda x: -library.max_pool(-x[None], (2, 2), (2, 2))[0],
    }
    table |= {name: (fn, IMAGE) for name, fn in pools.items()}
    return table | {"dot_product_attention": (attend, (3, 4))}


LINEN, NNX = dict(_linen()), dict(_nnx())
