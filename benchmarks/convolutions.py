"""Convolutions and their derivatives in the forms that XLA runs fastest on CPU, for `benchmarks.reference`."""

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.models import convolve


class ConvOps(NamedTuple):
    """The two directions of a convolution: conv(x, kernel, layer), transpose(ct, kernel, layer, input_shape)."""

    conv: Callable
    transpose: Callable


def input_gradient(ct, kernel, *, strides, padding, input_shape):
    """Gradient of an NHWC convolution with respect to its input, in the form that runs fastest on CPU.

    JAX derives a convolution of `ct` with strides - 1 zeros between its elements, most of whose work is on zeros. One
    ordinary convolution per output phase (the positions that share their kernel entries) does only the rest; where the
    stride divides the window all phases have as many entries, and one convolution computes them all. An image of one
    channel makes matrix-vector products of either, so there it is one matrix product and shifted additions instead.

    Args:
      ct: cotangent of the convolution's output, [N, *out, O].
      kernel: [*window, I, O].
      strides: one per spatial axis.
      padding: (low, high) per spatial axis, zero or more.
      input_shape: [N, *in, I].

    Returns:
      The gradient, of shape `input_shape`.
    """
    ndim = len(strides)
    axes = [
        _split_axis(window, stride, low=low, size=size)
        for window, stride, (low, _), size in zip(kernel.shape[:-2], strides, padding, input_shape[1:-1], strict=True)
    ]
    kernel = _split_kernel(kernel, strides)
    correlate = _correlate_by_products if input_shape[-1] == 1 else _correlate

    def join(blocks):  # all combinations of one block per axis
        if len(blocks) == ndim:
            return _block_gradient(ct, kernel, blocks=blocks, axes=axes, correlate=correlate)
        parts = [join((*blocks, block)) for block in axes[len(blocks)].blocks]
        return jnp.concatenate(parts, axis=1 + ndim + len(blocks))

    grad = join(())  # [N, *counts, *strides, I]: interleave each axis's phases
    grad = grad.transpose(0, *(a for d in range(ndim) for a in (1 + d, 1 + ndim + d)), 1 + 2 * ndim)
    grad = grad.reshape(ct.shape[0], *(a.count * s for a, s in zip(axes, strides, strict=True)), input_shape[-1])
    first = (0, *(axis.skip for axis in axes), 0)
    return jax.lax.slice(grad, first, [a + n for a, n in zip(first, input_shape, strict=True)])


class _Block(NamedTuple):
    """Phases of one axis: kernel entries r, r + stride, ... for each remainder r in [first, last)."""

    first: int
    last: int
    entries: int
    quotient: int


class _Axis(NamedTuple):
    """The blocks of one axis; each phase computes `count` positions, of which `skip` in all lie before the first."""

    blocks: list
    count: int
    skip: int


