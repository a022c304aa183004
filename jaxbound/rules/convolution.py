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

# (x [N, *spatial, C], kernel [*window, C, O], padding=, dilation=, **precision) -> [N, *spatial, O]; stride 1.
Convolution = Callable[..., Array]


def convolve(x: Array, kernel: Array, **params: Any) -> Array:
    """`jax.lax.conv_general_dilated` by its primitive's parameters, differentiable in every way."""
    strides, channels = params["window_strides"], x.shape[params["dimension_numbers"].lhs_spec[1]]
    if not _is_ordinary(params) or math.prod(strides) == 1:
        return _plain(x, kernel, params)
    if channels == 1:  # here the blocks are faster forwards too
        return _in_blocks(x, kernel, _convolution, params)

    @jax.custom_jvp
    def strided(x: Array, kernel: Array) -> Array:
        return _plain(x, kernel, params)

    @strided.defjvp
    def derivative(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
        by_x = _in_blocks(tangents[0], primals[1], _convolution, params)
        return strided(*primals), by_x + _plain(primals[0], tangents[1], params)

    return strided(x, kernel)


def convolve_to_transpose(x: Array, kernel: Array, **params: Any) -> Array:
    """The same, to be transposed once with respect to x and not differentiated otherwise."""
    return _in_blocks(x, kernel, _to_transpose, params) if _is_ordinary(params) else _plain(x, kernel, params)


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
    """Positions within the blocks of one axis that the window's entries first, first + stride, ... read.

    Attributes:
      count: how many positions; the later ones are read by the entries after.
      first: the entry that reads the first of them.
      entries: how many entries read each.
      before: how many blocks of zeros lie before the image.
    """

    count: int
    first: int
    entries: int
    before: int


class _Axis(NamedTuple):
    """How one axis is cut: zeros before the image so that one group of phases may do, number of blocks, phases."""

    zeros: int
    blocks: int
    groups: list[_Phases]


def _cut_axis(size: int, window: int, stride: int, low: int) -> _Axis:
    """Position `i` of the image and output `o` meet at entry i + low - o * stride of the window."""
    zeros = low % stride if window % stride == 0 else 0
    places = [divmod(phase + low - zeros, stride) for phase in range(stride)]
    kinds = [(before, len(range(first, window, stride))) for before, first in places]
    groups = []
    for (before, entries), members in itertools.groupby(range(stride), lambda phase: kinds[phase]):
        phases = list(members)
        groups.append(_Phases(len(phases), places[phases[0]][1], entries, before))
    return _Axis(zeros, -(-(zeros + size) // stride), groups)


def _in_blocks(x: Array, kernel: Array, convolution: Convolution, params: dict[str, Any]) -> Array:
    """Brings the axes in order, cuts them into blocks of the stride, convolves, and restores the axes."""
    numbers, strides, dilation = params["dimension_numbers"], params["window_strides"], params["rhs_dilation"]
    lhs, rhs, out = numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec
    x = jnp.transpose(x, (lhs[0], *lhs[2:], lhs[1]))
    kernel = jnp.transpose(kernel, (*rhs[2:], rhs[1], rhs[0]))
    sizes, windows = x.shape[1:-1], kernel.shape[:-2]
    axes, counts = [], []
    for size, window, stride, spread, (low, high) in zip(
        sizes, windows, strides, dilation, params["padding"], strict=True
    ):
        axes.append(_cut_axis(size, window, stride, low))
        counts.append((low + size + high - (window - 1) * spread - 1) // stride + 1)
    edges = [(a.zeros, a.blocks * s - a.zeros - n, 0) for a, s, n in zip(axes, strides, sizes, strict=True)]
    x = _split(jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *edges, (0, 0, 0)]), strides, 1)
    missing = [(0, -w % s, 0) for w, s in zip(windows, strides, strict=True)]
    kernel = _split(jax.lax.pad(kernel, jnp.zeros((), kernel.dtype), [*missing, (0, 0, 0), (0, 0, 0)]), strides, 0)
    options = {name: params[name] for name in ("precision", "preferred_element_type")}
    total: Any = 0
    for image, phases in _parts(x, axes):
        if all(p.entries for p in phases):
            padding = []
            for k, (p, n, d) in enumerate(zip(phases, counts, dilation, strict=True)):
                last = n + (p.entries - 1) * d - p.before  # blocks that are read
                image = jax.lax.slice_in_dim(image, 0, min(last, image.shape[k + 1]), axis=k + 1)
                padding.append((p.before, last - image.shape[k + 1]))
            total += convolution(image, _entries(kernel, phases), padding=padding, dilation=dilation, **options)
    order = (out[0], *out[2:], out[1])  # where each axis of the result belongs
    return jnp.transpose(total, [order.index(axis) for axis in range(len(order))])


def _split(x: Array, strides: Sequence[int], first: int) -> Array:
    """Splits spatial axes (from `first` on) into blocks: [..., *blocks, *within, channels, ...]."""
    last, count = first + len(strides), len(strides)
    shape = itertools.chain.from_iterable((n // s, s) for n, s in zip(x.shape[first:last], strides, strict=True))
    x = x.reshape(*x.shape[:first], *shape, *x.shape[last:])
    outer, inner = range(first, first + 2 * count, 2), range(first + 1, first + 2 * count, 2)
    return jnp.transpose(x, (*range(first), *outer, *inner, *range(first + 2 * count, x.ndim)))


def _parts(x: Array, axes: Sequence[_Axis]) -> list[tuple[Array, tuple[_Phases, ...]]]:
    """All combinations of one group of phases for each axis, the phases as channels: [N, *blocks, channels]."""
    parts: list[tuple[Array, tuple[_Phases, ...]]] = [(x, ())]
    for k, axis in enumerate(axes):
        sizes = [group.count for group in axis.groups]
        parts = [
            (piece, (*phases, group))
            for part, phases in parts
            for piece, group in zip(jax.lax.split(part, sizes, 1 + len(axes) + k), axis.groups, strict=True)
        ]
    return [(part.reshape(*part.shape[: 1 + len(axes)], -1), phases) for part, phases in parts]


def _entries(kernel: Array, phases: Sequence[_Phases]) -> Array:
    """The kernel [*entries, *within, C, O] of some phases: [*entries, channels, O]."""
    entries = tuple(slice(p.entries) for p in phases)
    kernel = kernel[(*entries, *(slice(p.first, p.first + p.count) for p in phases))]
    return kernel.reshape(*kernel.shape[: len(phases)], -1, kernel.shape[-1])


def _convolution(
    x: Array, kernel: Array, *, padding: Sequence[tuple[int, int]], dilation: Sequence[int], **options: Any
) -> Array:
    letters = "DHW"[-len(dilation) :]
    layout = (f"N{letters}C", f"{letters}IO", f"N{letters}C")
    ones = (1,) * len(dilation)
    return jax.lax.conv_general_dilated(
        x, kernel, ones, padding, rhs_dilation=dilation, dimension_numbers=layout, **options
    )


def _to_transpose(
    x: Array, kernel: Array, *, padding: Sequence[tuple[int, int]], dilation: Sequence[int], **options: Any
) -> Array:
    @jax.custom_vjp
    def function(x: Array, kernel: Array) -> Array:
        return _convolution(x, kernel, padding=padding, dilation=dilation, **options)

    def backward(kernel: Array, ct: Array) -> tuple[Array, None]:
        *window, channels, features = kernel.shape
        flipped = jnp.swapaxes(jnp.flip(kernel, range(len(window))), -1, -2)
        reach = [(n - 1) * d for n, d in zip(window, dilation, strict=True)]
        back = [(n - low, n - high) for n, (low, high) in zip(reach, padding, strict=True)]
        few = math.prod(window) * channels <= 2 * features
        return (_by_products if few else _convolution)(ct, flipped, padding=back, dilation=dilation, **options), None

    function.defvjp(lambda x, kernel: (function(x, kernel), kernel), backward)
    return function(x, kernel)


def _by_products(
    x: Array, kernel: Array, *, padding: Sequence[tuple[int, int]], dilation: Sequence[int], **options: Any
) -> Array:
    """The same convolution as one product with all of the kernel, whose entries are then shifted and added."""
    products = jnp.tensordot(x, kernel, (-1, -2), **options)  # [N, *spatial, *window, O]
    window, total = kernel.shape[:-2], None
    for entry in itertools.product(*map(range, window)):
        shifts = [
            (low - k * d, high - (w - 1 - k) * d, 0)
            for (low, high), k, w, d in zip(padding, entry, window, dilation, strict=True)
        ]
        part = products[(slice(None),) * (x.ndim - 1) + entry]
        part = jax.lax.pad(part, jnp.zeros((), part.dtype), [(0, 0, 0), *shifts, (0, 0, 0)])
        total = part if total is None else total + part
    return total
