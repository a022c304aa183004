"""Affine functions around nonlinear ones: the geometry that every relaxation is made of. No primitive is named here.

Every line is made sound in the same way: whatever its slope, its intercept is the extreme of f(x) - slope * x over the
points where that extreme can lie. A poor slope therefore costs tightness, never soundness. This needs slope and
intercept to agree on which branch they took: see `settled`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbound.sets import Array, Interval, midpoint

Scalar = Callable[[Array], Array]  # an elementwise function of one array


class Affine(NamedTuple):
    """x_1, ..., x_n -> sum_i slopes[i] * x_i + intercept, elementwise unless the rule says how to read it.

    An intercept may be `zero`, which is known without looking at numbers, if the slopes are finite on every interval.
    The bias of a backward bound is a sum over the intercepts of all nodes, to which this one adds nothing.
    """

    slopes: tuple[Array, ...]
    intercept: Array

    def __call__(self, *operands: Array) -> Array:
        """The value, elementwise."""
        return sum((s * x for s, x in zip(self.slopes, operands, strict=True)), start=self.intercept)


class Relaxation(NamedTuple):
    """A pair of affine functions with lower <= f <= upper wherever the operands lie in their intervals."""

    lower: Affine
    upper: Affine


def zero(like: Array) -> Array:
    """An intercept that is known to be zero while a program is traced."""
    return np.zeros((), jnp.result_type(like))


def is_zero(x: Array) -> bool:
    """Whether a value is known to be zero while a program is traced."""
    return isinstance(x, np.ndarray | np.generic | float | int) and not np.any(x)


def settled(*values: Array) -> tuple[Array, ...]:
    """The same values, computed once for all their uses.

    A compiler may compute a value again wherever it is used, rounded differently each time. Where a comparison near a
    tie is computed twice, a slope can then come from one branch and its intercept from the other: no bound at all.
    """
    return tuple(jax.lax.optimization_barrier(values))


def line(slope: Array, intercept: Array) -> Affine:
    """The affine function of one operand."""
    return Affine((slope,), intercept)


def constant(x: Interval, lower: Array, upper: Array) -> Relaxation:
    """Slopes of zero: lower <= f(x) <= upper."""
    flat = jnp.zeros_like(x.lower)
    return Relaxation(line(flat, lower), line(flat, upper))


def chord_slope(x: Interval, fn: Scalar, gradient: Scalar) -> Array:
    """The slope between an interval's ends, where they (nearly) coincide the derivative."""
    width = x.upper - x.lower
    narrow = ~(width > 64 * jnp.finfo(width.dtype).eps * jnp.maximum(jnp.abs(x.lower), jnp.abs(x.upper)))
    slope = (fn(x.upper) - fn(x.lower)) / jnp.where(narrow, 1, width)
    return jnp.where(narrow, gradient(midpoint(x)), slope)


def support(fn: Scalar, slope: Array, points: Sequence[Array]) -> tuple[Affine, Affine]:
    """The lines of a given slope through the lowest and the highest of the points (p, f(p))."""
    slope, *points = settled(slope, *points)
    offsets = [fn(point) - slope * point for point in points]
    lowest, highest = functools.reduce(jnp.minimum, offsets), functools.reduce(jnp.maximum, offsets)
    return line(slope, lowest), line(slope, highest)


def convex(x: Interval, fn: Scalar, gradient: Scalar, at: Array | None = None) -> Relaxation:
    """Tangent below (at the midpoint unless given), chord above, for f convex on the interval."""
    (point,) = settled(midpoint(x) if at is None else at)
    below, _ = support(fn, gradient(point), (point,))
    _, above = support(fn, chord_slope(x, fn, gradient), (x.lower, x.upper))
    return Relaxation(below, above)


def flipped(relaxation: Relaxation) -> Relaxation:
    """A relaxation of f from one of -f."""
    lower, upper = (jax.tree.map(jnp.negative, side) for side in (relaxation.upper, relaxation.lower))
    return Relaxation(lower, upper)


