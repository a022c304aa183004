"""Softmax, its logarithm, and log-sum-exp, each along the last axis.

All lines come from two planes around the convex function lse(x) = log sum_i exp(x_i).

Below, its tangent plane at the middle of the box. Above, the better of
- log sum_i chord_i(x_i), with each exp below its chord: the logarithm of an affine function is concave, so its tangent
  plane at the middle is above it;
- x_j + log(1 + sum_{i != j} exp(u_i - l_j)), because lse(x) = x_j + log sum_i exp(x_i - x_j); exact where one element
  outweighs all others.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxbound.rules.activations import whole
from jaxbound.rules.mixing import Planes, mixing
from jaxbound.rules.registry import Nonlinear
from jaxbound.rules.relaxation import Affine, Relaxation, highest, settled
from jaxbound.sets import Array, Interval, midpoint, radius


def mean_decay(width: Array) -> Array:
    """The mean of exp(-t) for t in [0, width], (1 - exp(-width)) / width, as exact on a point as elsewhere."""
    few = math.sqrt(math.sqrt(jnp.finfo(width.dtype).eps))
    narrow = jnp.abs(width) < few
    series = 1 - width / 2 * (1 - width / 3 * (1 - width / 4))
    wide = jnp.where(narrow, 1, width)
    return jnp.where(narrow, series, -jnp.expm1(-wide) / wide)


def others(x: Array) -> Array:
    """For each element the sum of all others along the last axis, each as exact as a sum of them alone.

    From the sum of all a large element cannot be taken back without an error of its size: the largest are kept apart.
    """
    size = jnp.abs(x)
    is_top = size == jnp.max(size, axis=-1, keepdims=True)
    low, high = (jnp.sum(jnp.where(flag, x, 0), axis=-1, keepdims=True) for flag in (~is_top, is_top))
    return jnp.where(is_top, low + (high - x), low + high - x)


def _finite(x: Interval) -> Interval:
    """Infinite ends as numbers that are as good as infinite; NaN stays NaN."""
    far = jnp.finfo(x.lower.dtype).max / 8
    return Interval(*(jnp.clip(end, -far, far) for end in x))


def _log_others(x: Array) -> Array:
    """log sum_{j != i} exp(x_j), but not so low that it could matter next to the largest element."""
    top = jax.lax.stop_gradient(jnp.max(x, axis=-1, keepdims=True))
    return top + jnp.log(jnp.maximum(others(jnp.exp(x - top)), jnp.finfo(x.dtype).tiny))


def _defined(x: Interval, lower: Array, upper: Array) -> Interval:
    """The interval, but NaN in rows that are -inf throughout, or +inf somewhere: there is no such distribution."""
    nowhere = jnp.all(x.upper == -jnp.inf, axis=-1, keepdims=True) | jnp.any(x.lower == jnp.inf, axis=-1, keepdims=True)
    return Interval(*(jnp.where(nowhere, jnp.nan, end) for end in (lower, upper)))


def _log_softmax_interval(x: Interval) -> Interval:
    """Exact: element j is highest where x_j is and all others are lowest."""
    low, high = _finite(x)
    lower = jnp.where(x.lower == -jnp.inf, -jnp.inf, -jax.nn.softplus(_log_others(high) - low))
    return _defined(x, lower, -jax.nn.softplus(_log_others(low) - high))


def _softmax_interval(x: Interval) -> Interval:
    low, high = _finite(x)
    return _defined(x, jax.nn.sigmoid(low - _log_others(high)), jax.nn.sigmoid(high - _log_others(low)))


def _lse(x: Array) -> Array:
    return jax.nn.logsumexp(x, axis=-1, keepdims=True)


def _plane_below(x: Interval) -> tuple[Array, Array]:
    """lse(y) >= <weights, y - middle> + value."""
    middle = midpoint(x)
    return jax.nn.softmax(middle, axis=-1), _lse(middle)


def _plane_above(x: Interval) -> tuple[Array, Array]:
    """lse(y) <= <weights, y - middle> + value."""
    top = jax.lax.stop_gradient(jnp.max(x.upper, axis=-1, keepdims=True))
    low, high = (jnp.exp(end - top) for end in x)
    slopes = high * mean_decay(x.upper - x.lower)
    # The chord is above exp at both ends, whatever the rounding of its slope.
    heights = highest(low + slopes * radius(x), high - slopes * radius(x))
    total = jnp.sum(heights, axis=-1, keepdims=True)
    slopes, total = settled(slopes, total)
    leading = jax.nn.one_hot(jnp.argmax(x.lower, axis=-1), x.lower.shape[-1], dtype=x.lower.dtype)
    floor = jnp.max(x.lower, axis=-1, keepdims=True)
    excess = _lse(jnp.where(leading > 0, 0, x.upper - floor))
    single = jnp.sum(leading * midpoint(x), axis=-1, keepdims=True) + excess
    (better,) = settled(single < top + jnp.log(total))
    return jnp.where(better, leading, slopes / total), jnp.where(better, single, top + jnp.log(total))


# The rules.


def _planes(weights: Array, scale: Array, height: Array) -> Planes:
    """height + scale * (t - t(middle)) with t = x_j - <weights, x>."""
    return Planes((scale * (1 - weights))[None], -scale[None, None], weights[None], height[None])


def _log_softmax_planes(x: Interval) -> tuple[Planes, Planes]:
    """log softmax_j(x) = x_j - lse(x)."""
    x = _finite(x)
    one, middle = jnp.ones_like(x.lower), midpoint(x)
    below, above = _plane_below(x), _plane_above(x)
    return _planes(above[0], one, middle - above[1]), _planes(below[0], one, middle - below[1])


def _softmax_planes(x: Interval) -> tuple[Planes, Planes]:
    """softmax_j(x) = exp(t) with t = x_j - lse(x): exp lies above its tangent and below its chord."""
    x = _finite(x)
    middle, ends = midpoint(x), _log_softmax_interval(x)
    below, above = _plane_below(x), _plane_above(x)
    touch = jnp.exp(middle - above[1])
    low, high = (jnp.exp(end) for end in ends)
    chord = high * mean_decay(ends.upper - ends.lower)
    t = middle - below[1]
    height = highest(low + chord * (t - ends.lower), high + chord * (t - ends.upper))
    return _planes(above[0], touch, touch), _planes(below[0], chord, height)


def _weighted_sum(slopes: tuple[Array], x: Array, **_: Any) -> Array:
    return jnp.sum(slopes[0] * x, axis=-1)


def _lse_interval(x: Interval, **_: Any) -> Interval:
    return Interval(*(jax.nn.logsumexp(end, axis=-1) for end in x))


def _relax_lse(x: Interval, **_: Any) -> Relaxation:
    finite = _finite(x)

    def side(weights: Array, value: Array) -> Affine:
        weights, value = settled(weights, value)
        return Affine((weights,), jnp.sum(value - jnp.sum(weights * midpoint(finite), -1, keepdims=True), axis=-1))

    return Relaxation(side(*_plane_below(finite)), side(*_plane_above(finite)))


softmax = whole(lambda x: jax.nn.softmax(x, axis=-1), "softmax", mixing(_softmax_interval, _softmax_planes))
log_softmax = whole(
    lambda x: jax.nn.log_softmax(x, axis=-1), "log_softmax", mixing(_log_softmax_interval, _log_softmax_planes)
)
logsumexp = whole(
    lambda x: jax.nn.logsumexp(x, axis=-1), "logsumexp", Nonlinear(_lse_interval, _relax_lse, (0,), _weighted_sum)
)
