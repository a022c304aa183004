"""Convolutions in the forms that XLA's CPU compiler runs fast in both directions. Accelerators need no such help.

Two things are slow there. The transpose of a convolution with stride s spends all but 1/s^d of its work on zeros: cut
into blocks of s, the input becomes an image of s^d times as many channels and the convolution one of stride 1. And the
transpose that JAX derives has its operands' axes permuted, which inside a loop runs up to 30 times slower than the
equal convolution with the axes in order.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxbound.sets import Array

# (x [N, *spatial, C], kernel [*window, C, O], strides=, dilation=, **precision) -> [N, *spatial, O], without padding.
Valid = Callable[..., Array]


def convolve(x: Array, kernel: Array, **params: Any) -> Array:
    """`jax.lax.conv_general_dilated` by its primitive's parameters, differentiable in every way."""
    if _is_ordinary(params) and _is_divided(kernel, params):
        return _in_order(x, kernel, _valid, params)
    return _plain(x, kernel, params)


def convolve_to_transpose(x: Array, kernel: Array, **params: Any) -> Array:
    """The same, to be transposed once with respect to x and not differentiated otherwise."""
    return _in_order(x, kernel, _valid_to_transpose, params) if _is_ordinary(params) else _plain(x, kernel, params)


def _plain(x: Array, kernel: Array, params: dict[str, Any]) -> Array:
    names = ("window_strides", "padding", "lhs_dilation", "rhs_dilation", "dimension_numbers", "feature_group_count",
             "batch_group_count", "precision", "preferred_element_type")  # fmt: skip
    return jax.lax.conv_general_dilated(x, kernel, **{name: params[name] for name in names})


def _is_ordinary(params: dict[str, Any]) -> bool:
    groups = params["feature_group_count"] * params["batch_group_count"]
    return groups == 1 and all(d == 1 for d in params["lhs_dilation"]) and jax.default_backend() == "cpu"


def _is_divided(kernel: Array, params: dict[str, Any]) -> bool:
    """Whether blocks pay: there is a stride, and it divides the window (else they hold as many zeros as they save)."""
    strides, windows = params["window_strides"], [kernel.shape[k] for k in params["dimension_numbers"].rhs_spec[2:]]
    divides = all(window % stride == 0 for window, stride in zip(windows, strides, strict=True))
    return math.prod(strides) > 1 and divides and all(d == 1 for d in params["rhs_dilation"])


def _in_order(x: Array, kernel: Array, valid: Valid, params: dict[str, Any]) -> Array:
    """Brings the axes in order, pads, cuts into blocks where that pays, convolves, and restores the axes."""
    numbers, strides, dilation = params["dimension_numbers"], params["window_strides"], params["rhs_dilation"]
    lhs, rhs, out = numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec
    divided = _is_divided(kernel, params)
    x = jnp.transpose(x, (lhs[0], *lhs[2:], lhs[1]))
    kernel = jnp.transpose(kernel, (*rhs[2:], rhs[1], rhs[0]))
    edges = []
    for axis, (low, high) in enumerate(params["padding"]):
        size, window = x.shape[axis + 1], (kernel.shape[axis] - 1) * dilation[axis] + 1
        count = (low + size + high - window) // strides[axis] + 1
        edges.append((low, (count - 1) * strides[axis] + window - low - size, 0))  # nothing that no window reads
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
    if divided:
        x, kernel, strides = _blocks(x, strides, 1), _blocks(kernel, strides, 0), (1,) * len(strides)
    options = {name: params[name] for name in ("precision", "preferred_element_type")}
    result = valid(x, kernel, strides=strides, dilation=dilation, **options)
    order = (out[0], *out[2:], out[1])  # where each axis of the result belongs
    return jnp.transpose(result, [order.index(axis) for axis in range(len(order))])


def _blocks(x: Array, strides: Sequence[int], first: int) -> Array:
    """Moves the position within a block from the spatial axes (from `first` on) to the channels behind them."""
    last = first + len(strides)
    shape, inner, outer = list(x.shape[:first]), [], []
    for size, stride in zip(x.shape[first:last], strides, strict=True):
        outer.append(len(shape))
        inner.append(len(shape) + 1)
        shape += [size // stride, stride]
    rest = range(len(shape), len(shape) + x.ndim - last)
    x = x.reshape(*shape, *x.shape[last:])
    x = jnp.transpose(x, (*range(first), *outer, *inner, *rest))
    channels = math.prod(strides) * x.shape[last + len(strides)]
    return x.reshape(*x.shape[:last], channels, *x.shape[last + len(strides) + 1 :])


def _valid(x: Array, kernel: Array, *, strides: Any, dilation: Any, padding: Any = None, **options: Any) -> Array:
    letters = "DHW"[-len(strides) :]
    layout = (f"N{letters}C", f"{letters}IO", f"N{letters}C")
    padding = padding or [(0, 0)] * len(strides)
    return jax.lax.conv_general_dilated(
        x, kernel, strides, padding, rhs_dilation=dilation, dimension_numbers=layout, **options
    )


def _valid_to_transpose(x: Array, kernel: Array, *, strides: Any, dilation: Any, **options: Any) -> Array:
    @jax.custom_vjp
    def function(x: Array, kernel: Array) -> Array:
        return _valid(x, kernel, strides=strides, dilation=dilation, **options)

    def backward(kernel: Array, ct: Array) -> tuple[Array, None]:
        spatial = range(len(strides))
        flipped = jnp.swapaxes(jnp.flip(kernel, spatial), -1, -2)
        reach = [((n - 1) * d, (n - 1) * d) for n, d in zip(kernel.shape, dilation, strict=False)]
        ones = (1,) * len(strides)
        return _valid(
            ct, flipped, strides=ones, dilation=dilation, padding=reach, lhs_dilation=strides, **options
        ), None

    function.defvjp(lambda x, kernel: (function(x, kernel), kernel), backward)
    return function(x, kernel)
