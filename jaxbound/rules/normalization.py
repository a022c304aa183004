"""Layer and root-mean-square normalisation of rows, the last axis, each as one function.

Both are a multiple of f(z, s) = z / sqrt(z^2 + s) for every element, where z is linear in the row and s depends on the
other elements only:

- root mean square: x_i / sqrt(mean(x^2) + eps) = sqrt(n) f(x_i, s), s = sum_{j != i} x_j^2 + n eps;
- layer: (x_i - mean(x)) / sqrt(var(x) + eps) = sqrt(n - 1) f(z_i, s), z_i = sqrt(1 - 1/n) (x_i - m_i) with m_i the mean
  of the others, s = sum_{j != i} (x_j - m_i)^2 + n eps, because the sum of squares around the mean of all is
  sum_{j != i} (x_j - m_i)^2 + (1 - 1/n) (x_i - m_i)^2.

f grows with z, shrinks towards 0 as s grows, and |f| <= 1: no blow-up where a variance may vanish. On a rectangle of
(z, s) the extremes of f - a z - b s lie on its edges, for f is a saddle: the determinant of its second derivatives is
negative everywhere. On an edge the stationary points are known, so any slopes (a, b) have exact intercepts. Last, s is
convex in the row: above its tangent plane, below the plane of its squares' chords.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxbound.rules.activations import whole
from jaxbound.rules.mixing import Planes, mixing
from jaxbound.rules.registry import Nonlinear
from jaxbound.rules.relaxation import chord_slope, highest, lowest, settled
from jaxbound.rules.softmax import others
from jaxbound.sets import Array, Interval, midpoint, radius


class _Row(NamedTuple):
    """What is known of z and s on a box of rows, which is moved and scaled to the size of 1.

    Attributes:
      scale: [..., 1], by which the elements were divided.
      middle: [..., n], the middle of the box; where means are subtracted its mean is zero.
      z, s: ranges of both for every element.
      total: range of z^2 + s for every element, where that is more than z and s tell.
      tangent, chord: s at the middle according to the planes below and above it.
      gain: dz_i / dx_i.
      pull: -dz_i / dx_j for the other elements.
      lean: [..., n], how far the mean of the others is from zero at the middle.
      factor: of f.
    """

    scale: Array
    middle: Array
    z: Interval
    s: Interval
    total: Interval
    tangent: Array
    chord: Array
    gain: float
    pull: float
    lean: Array
    factor: float


def _unit(x: Interval, eps: Array, center: Array) -> tuple[Interval, Array, Array]:
    """The box around `center` in units of its size, what is added to the sum of squares, and the unit."""
    box = Interval(*(end - center for end in x))
    constant = eps * x.lower.shape[-1]
    size = jnp.max(jnp.maximum(jnp.abs(box.lower), jnp.abs(box.upper)), axis=-1, keepdims=True)
    scale = jnp.clip(jnp.maximum(size, jnp.sqrt(constant)), jnp.finfo(size.dtype).tiny ** 0.5, None)
    scale = jax.lax.stop_gradient(scale)
    return Interval(*(end / scale for end in box)), constant / scale / scale, scale


def _squares(x: Interval) -> Interval:
    """The ranges of the squares."""
    nearest = jnp.clip(jnp.zeros_like(x.lower), x.lower, x.upper)
    return Interval(nearest**2, highest(x.lower**2, x.upper**2))


def _plain(x: Interval, eps: Array) -> _Row:
    """z and s of the root-mean-square normalisation."""
    n = x.lower.shape[-1]
    x, constant, scale = _unit(x, eps, jnp.zeros_like(x.lower[..., :1]))
    middle, squares = midpoint(x), _squares(x)
    s = Interval(*(others(end) + constant for end in squares))
    tangent = others(middle**2) + constant
    chord = tangent + others(radius(x) ** 2)
    total = Interval(*(jnp.sum(end, axis=-1, keepdims=True) + constant for end in squares))
    return _Row(
        scale, middle, x, s, total, tangent, chord, gain=1.0, pull=0.0, lean=jnp.zeros_like(middle), factor=math.sqrt(n)
    )


def _centered(x: Interval, eps: Array) -> _Row:
    """z and s of the layer normalisation."""
    n = x.lower.shape[-1]
    rest = max(n - 1, 1)
    x, constant, scale = _unit(x, eps, jnp.mean(midpoint(x), axis=-1, keepdims=True))
    gain = math.sqrt(1 - 1 / n)
    middle, means = midpoint(x), Interval(*(others(end) / rest for end in x))
    z = Interval(gain * (x.lower - means.upper), gain * (x.upper - means.lower))
    farthest, squares = _squares(x).upper, _squares(z)
    of_all = Interval(*(jnp.mean(end, axis=-1, keepdims=True) for end in x))
    least = _least_spread(x, of_all, lambda v: jnp.sum(v, axis=-1, keepdims=True))
    # Around any point the sum of squares is at least the one around the mean.
    most = jnp.sum(farthest, axis=-1, keepdims=True)
    total = Interval(least + constant, most + constant)
    s = Interval(
        highest(_least_spread(x, means, others), least - squares.upper) + constant,
        lowest(others(farthest), most - squares.lower) + constant,
    )
    lean = others(middle) / rest
    tangent = others(middle**2) - rest * lean**2 + constant
    chord = tangent + others(radius(x) ** 2)
    return _Row(
        scale, middle, z, s, total, tangent, chord, gain=gain, pull=gain / rest, lean=lean, factor=math.sqrt(n - 1)
    )


def _least_spread(x: Interval, means: Interval, add: Callable[[Array], Array]) -> Array:
    """Lower bound of the sum of squares around the mean, for some of the elements: those that `add` sums.

    It is at least h(mean) with h(c) the sum of the squared distances of the boxes from c. h is convex, so it lies above
    its tangent anywhere; the tangent is taken close to the minimum.
    """
    center = jnp.zeros_like(x.lower[..., :1])
    for _ in range(4):
        center = jnp.mean(jnp.clip(center, x.lower, x.upper), axis=-1, keepdims=True)
    apart = center - jnp.clip(center, x.lower, x.upper)
    height, slope = add(apart**2), 2 * add(apart)
    ends = [height + slope * (end - center) for end in means]
    return jnp.maximum(lowest(*ends), 0)


def _ratio(z: Array, squares: Array) -> Array:
    """z / sqrt(squares)."""
    return z * jax.lax.rsqrt(jnp.maximum(squares, jnp.finfo(squares.dtype).tiny))


def _interval(row: _Row) -> Interval:
    """f at the ends of z: with the least s where that leads away from zero, with the largest where it leads to it."""

    def end(z: Array, sign: int) -> Array:
        near = highest(z * z + row.s.lower, row.total.lower)
        far = lowest(z * z + row.s.upper, row.total.upper)
        return row.factor * _ratio(z, jnp.where(sign * z >= 0, near, far))

    return Interval(end(row.z.lower, -1), end(row.z.upper, 1))


def _planes(row: _Row) -> tuple[Planes, Planes]:
    """Planes below and above, of slopes (a, b) by chords and tangents along z and s."""
    ends = settled(row.z, row.s)
    row = row._replace(z=ends[0], s=ends[1])
    z, s = midpoint(row.z), midpoint(row.s)
    low, high = (jnp.sqrt(z * z + end) for end in row.s)
    chord = chord_slope(row.z, lambda v: _ratio(v, v * v + s), lambda v: s * _power(v * v + s, -1.5))
    secant = -z / (low * high * (low + high))
    tangent = s * _power(z * z + s, -1.5), -z / 2 * _power(z * z + s, -1.5)
    a, b = settled(jnp.stack([chord, chord, tangent[0], chord]), jnp.stack([secant, tangent[1], secant, 0 * z]))
    return _planes_of_slopes(row, a, b, 1), _planes_of_slopes(row, a, b, -1)


def _planes_of_slopes(row: _Row, a: Array, b: Array, side: int) -> Planes:
    """The planes of slopes a and b along z and s that touch f from below (side 1) or from above (side -1)."""
    s, z = jnp.where(side * b >= 0, row.tangent, row.chord), midpoint(row.z)
    points = _extreme_points(row, a, b)
    gaps = _ratio(points[0], points[0] ** 2 + points[1]) - a * (points[0] - z) - b * (points[1] - s)
    value = lowest(*gaps) if side == 1 else highest(*gaps)
    unit = row.factor / row.scale
    left = jnp.stack([2 * unit * b, -unit * (row.pull * a + 2 * row.lean * b)], axis=1)
    right = jnp.stack([row.middle, jnp.ones_like(row.middle)])
    return Planes(row.gain * unit * a, left, right, row.factor * value)


def _extreme_points(row: _Row, a: Array, b: Array) -> tuple[Array, Array]:
    """z and s of the points, stacked, among which f - a z - b s is lowest and highest on the rectangle."""
    points = [(z, s) for z in row.z for s in row.s]
    for z in row.z:  # where z / 2 (z^2 + s)^(-3/2) = -b
        s = _power(jnp.abs(z) / _positive(2 * jnp.abs(b)), 2 / 3) - z * z
        points.append((z, jnp.clip(jax.lax.stop_gradient(s), *row.s)))
    for s in row.s:  # where s (z^2 + s)^(-3/2) = a
        z = jnp.sqrt(jnp.maximum(_power(s / _positive(jnp.abs(a)), 2 / 3) - s, 0))
        points += [(jnp.clip(jax.lax.stop_gradient(sign * z), *row.z), s) for sign in (-1, 1)]
    z, s = (jnp.stack([jnp.broadcast_to(v, a.shape) for v in part]) for part in zip(*points, strict=True))
    return z, s


def _positive(x: Array) -> Array:
    return jnp.maximum(x, jnp.finfo(x.dtype).tiny)


def _power(x: Array, exponent: float) -> Array:
    return _positive(x) ** exponent


def _bounded(row_of: Callable[[Interval, Array], _Row]) -> Nonlinear:
    """The rule of a normalisation."""

    def interval(x: Interval, eps: Array) -> Interval:
        row = row_of(x, eps)
        invalid, unbounded = (
            jnp.any(test(x.lower) | test(x.upper), axis=-1, keepdims=True) for test in (jnp.isnan, jnp.isinf)
        )
        invalid |= jnp.any(jnp.isinf(x.lower) & (x.lower == x.upper), axis=-1, keepdims=True)  # inf / inf
        at_most = jnp.where(invalid, jnp.nan, row.factor)
        return Interval(
            *(jnp.where(unbounded, sign * at_most, end) for sign, end in zip((-1, 1), _interval(row), strict=True))
        )

    return mixing(interval, lambda x, eps: _planes(row_of(x, eps)))


def _rms_norm(x: Array, eps: Array) -> Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps)


def _layer_norm(x: Array, eps: Array) -> Array:
    return _rms_norm(x - jnp.mean(x, axis=-1, keepdims=True), eps)


rms_norm = whole(_rms_norm, "rms_norm", _bounded(_plain))
layer_norm = whole(_layer_norm, "layer_norm", _bounded(_centered))
