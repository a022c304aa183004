"""A convolution whose gradients are fast inside loops on CPU.

JAX derives a convolution's gradients as convolutions with permuted dimensions. XLA's CPU compiler brings those into the
order that its fast kernels need, but only at the top level of a program: in the body of a loop or of a `cond` (a PGD
attack is a `scan`) the gradient with respect to the image ran 8 times slower, to the kernel 20 times. Here the
operands themselves are permuted instead, so that every convolution is NHWC x HWIO from the start. Values are the same.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Pads = Any  # ((low, high), (low, high)): pixels of zeros around an image


def for_backend() -> Callable[..., jax.Array]:
    """Returns the convolution for `flax.linen.Conv(conv_general_dilated=...)` that suits the default device."""
    return conv if jax.default_backend() == "cpu" else lax.conv_general_dilated


def conv(x: jax.Array, kernel: jax.Array, strides: Any, padding: Pads, **options: Any) -> jax.Array:
    """Convolves NHWC images with an HWIO kernel, as `lax.conv_general_dilated` does.

    Args:
      x: images [B, H, W, C].
      kernel: [height, width, C, features].
      strides: two integers.
      padding: two pairs of integers.
      **options: as Flax gives them; dilation and feature groups must be left at 1.

    Returns:
      [B, H', W', features].
    """
    if options["feature_group_count"] != 1 or {*options["lhs_dilation"], *options["rhs_dilation"]} != {1}:
        raise ValueError("this convolution has neither dilation nor feature groups: use lax.conv_general_dilated")

    @jax.custom_vjp
    def function(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return _plain(x, kernel, padding, window_strides=strides)

    def forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, Any]:
        return function(x, kernel), (x, kernel)

    def backward(residuals: Any, ct: jax.Array) -> tuple[jax.Array, jax.Array]:
        return _gradients(*residuals, ct, strides=strides, padding=padding)

    function.defvjp(forward, backward)
    return function(x, kernel)


def _plain(x: jax.Array, kernel: jax.Array, padding: Pads, **options: Any) -> jax.Array:
    options = {"window_strides": (1, 1), **options}
    return lax.conv_general_dilated(x, kernel, padding=padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options)


def _gradients(
    x: jax.Array, kernel: jax.Array, ct: jax.Array, *, strides: Any, padding: Pads
) -> tuple[jax.Array, jax.Array]:
    """The cotangents of x and of the kernel."""
    x_pads, kernel_pads = [], []
    for axis, (low, high) in enumerate(padding):
        size, stride = kernel.shape[axis], strides[axis]
        # How many padded pixels lie behind the last window, seen by no output.
        unused = x.shape[axis + 1] + low + high - (ct.shape[axis + 1] - 1) * stride - size
        x_pads.append((size - 1 - low, size - 1 - high + unused))
        kernel_pads.append((low, high - unused))
    flipped = jnp.flip(kernel, (0, 1)).transpose(0, 1, 3, 2)
    x_ct = _plain(ct, flipped, x_pads, lhs_dilation=strides)
    # The kernel's gradient correlates images with cotangents: channels act as the batch, examples as the features.
    images, windows = x.transpose(3, 1, 2, 0), ct.transpose(1, 2, 0, 3)
    kernel_ct = _plain(images, windows, kernel_pads, rhs_dilation=strides)
    return x_ct, kernel_ct.transpose(1, 2, 0, 3)