def _split_axis(window, stride, *, low, size):
    """Split an axis into phases: position i gets entry r + j * stride of output q - j, i + low = q * stride + r."""
    if window % stride == 0:
        skip = low % stride
        return _Axis([_Block(0, stride, window // stride, low // stride)], -(-(skip + size) // stride), skip)
    starts = [divmod(phase + low, stride) for phase in range(stride)]
    return _Axis([_Block(r, r + 1, len(range(r, window, stride)), q) for q, r in starts], -(-size // stride), 0)


def _split_kernel(kernel, strides):
    """[*window, I, O] -> [*entries, O, *remainders, I], short phases padded with zeros."""
    ndim, window = len(strides), kernel.shape[:-2]
    most = [-(-w // s) for w, s in zip(window, strides, strict=True)]
    widths = [(0, m * s - w) for m, s, w in zip(most, strides, window, strict=True)]
    kernel = jnp.pad(kernel, [*widths, (0, 0), (0, 0)])
    kernel = kernel.reshape(*(n for pair in zip(most, strides, strict=True) for n in pair), *kernel.shape[-2:])
    return kernel.transpose(*range(0, 2 * ndim, 2), 2 * ndim + 1, *range(1, 2 * ndim, 2), 2 * ndim)


def _block_gradient(ct, kernel, *, blocks, axes, correlate):
    """The phases of one block per axis, by one ordinary convolution: [N, *counts, *phases, I]."""
    counts = [axis.count for axis in axes]
    shape = (ct.shape[0], *counts, *(block.last - block.first for block in blocks), kernel.shape[-1])
    if any(block.entries == 0 for block in blocks):
        return jnp.zeros(shape, ct.dtype)
    entries = [block.entries for block in blocks]
    taken = (*map(slice, entries), slice(None), *(slice(block.first, block.last) for block in blocks))
    part = jnp.flip(kernel[taken], range(len(blocks))).reshape(*entries, ct.shape[-1], -1)
    padding = [
        (block.entries - 1 - block.quotient, block.quotient + count - size)
        for block, count, size in zip(blocks, counts, ct.shape[1:-1], strict=True)
    ]
    return correlate(ct, part, padding).reshape(shape)


def _correlate(x, kernel, padding):
    """The stride-1 convolution of x [N, *in, I] and kernel [*window, I, O]."""
    layout = {1: ("NHC", "HIO", "NHC"), 2: ("NHWC", "HWIO", "NHWC"), 3: ("NDHWC", "DHWIO", "NDHWC")}[len(padding)]
    return jax.lax.conv_general_dilated(x, kernel, (1,) * len(padding), padding, dimension_numbers=layout)


def _correlate_by_products(x, kernel, padding):
    """The same as one matrix product with all of the kernel, then a sum of shifted products."""
    window = kernel.shape[:-2]
    products = jnp.tensordot(x, kernel, (-1, -2))  # [N, *in, *window, O]
    zero, total = jnp.zeros((), products.dtype), None
    for entry in itertools.product(*map(range, window)):
        shift = [(low - k, high + k - w + 1, 0) for k, w, (low, high) in zip(entry, window, padding, strict=True)]
        part = products[(slice(None),) * (x.ndim - 1) + entry]
        part = jax.lax.pad(part, zero, [(0, 0, 0), *shift, (0, 0, 0)])
        total = part if total is None else total + part
    return total


def output(x, kernel, layer):
    """`convolve` in the form that runs fastest on CPU: one channel cut into blocks of the stride makes several."""
    if x.shape[-1] > 1 or layer.stride == 1:
        return convolve(x, kernel, layer)
    entries = -(-layer.kernel // layer.stride)
    counts = [(size + 2 * layer.padding - layer.kernel) // layer.stride + entries for size in x.shape[1:3]]
    edges = [
        (layer.padding, count * layer.stride - layer.padding - size, 0)
        for count, size in zip(counts, x.shape[1:3], strict=True)
    ]
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
    x = x.reshape(-1, counts[0], layer.stride, counts[1], layer.stride).transpose(0, 1, 3, 2, 4)
    kernel = _split_kernel(kernel, layer.strides).transpose(0, 1, 3, 4, 5, 2)  # [*entries, *remainders, 1, O]
    kernel = kernel.reshape(entries, entries, -1, kernel.shape[-1])
    return _correlate(x.reshape(*x.shape[:3], -1), kernel, [(0, 0), (0, 0)])


def kernel_gradient(x, ct, kernel, layer):
    """Gradient of an ordinary convolution with respect to its kernel."""
    return jax.linear_transpose(lambda kernel: convolve(x, kernel, layer), kernel)(ct)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv(x, kernel, layer):
    """`output` whose input gradient is `input_gradient`."""
    return output(x, kernel, layer)


def _conv_bwd(layer, saved, ct):
    x, kernel = saved
    return conv_transpose(ct, kernel, layer, x.shape), kernel_gradient(x, ct, kernel, layer)


conv.defvjp(lambda x, kernel, layer: (output(x, kernel, layer), (x, kernel)), _conv_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def conv_transpose(ct, kernel, layer, input_shape):
    """`input_gradient` whose derivatives are an ordinary convolution and its kernel gradient."""
    return input_gradient(ct, kernel, strides=layer.strides, padding=layer.pads, input_shape=input_shape)


def _conv_transpose_bwd(layer, _, saved, tangent):
    ct, kernel = saved
    return output(tangent, kernel, layer), kernel_gradient(tangent, ct, kernel, layer)


conv_transpose.defvjp(
    lambda ct, kernel, layer, shape: (conv_transpose(ct, kernel, layer, shape), (ct, kernel)), _conv_transpose_bwd
)


def derived_transpose(ct, kernel, layer, input_shape):
    """The transposed convolution as JAX derives it."""
    x = jax.ShapeDtypeStruct(input_shape, ct.dtype)
    return jax.linear_transpose(lambda x: convolve(x, kernel, layer), x)(ct)[0]


DERIVED = ConvOps(convolve, derived_transpose)
WRITTEN = ConvOps(conv, conv_transpose)
