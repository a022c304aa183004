"""The closest lines around functions of one variable, by their curvature. No primitive is named here.

Of all lines below f on an interval the one whose area to f is smallest is the one that touches f's convex envelope at
the midpoint, for the area falls with the height of the line there. So every shape here is a way to find that line, or
another one that touches the envelope, where `free` says which. Upper lines are lower ones of -f.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from jaxbound.rules.relaxation import (
    Affine,
    Freedom,
    Relaxation,
    Scalar,
    chord_slope,
    flipped,
    line,
    settled,
    support,
)
from jaxbound.sets import Array, Interval, midpoint

Critical = Callable[[Array], Sequence[Array]]
Pieces = Sequence[tuple[float, float]]


def convex(
    x: Interval, fn: Scalar, gradient: Scalar, free: Freedom | None = None, *, at: Array | None = None
) -> Relaxation:
    """Tangent below (at the midpoint unless given), chord above, for f convex on the interval."""
    if free is not None:
        at = jnp.clip(x.lower + free.lower * (x.upper - x.lower), x.lower, x.upper)
    (point,) = settled(midpoint(x) if at is None else at)
    below, _ = support(fn, gradient(point), (point,))
    _, above = support(fn, chord_slope(x, fn, gradient), (x.lower, x.upper))
    return Relaxation(below, above)


def concave(x: Interval, fn: Scalar, gradient: Scalar, free: Freedom | None = None) -> Relaxation:
    """Chord below, tangent above, for f concave on the interval."""
    return mirrored(convex)(x, fn, gradient, free)


def mirrored(shape: Callable[..., Relaxation]) -> Callable[..., Relaxation]:
    """The shape of -f from that of f."""

    def lines(x: Interval, fn: Scalar, gradient: Scalar, free: Freedom | None = None) -> Relaxation:
        turned = None if free is None else Freedom(free.upper, free.lower)
        return flipped(shape(x, lambda v: -fn(v), lambda v: -gradient(v), turned))

    return lines


def sigmoidal(x: Interval, fn: Scalar, gradient: Scalar, free: Freedom | None = None) -> Relaxation:
    """The lines around f convex below 0 and concave above it (tanh, logistic, erf, atan ...)."""
    return bent(x, fn, gradient, free, inflections=(-math.inf, 0.0))


def bent(
    x: Interval, fn: Scalar, gradient: Scalar, free: Freedom | None = None, *, inflections: tuple[float, float]
) -> Relaxation:
    """The lines around f concave, convex and concave again, with the inflections in between.

    The slopes on the two concave pieces do not overlap (as those of silu, which are negative left, above 1 right): no
    line touches both.
    """
    left, right = inflections
    parts = free or Freedom(None, None)
    below = _lowest_line(x, (fn, gradient), parts.lower, [(left, right)])
    outer = [(-math.inf, left), (right, math.inf)]
    above = _lowest_line(x, (lambda v: -fn(v), lambda v: -gradient(v)), parts.upper, outer)
    return Relaxation(below, line(-above.slopes[0], -above.intercept))


def _lowest_line(x: Interval, curve: tuple[Scalar, Scalar], part: Array | None, pieces: Pieces) -> Affine:
    """The line that touches the convex envelope at the midpoint, of f convex on the pieces and concave between them.

    The tangents at some points of one piece lie below all of f, and the one nearest to the midpoint is meant (or the
    one at the given part of the way between the first and the last); if there are none, the envelope is the chord.
    """
    fn, gradient = curve
    point, is_tangent = midpoint(x), jnp.zeros(jnp.shape(x.lower), bool)
    for low, high in pieces:
        if low < high:
            first, last = _tangent_points(x, curve, low, high)
            (usable,) = settled(first <= last)
            first, last = (jnp.where(usable, end, midpoint(x)) for end in (first, last))
            chosen = midpoint(x) if part is None else first + part * (last - first)
            point = jnp.where(usable, jnp.clip(chosen, first, last), point)
            is_tangent |= usable
    slope = jnp.where(is_tangent, gradient(point), chord_slope(x, fn, gradient))
    return support(fn, slope, (x.lower, x.upper, jnp.where(is_tangent, point, x.upper)))[0]


def _tangent_points(x: Interval, curve: tuple[Scalar, Scalar], low: float, high: float) -> tuple[Array, Array]:
    """First and last point of a convex piece whose tangents lie below f at both ends; (inf, -inf) if there are none.

    Within the piece tangents lie below f anyhow, and beyond it f is concave: what holds at the ends holds everywhere.
    """
    fn, gradient = curve
    start, stop = (jnp.clip(end, x.lower, x.upper) for end in (low, high))

    def above(end: Array, point: Array) -> Array:
        return fn(point) + gradient(point) * (end - point) > fn(end)

    def search(end: Array, good: Array, bad: Array) -> Array:
        """Between a point whose tangent lies below f at the end and one where it may not, the last that does."""

        def halve(_: int, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
            good, bad = bracket
            middle = (good + bad) / 2
            wrong = above(end, middle)
            return jnp.where(wrong, good, middle), jnp.where(wrong, middle, bad)

        bracket = jax.lax.stop_gradient((good, bad))
        point, _ = jax.lax.fori_loop(0, jnp.finfo(good.dtype).nmant, halve, bracket)
        return _implicit(point, end, curve)

    first, last = start, stop
    if math.isfinite(low):
        from_left = jnp.where(above(x.lower, stop), jnp.inf, search(x.lower, stop, start))
        first = jnp.where(x.lower >= low, x.lower, from_left)
    if math.isfinite(high):
        from_right = jnp.where(above(x.upper, start), -jnp.inf, search(x.upper, start, stop))
        last = jnp.where(x.upper <= high, x.upper, from_right)
    inside = (x.lower < high) & (x.upper > low)
    return jnp.where(inside, first, jnp.inf), jnp.where(inside, last, -jnp.inf)


def _implicit(point: Array, end: Array, curve: tuple[Scalar, Scalar]) -> Array:
    """Gives the root p of f'(p)(p - e) = f(p) - f(e) its derivative with respect to e, by one Newton step."""
    fn, gradient = curve
    residual = gradient(point) * (point - end) - (fn(point) - fn(end))
    _, curvature = jax.jvp(gradient, (point,), (jnp.ones_like(point),))
    steepness = jax.lax.stop_gradient(curvature * (point - end))
    usable = jnp.abs(steepness) > jnp.finfo(point.dtype).tiny ** 0.5
    step = jnp.where(usable, residual / jnp.where(usable, steepness, 1), 0)
    return point - (step - jax.lax.stop_gradient(step))


