"""Specifications: rows of linear functionals of a network's output that are bounded from below."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxbound.sets import Array


def margin_spec(label: Any, num_classes: int, dtype: Any = jnp.float32) -> Array:
    """The margins of a label over every other class: rows z_label - z_j for j != label, in the order of j.

    Args:
      label: integer scalar, traced or not (batches by `jax.vmap`).
      num_classes: K.
      dtype: of the result.

    Returns:
      [K-1, K]. A network is verified at the label if all K-1 lower bounds are positive.

    Raises:
      ValueError: a label outside [0, K). A traced label cannot raise; its rows become NaN, which verify nothing.

    Example:
      >>> jaxbound.margin_spec(1, 3)
      Array([[-1.,  1.,  0.],
             [ 0.,  1., -1.]], dtype=float32)
    """
    label, valid = checked_label(label, num_classes)
    others = jnp.arange(num_classes - 1)
    others = others + (others >= label)
    rows = jax.nn.one_hot(label, num_classes, dtype=dtype) - jax.nn.one_hot(others, num_classes, dtype=dtype)
    return jnp.where(valid, rows, jnp.nan)


def runner_up_spec(logits: Array, label: Any) -> Array:
    """The margin of a label over the class that comes closest to it: one row instead of `margin_spec`'s K-1.

    Cheap for training; it verifies nothing about the other classes.

    Args:
      logits: [K], of the unperturbed input; no gradient flows through the choice.
      label: integer scalar, traced or not.

    Returns:
      [1, K]: z_label - z_j for the j != label with the largest logit, the first of several. NaN where a logit is NaN.

    Raises:
      ValueError: as for `margin_spec`; also fewer than two logits, or a batch of them.

    Example:
      >>> jaxbound.runner_up_spec(jnp.array([0.5, 3.0, 2.0]), 1)
      Array([[ 0.,  1., -1.]], dtype=float32)
    """
    logits = jax.lax.stop_gradient(jnp.asarray(logits))
    if logits.ndim != 1 or logits.size < 2:
        raise ValueError(f"logits must be [K] with K >= 2, got {list(logits.shape)}; batches go through jax.vmap")
    (size,) = logits.shape
    label, valid = checked_label(label, size)
    other = jnp.argmax(jnp.where(jnp.arange(size) == label, -jnp.inf, logits))
    # Where all others are -inf the label itself comes first, and is no other class.
    other = jnp.where(other == label, (label + 1) % size, other)
    row = jax.nn.one_hot(label, size, dtype=logits.dtype) - jax.nn.one_hot(other, size, dtype=logits.dtype)
    return jnp.where(valid & ~jnp.isnan(logits).any(), row, jnp.nan)[None]


def checked_label(label: Any, num_classes: int) -> tuple[Array, Array]:
    """A label as an array, and whether it is in range: a traced one can only say so when the program runs.

    Raises:
      ValueError: it is not one integer, or known to be outside [0, num_classes).
    """
    label = jnp.asarray(label)
    if label.ndim or not jnp.issubdtype(label.dtype, jnp.integer):
        raise ValueError(f"label must be one integer, got {label.dtype}{label.shape}; batches go through jax.vmap")
    if not isinstance(label, Tracer) and not 0 <= int(label) < num_classes:
        raise ValueError(f"label {int(label)} is out of range for {num_classes} classes (0 to {num_classes - 1})")
    return label, (label >= 0) & (label < num_classes)


def identity_spec(shape: tuple[int, ...] | int, dtype: Any = jnp.float32) -> Array:
    """One row per element of an output: [prod(shape), *shape]. Negate it for upper bounds.

    Example:
      >>> jaxbound.identity_spec((2,))
      Array([[1., 0.],
             [0., 1.]], dtype=float32)
    """
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    size = math.prod(shape)
    return jnp.eye(size, dtype=dtype).reshape((size, *shape))


def worst_case_logits(margins: Array, label: Any) -> Array:
    """The logits that a verified bound cannot exclude: 0 at the label, minus its margin at every other class.

    Args:
      margins: lower bounds [K-1] in the order of `margin_spec`.
      label: integer scalar.

    Returns:
      [K]; its cross-entropy with the label bounds that of the network on the whole set.

    Example:
      >>> jaxbound.worst_case_logits(jnp.array([2.0, -1.0]), 1)
      Array([-2.,  0.,  1.], dtype=float32)

    References:
      Gowal et al. 2018, arXiv:1810.12715.
    """
    classes = np.arange(margins.shape[-1] + 1)
    padded = jnp.concatenate([margins, margins[-1:]])
    shifted = jnp.concatenate([margins[:1], margins])
    return jnp.where(classes == label, 0, -jnp.where(classes < label, padded, shifted))
