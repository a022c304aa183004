"""Affine functions around nonlinear ones: the geometry that every relaxation is made of. No primitive is named here.

Every line is made sound in the same way: whatever its slope, its intercept is the extreme of f(x) - slope * x over the
points where that extreme can lie. A poor slope therefore costs tightness, never soundness. This needs slope and
intercept to agree on which branch they took: see `settled`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

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


def open_elements(lines: Relaxation) -> Array | None:
    """Where the two lines of an elementwise relaxation differ; None where elements have no slopes of their own."""
    shape = jnp.shape(lines.upper.intercept)
    if any(jnp.shape(x) != shape for side in lines for x in jax.tree.leaves(side.slopes)):
        return None
    below, above = ((*side.slopes, 0 if side.intercept is None else side.intercept) for side in lines)
    return functools.reduce(jnp.logical_or, (jnp.not_equal(a, b) for a, b in zip(below, above, strict=True)))


class Freedom(NamedTuple):
    """What is left free in the lines of a node, numbers in [0, 1]; every choice of them gives a relaxation.

    For a curve which of its tangents is taken, from the first to the last that bound it, or which slope; elsewhere the
    weight of a second line, or plane, against a first one.

    Attributes:
      lower, upper: for the two lines, of the shape of the node's result unless its rule says otherwise.
    """

    lower: Array
    upper: Array


def zero(like: Array) -> Array:
    """An intercept that is known to be zero while a program is traced."""
    return np.zeros((), jnp.result_type(like))


def is_zero(x: Array) -> bool:
    """Whether a value is known to be zero while a program is traced."""
    return isinstance(x, np.ndarray | np.generic | float | int) and not np.any(x)


@jax.custom_jvp
def settled(*values: Any) -> tuple[Any, ...]:
    """The same values, computed once for all their uses.

    A compiler may compute a value again wherever it is used, rounded differently each time. Where a comparison near a
    tie is computed twice, or a slope most of whose digits cancel, slope and intercept no longer belong to one another:
    no bound at all. XLA drops its own barriers before it decides what to compute again, but what a loop has carried, it
    cannot but take from there.
    """

    def carry(step: int, carried: tuple[Any, ...]) -> tuple[Any, ...]:
        return jax.tree.map(lambda value, old: jnp.where(step == 0, value, old), values, carried)

    return jax.lax.fori_loop(0, 2, carry, jax.tree.map(jnp.asarray, values))


@settled.defjvp
def _settled_jvp(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Any, Any]:
    return settled(*primals), tuple(tangents)


@jax.custom_jvp
def lowest(*values: Array) -> Array:
    """The least of some values, with the derivative of one that is least.

    For values that tie by their nature, as a chord's two ends do. The derivative of a `minimum` compares once for each
    of its operands; of comparisons that are rounded differently both may win or none, and the derivative be anything.
    """
    return functools.reduce(jnp.minimum, values)


@lowest.defjvp
def _lowest_jvp(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
    least, index = primals[0], np.int8(0)
    for k, value in enumerate(primals[1:], 1):
        index, least = jnp.where(value < least, np.int8(k), index), jnp.minimum(value, least)
    if len(primals) > 1:
        (index,) = settled(index)
    tangent = functools.reduce(lambda t, k: jnp.where(index == k, tangents[k], t), range(1, len(tangents)), tangents[0])
    return lowest(*primals), jnp.broadcast_to(tangent, jnp.shape(least))


def highest(*values: Array) -> Array:
    """The greatest of some values that tie by their nature: see `lowest`."""
    return -lowest(*(-value for value in values))


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
    return line(slope, lowest(*offsets)), line(slope, highest(*offsets))


def flipped(relaxation: Relaxation) -> Relaxation:
    """A relaxation of f from one of -f."""
    lower, upper = (jax.tree.map(jnp.negative, side) for side in (relaxation.upper, relaxation.lower))
    return Relaxation(lower, upper)


def choose(condition: Array, first: Relaxation, second: Relaxation) -> Relaxation:
    """Elementwise choice between two relaxations of the same operands."""
    (condition,) = settled(condition)
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), first, second)
