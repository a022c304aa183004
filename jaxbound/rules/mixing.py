"""Affine functions that mix the elements of the last axis, with few numbers: a diagonal and a few outer products.

Softmax and layer normalisation have bounds of this form. A full matrix of slopes would take n^2 numbers for a row of n;
these take a multiple of n, and what is computed with them are sums over rows.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxbound.rules.registry import Nonlinear
from jaxbound.rules.relaxation import Affine, Relaxation, settled
from jaxbound.sets import Array, Interval, midpoint


class Mixing(NamedTuple):
    """The slopes of result i: own[i] * x[i] + sum_k left[k, i] * sum_{j != i} right[k, j] * x[j], along the last axis.

    Attributes:
      own: [..., n], the slope of the element itself.
      left, right: [K, ..., n].
    """

    own: Array
    left: Array
    right: Array


class Planes(NamedTuple):
    """C affine functions of this form that share their right factors, with their values at the middle of a box.

    Attributes:
      own, value: [C, ..., n].
      left: [C, K, ..., n].
      right: [K, ..., n].
    """

    own: Array
    left: Array
    right: Array
    value: Array


def evaluate(slopes: Sequence[Any], x: Array, **_: Any) -> Array:
    """The linear part of one side of a relaxation, of slopes in this form or as a full matrix [..., n, n]."""
    (form,) = slopes
    if not isinstance(form, Mixing):
        return jnp.einsum("...ij,...j->...i", form, x, precision=jax.lax.Precision.HIGHEST)
    products = form.right * x
    return form.own * x + jnp.sum(form.left * (jnp.sum(products, axis=-1, keepdims=True) - products), axis=0)


def _by_sign(slopes: Sequence[Mixing]) -> tuple[tuple[Array], tuple[Array]]:
    """The positive and the negative slopes. Products may cancel in part, so only the full matrix shows their signs."""
    (form,) = slopes
    outer = jnp.einsum("k...i,k...j->...ij", form.left, form.right, precision=jax.lax.Precision.HIGHEST)
    matrix = jnp.where(jnp.eye(form.own.shape[-1], dtype=bool), form.own[..., None], outer)
    return (jnp.maximum(matrix, 0),), (jnp.minimum(matrix, 0),)


def mixing(interval: Callable[..., Interval], planes: Callable[..., tuple[Planes, Planes]]) -> Nonlinear:
    """The rule of a function of rows, the last axis, that lies between planes.

    Of several valid planes and the constant each result takes the one that is best at the middle of the box: there an
    affine function takes its mean over the box.

    Args:
      interval: (x, *constants) -> Interval.
      planes: (x, *constants) -> those below the function, those above it.
    """

    def relax(x: Interval, *constants: Array, **_: Any) -> Relaxation:
        box, (below, above) = interval(x, *constants), planes(x, *constants)
        return Relaxation(_best(x, below, box.lower, 1), _best(x, above, box.upper, -1))

    return Nonlinear(lambda x, *constants, **_: interval(x, *constants), relax, (0,), evaluate, split=_by_sign)


def _best(x: Interval, planes: Planes, end: Array, sign: int) -> Affine:
    """The plane, or the constant, that is highest (sign 1) or lowest (sign -1) at the middle."""
    own, left, right, value = planes
    usable = jnp.isfinite(own) & jnp.isfinite(value) & jnp.all(jnp.isfinite(left), axis=1)
    usable &= jnp.all(jnp.isfinite(right), axis=(0, -1), keepdims=False)[..., None]
    score = jnp.where(usable, sign * value, -jnp.inf)
    # On a point all are equal, and which is chosen must not hang on a rounding: slopes and intercept have to agree.
    better = jnp.max(score, axis=0) > sign * end + 256 * jnp.finfo(end.dtype).eps * (1 + jnp.abs(end))
    better |= jnp.isinf(end) & jnp.any(usable, axis=0)  # what is infinite is no intercept
    (index,) = settled(jnp.where(better, jnp.argmax(score, axis=0), len(own)))

    def chosen(options: Array, otherwise: Array | float) -> Array:
        return jnp.select([index == k for k in range(len(own))], list(options), otherwise)

    slopes = Mixing(
        chosen(own, 0.0),
        jnp.stack([chosen(part, 0.0) for part in jnp.moveaxis(left, 1, 0)]),
        jnp.where(jnp.isfinite(right), right, 0),
    )
    middle = midpoint(x)  # infinite only where nothing but the constant is usable
    slopes, middle = settled(slopes, jnp.where(jnp.isfinite(middle), middle, 0))
    return Affine((slopes,), chosen(value, end) - evaluate((slopes,), middle))