def concave(x: Interval, fn: Scalar, gradient: Scalar, at: Array | None = None) -> Relaxation:
    """Chord below, tangent above, for f concave on the interval."""
    return flipped(convex(x, lambda v: -fn(v), lambda v: -gradient(v), at))


def choose(condition: Array, first: Relaxation, second: Relaxation) -> Relaxation:
    """Elementwise choice between two relaxations of the same operands."""
    (condition,) = settled(condition)
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), first, second)


def sigmoidal(x: Interval, fn: Scalar, gradient: Scalar) -> Relaxation:
    """Tightest lines for f convex below 0 and concave above it (tanh, logistic, erf, atan ...).

    Where the chord is not valid, the line through one end that touches the curve on the other side of 0.
    """
    upper = _touching(x, fn, gradient)
    mirrored = Interval(-x.upper, -x.lower)
    lower = _touching(mirrored, lambda v: -fn(-v), lambda v: gradient(-v))
    # The mirror image's upper line -f(-v) <= s v + t says f(x) >= s x - t.
    return Relaxation(line(lower.slopes[0], -lower.intercept), upper)


def _touching(x: Interval, fn: Scalar, gradient: Scalar) -> Affine:
    """The upper line of `sigmoidal`."""
    right = jnp.maximum(x.upper, 0)

    def too_flat(point: Array) -> Array:
        # The tangent at `point` passes above f(lower): the touching point lies further left.
        return gradient(point) * (point - x.lower) < fn(point) - fn(x.lower)

    def halve(_: int, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = (low + high) / 2
        left = too_flat(middle)
        return jnp.where(left, low, middle), jnp.where(left, middle, high)

    bracket = jax.lax.stop_gradient((jnp.zeros_like(right), right))
    _, point = jax.lax.fori_loop(0, jnp.finfo(right.dtype).nmant, halve, bracket)
    point = _implicit(point, x, fn, gradient)
    # Left of 0 the function is convex, so there the chord is above it; concave intervals take the midpoint's tangent.
    (touches,) = settled((x.lower < 0) & (x.upper > 0) & too_flat(right))
    point = jnp.where(x.lower >= 0, midpoint(x), jnp.where(touches, point, right))
    tangent = (x.lower >= 0) | touches
    slope = jnp.where(tangent, gradient(point), chord_slope(x, fn, gradient))
    inside = jnp.clip(point, jnp.minimum(jnp.maximum(x.lower, 0), x.upper), x.upper)
    candidates = (x.lower, x.upper, jnp.where(tangent, inside, x.upper))
    return support(fn, slope, candidates)[1]


def _implicit(point: Array, x: Interval, fn: Scalar, gradient: Scalar) -> Array:
    """Gives the root of g'(p)(p - l) = g(p) - g(l) its derivative with respect to l, by one Newton step."""
    residual = gradient(point) * (point - x.lower) - (fn(point) - fn(x.lower))
    _, curvature = jax.jvp(gradient, (point,), (jnp.ones_like(point),))
    steepness = jax.lax.stop_gradient(curvature * (point - x.lower))
    usable = jnp.abs(steepness) > jnp.finfo(point.dtype).tiny ** 0.5
    step = jnp.where(usable, residual / jnp.where(usable, steepness, 1), 0)
    return point - (step - jax.lax.stop_gradient(step))


def parallel(x: Interval, fn: Scalar, gradient: Scalar, critical: Callable[[Array], Sequence[Array]]) -> Relaxation:
    """Two lines of the chord's slope, as close to f as they can be.

    Args:
      x: the interval.
      fn, gradient: the function and its derivative.
      critical: slope -> all points of the real line where f' equals it (extra points do no harm).
    """
    slope = chord_slope(x, fn, gradient)
    inner = [jnp.clip(point, x.lower, x.upper) for point in critical(slope)]
    return Relaxation(*support(fn, slope, (x.lower, x.upper, *inner)))
