"""Strided convolutions in the form that XLA transposes well on CPU.

The transpose of a convolution with stride s spends all but 1/s^d of its work on zeros there. Cut into blocks of s, the
input becomes an image of s^d times as many channels and the convolution one of stride 1, whose derivatives of every
kind are ordinary convolutions. Accelerators need no such help.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxbound.sets import Array


def convolve(x: Array, kernel: Array, **params: Any) -> Array:
    """`jax.lax.conv_general_dilated` by its primitive's parameters, blocked where that is faster."""
    names = ("window_strides", "padding", "lhs_dilation", "rhs_dilation", "dimension_numbers", "feature_group_count",
             "batch_group_count", "precision", "preferred_element_type")  # fmt: skip
    options = {name: params[name] for name in names}
    return _blocked(x, kernel, **options) if _profits(kernel, **options) else _plain(x, kernel, **options)


def _plain(x: Array, kernel: Array, **options: Any) -> Array:
    return jax.lax.conv_general_dilated(x, kernel, **options)


def _profits(kernel: Array, *, dimension_numbers: Any, window_strides: Sequence[int], **options: Any) -> bool:
    """Whether blocks pay: the stride divides the window (else they hold as many zeros as they save), no groups ..."""
    groups = options["feature_group_count"] * options["batch_group_count"]
    dilations = (*options["lhs_dilation"], *options["rhs_dilation"])
    windows = [kernel.shape[axis] for axis in dimension_numbers.rhs_spec[2:]]
    divides = all(window % stride == 0 for window, stride in zip(windows, window_strides, strict=True))
    strided = math.prod(window_strides) > 1 and groups == 1 and all(d == 1 for d in dilations)
    return strided and divides and jax.default_backend() == "cpu"


def _blocked(
    x: Array, kernel: Array, *, dimension_numbers: Any, window_strides: Sequence[int], padding: Any, **options: Any
) -> Array:
    lhs, rhs, out = dimension_numbers.lhs_spec, dimension_numbers.rhs_spec, dimension_numbers.out_spec
    x = jnp.transpose(x, (lhs[0], *lhs[2:], lhs[1]))  # [N, *spatial, C]
    kernel = jnp.transpose(kernel, (*rhs[2:], rhs[1], rhs[0]))  # [*window, C, O]
    edges = []
    for size, window, stride, (low, high) in zip(
        x.shape[1:-1], kernel.shape[:-2], window_strides, padding, strict=True
    ):
        count = (low + size + high - window) // stride + 1
        edges.append((low, (count - 1) * stride + window - low - size, 0))
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
    x, kernel = _blocks(x, window_strides, 1), _blocks(kernel, window_strides, 0)
    letters = "DHW"[-len(window_strides) :]
    layout = (f"N{letters}C", f"{letters}IO", f"N{letters}C")
    ones = (1,) * len(window_strides)
    result = jax.lax.conv_general_dilated(
        x, kernel, ones, [(0, 0)] * len(ones), dimension_numbers=layout,
        precision=options["precision"], preferred_element_type=options["preferred_element_type"],
    )  # fmt: skip
    order = (out[0], *out[2:], out[1])  # where each axis of the result belongs
    return jnp.transpose(result, [order.index(axis) for axis in range(len(order))])


def _blocks(x: Array, strides: Sequence[int], first: int) -> Array:
    """Moves the position within a block from the spatial axes (from `first` on) to the channels behind them."""
    spatial, channels = x.shape[first : first + len(strides)], first + len(strides)
    shape, inner, outer = list(x.shape[:first]), [], []
    for size, stride in zip(spatial, strides, strict=True):
        outer.append(len(shape))
        inner.append(len(shape) + 1)
        shape += [size // stride, stride]
    rest = range(len(shape), len(shape) + x.ndim - channels)
    x = x.reshape(*shape, *x.shape[channels:])
    x = jnp.transpose(x, (*range(first), *outer, *inner, *rest))
    merged = math.prod(strides) * x.shape[first + 2 * len(strides)]
    return x.reshape(*x.shape[: first + len(strides)], merged, *x.shape[first + 2 * len(strides) + 1 :])
