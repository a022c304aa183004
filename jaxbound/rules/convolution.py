"""Convolutions in the forms that XLA's CPU compiler runs fast in both directions. Accelerators need no such help.

Three things are slow there. The transpose of a convolution with stride s spends all but 1/s^d of its work on zeros: cut
into blocks of s, the input becomes an image of more channels and the convolution one of stride 1. The transpose towards
an image of few channels makes matrix-vector products: one matrix product and a few shifted additions do the same. And
the transpose that JAX derives has its operands' axes permuted, which inside a loop runs up to 30 times slower than the
equal convolution with the axes in order.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxbound.sets import Array

# (x [N, *spatial, C], kernel [*window, C, O], dilation=, **precision) -> [N, *spatial, O]; stride 1, no padding.
Valid = Callable[..., Array]


def convolve(x: Array, kernel: Array, **params: Any) -> Array:
    """`jax.lax.conv_general_dilated` by its primitive's parameters, differentiable in every way."""
    strides, channels = params["window_strides"], x.shape[params["dimension_numbers"].lhs_spec[1]]
    if not _is_ordinary(params) or math.prod(strides) == 1:
        return _plain(x, kernel, params)
    if channels == 1:  # here the blocks are faster forwards too
        return _in_blocks(x, kernel, _valid, params)

    @jax.custom_jvp
    def strided(x: Array, kernel: Array) -> Array:
        return _plain(x, kernel, params)

    @strided.defjvp
    def derivative(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
        blocks = jax.jvp(lambda x, kernel: _in_blocks(x, kernel, _valid, params), primals, tangents)
        return strided(*primals), blocks[1]

    return strided(x, kernel)


def convolve_to_transpose(x: Array, kernel: Array, **params: Any) -> Array:
    """The same, to be transposed once with respect to x and not differentiated otherwise."""
    return _in_blocks(x, kernel, _valid_to_transpose, params) if _is_ordinary(params) else _plain(x, kernel, params)


def _plain(x: Array, kernel: Array, params: dict[str, Any]) -> Array:
    names = ("window_strides", "padding", "lhs_dilation", "rhs_dilation", "dimension_numbers", "feature_group_count",
             "batch_group_count", "precision", "preferred_element_type")  # fmt: skip
    return jax.lax.conv_general_dilated(x, kernel, **{name: params[name] for name in names})


def _is_ordinary(params: dict[str, Any]) -> bool:
    groups = params["feature_group_count"] * params["batch_group_count"]
    pairs = zip(params["window_strides"], params["rhs_dilation"], strict=True)
    ordinary = groups == 1 and all(d == 1 for d in params["lhs_dilation"]) and all(1 in pair for pair in pairs)
    return ordinary and jax.default_backend() == "cpu"


class _Phases(NamedTuple):
    """The positions first, ..., last - 1 within a block of one axis, each read by as many `entries` of the window."""

    first: int
    last: int
    entries: int


def _phases(window: int, stride: int) -> list[_Phases]:
    whole, rest = divmod(window, stride)
    groups = [_Phases(0, rest, whole + 1), _Phases(rest, stride, whole)]
    return [group for group in groups if group.first < group.last and group.entries > 0]


def _in_blocks(x: Array, kernel: Array, valid: Valid, params: dict[str, Any]) -> Array:
    """Brings the axes in order, pads, cuts into blocks of the stride, convolves, and restores the axes."""
    numbers, strides, dilation = params["dimension_numbers"], params["window_strides"], params["rhs_dilation"]
    lhs, rhs, out = numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec
    x = jnp.transpose(x, (lhs[0], *lhs[2:], lhs[1]))
    kernel = jnp.transpose(kernel, (*rhs[2:], rhs[1], rhs[0]))
    windows, edges, missing, counts = kernel.shape[:-2], [], [], []
    for size, window, stride, spread, (low, high) in zip(
        x.shape[1:-1], windows, strides, dilation, params["padding"], strict=True
    ):
        counts.append((low + size + high - (window - 1) * spread - 1) // stride + 1)
        blocks = counts[-1] + (-(-window // stride) - 1) * spread
        edges.append((low, blocks * stride - low - size, 0))
        missing.append((0, -window % stride, 0))
    x = _cut(jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *edges, (0, 0, 0)]), strides, 1)
    kernel = _cut(jax.lax.pad(kernel, jnp.zeros((), kernel.dtype), [*missing, (0, 0, 0), (0, 0, 0)]), strides, 0)
    options = {"dilation": dilation, "precision": params["precision"]}
    options["preferred_element_type"] = params["preferred_element_type"]
    total: Any = 0
    for phases in itertools.product(*map(_phases, windows, strides)):
        reach = [n + (p.entries - 1) * d for n, p, d in zip(counts, phases, dilation, strict=True)]
        entries = [p.entries for p in phases]
        total += valid(_taken(x, reach, phases, 1), _taken(kernel, entries, phases, 0), **options)
    order = (out[0], *out[2:], out[1])  # where each axis of the result belongs
    return jnp.transpose(total, [order.index(axis) for axis in range(len(order))])


def _cut(x: Array, strides: Sequence[int], first: int) -> Array:
    """Splits spatial axes (from `first` on) into blocks: [..., *blocks, *within, channels, ...]."""
    last, count = first + len(strides), len(strides)
    shape = itertools.chain.from_iterable((n // s, s) for n, s in zip(x.shape[first:last], strides, strict=True))
    x = x.reshape(*x.shape[:first], *shape, *x.shape[last:])
    outer, inner = range(first, first + 2 * count, 2), range(first + 1, first + 2 * count, 2)
    return jnp.transpose(x, (*range(first), *outer, *inner, *range(first + 2 * count, x.ndim)))


def _taken(x: Array, sizes: Sequence[int], phases: Sequence[_Phases], first: int) -> Array:
    """Some blocks' phases as channels: [..., *sizes, phases and channels, ...]."""
    within = first + len(sizes)
    channels = within + len(sizes)
    lower, upper = [0] * x.ndim, list(x.shape)
    upper[first:within] = sizes
    lower[within:channels] = [p.first for p in phases]
    upper[within:channels] = [p.last for p in phases]
    x = jax.lax.slice(x, lower, upper)
    return x.reshape(*x.shape[:within], math.prod(x.shape[within : channels + 1]), *x.shape[channels + 1 :])


def _valid(x: Array, kernel: Array, *, dilation: Sequence[int], padding: Any = None, **options: Any) -> Array:
    letters = "DHW"[-len(dilation) :]
    layout = (f"N{letters}C", f"{letters}IO", f"N{letters}C")
    ones, padding = (1,) * len(dilation), padding or [(0, 0)] * len(dilation)
    return jax.lax.conv_general_dilated(
        x, kernel, ones, padding, rhs_dilation=dilation, dimension_numbers=layout, **options
    )


def _valid_to_transpose(x: Array, kernel: Array, *, dilation: Sequence[int], **options: Any) -> Array:
    @jax.custom_vjp
    def function(x: Array, kernel: Array) -> Array:
        return _valid(x, kernel, dilation=dilation, **options)

    def backward(kernel: Array, ct: Array) -> tuple[Array, None]:
        *window, channels, features = kernel.shape
        flipped = jnp.swapaxes(jnp.flip(kernel, range(len(window))), -1, -2)
        reach = [(n - 1) * d for n, d in zip(window, dilation, strict=True)]
        if math.prod(window) * channels <= 2 * features:
            return _by_products(ct, flipped, reach, dilation=dilation, **options), None
        return _valid(ct, flipped, dilation=dilation, padding=[(n, n) for n in reach], **options), None

    function.defvjp(lambda x, kernel: (function(x, kernel), kernel), backward)
    return function(x, kernel)


def _by_products(x: Array, kernel: Array, reach: Sequence[int], *, dilation: Sequence[int], **options: Any) -> Array:
    """The convolution padded by the window's reach: one product with all of the kernel, then its entries shifted."""
    products = jnp.tensordot(x, kernel, (-1, -2), **options)  # [N, *spatial, *window, O]
    total: Any = 0
    for entry in itertools.product(*map(range, kernel.shape[:-2])):
        shifts = [(n - k * d, k * d, 0) for n, k, d in zip(reach, entry, dilation, strict=True)]
        part = products[(slice(None),) * (x.ndim - 1) + entry]
        total += jax.lax.pad(part, jnp.zeros((), part.dtype), [(0, 0, 0), *shifts, (0, 0, 0)])
    return total