def enveloped(
    x: Interval,
    fn: Scalar,
    gradient: Scalar,
    free: Freedom | None = None,
    *,
    critical: Critical,
    steepness: tuple[Array, Array],
) -> Relaxation:
    """The lines around f of any curvature, from its points of a given slope.

    Args:
      x: the interval.
      fn, gradient: the function and its derivative.
      free: how far the lines' slopes are from the lowest to the highest one.
      critical: slope -> all points of the real line where f' equals it or jumps over it (extra points do no harm).
      steepness: numbers between which f' lies.
    """
    low, high = steepness
    parts = free or Freedom(None, None)
    below = _envelope_line(x, (fn, gradient), parts.lower, (critical, low, high))
    turned = (lambda v: -fn(v), lambda v: -gradient(v))
    above = _envelope_line(x, turned, parts.upper, (lambda s: critical(-s), -high, -low))
    return Relaxation(below, line(-above.slopes[0], -above.intercept))


def _envelope_line(
    x: Interval, curve: tuple[Scalar, Scalar], part: Array | None, slopes: tuple[Critical, Array, Array]
) -> Affine:
    """The line that touches the convex envelope at the midpoint, by bisection over its slope, or that of a given slope.

    The lowest line of slope s touches f at a point that moves to the right as s grows.
    """
    fn, gradient = curve
    critical, low, high = slopes
    at = midpoint(x)

    def candidates(slope: Array) -> list[Array]:
        # f(p) - s p is stationary at an inner point, so that such a point needs no derivative of its own.
        inner = [jax.lax.stop_gradient(point) for point in critical(slope)]
        return [x.lower, x.upper, *(jnp.clip(point, x.lower, x.upper) for point in inner)]

    def touch(slope: Array) -> Array:
        points = jnp.stack(candidates(slope))
        lowest = jnp.argmin(fn(points) - slope * points, axis=0)
        return jnp.take_along_axis(points, lowest[None], axis=0)[0]

    def halve(_: int, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = (low + high) / 2
        left = touch(middle) < at
        return jnp.where(left, middle, low), jnp.where(left, high, middle)

    if part is not None:
        slope = low + part * (high - low)
        return support(fn, slope, candidates(slope))[0]
    bracket = tuple(jnp.broadcast_to(jnp.asarray(s, at.dtype), at.shape) for s in (low, high))
    # To half the digits: a slope that is off costs tightness by as much, soundness nothing.
    low, high = jax.lax.stop_gradient(jax.lax.fori_loop(0, jnp.finfo(at.dtype).nmant // 2 + 6, halve, bracket))
    left, right = touch(low), touch(high)
    # One point on each side of `at`, or both at `at`, where the curve itself is its envelope.
    (apart,) = settled(right - left > 1e-3 * (x.upper - x.lower))
    bridge = (fn(right) - fn(left)) / jnp.where(apart, right - left, 1)
    slope = jnp.where(apart, bridge, gradient(at))
    return support(fn, slope, candidates(slope))[0]
