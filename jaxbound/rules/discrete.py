"""Decisions, and the integers and booleans that come of them: comparisons, logic, conversions, choices.

An Interval of booleans or integers says that any value between its ends may occur; [False, True] is an open decision.
Linear bounds know the floats that hang on them by constants alone; selections, in `selection`, are the exception.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxbound.rules.registry import Enclosed, refuse, register
from jaxbound.sets import Array, Interval, bounding_box, is_set


def is_bool(dtype: Any) -> bool:
    """Whether a type is that of booleans."""
    return jnp.issubdtype(dtype, jnp.bool_)


def extremes(dtype: Any) -> tuple[Any, Any]:
    """The least and the greatest value of a type."""
    if is_bool(dtype):
        return False, True
    info = jnp.iinfo(dtype) if jnp.issubdtype(dtype, jnp.integer) else None
    return (-math.inf, math.inf) if info is None else (info.min, info.max)


def as_box(x: Any) -> Interval:
    """A set's bounding box; an array as the interval that holds only it."""
    return bounding_box(x) if is_set(x) else Interval(x, x)


def negated(x: Any, **_: Any) -> Any:
    """The mirror image -x, of an interval or an array."""
    return Interval(-x.upper, -x.lower) if isinstance(x, Interval) else -x


def hull(*boxes: Interval) -> Interval:
    """The smallest interval that contains all of them."""
    lowers, uppers = zip(*boxes, strict=True)
    return Interval(functools.reduce(jnp.minimum, lowers), functools.reduce(jnp.maximum, uppers))


def _unknown(like: Array) -> Interval:
    """All values of an array's type."""
    return Interval(*(jnp.full_like(like, end) for end in extremes(jnp.result_type(like))))


def where_known(known: Array, box: Interval) -> Interval:
    """The interval where it is known, elsewhere all values of its type."""
    return Interval(*(jnp.where(known, *ends) for ends in zip(box, _unknown(box.lower), strict=True)))


# Comparisons and logic. Each result grows, or falls, with each operand.


def _both(holds: Callable[[Interval, Interval], Interval]) -> Enclosed:
    return Enclosed(lambda x, y, **_: holds(as_box(x), as_box(y)))


def _less(x: Interval, y: Interval) -> Interval:
    return Interval(x.upper < y.lower, x.lower < y.upper)


def _at_most(x: Interval, y: Interval) -> Interval:
    return Interval(x.upper <= y.lower, x.lower <= y.upper)


def _equal(x: Interval, y: Interval) -> Interval:
    return Interval((x.upper <= y.lower) & (y.upper <= x.lower), (x.lower <= y.upper) & (y.lower <= x.upper))


def _opposite(x: Interval) -> Interval:
    return Interval(~x.upper, ~x.lower)


register("lt", _both(_less))
register("gt", _both(lambda x, y: _less(y, x)))
register("le", _both(_at_most))
register("ge", _both(lambda x, y: _at_most(y, x)))
register("eq", _both(_equal))
register("ne", _both(lambda x, y: _opposite(_equal(x, y))))


def _at_most_in_total(x: Interval, y: Interval) -> Interval:
    """In the total order -0 is less than 0."""
    return Interval((x.upper < y.lower) | ((x.upper == y.lower) & (y.lower != 0)), x.lower <= y.upper)


register("le_to", _both(_at_most_in_total))
register("lt_to", _both(lambda x, y: Interval(x.upper < y.lower, x.lower <= y.upper)))


def _is_finite(x: Interval) -> Interval:
    return Interval(jnp.isfinite(x.lower) & jnp.isfinite(x.upper), jnp.ones_like(x.lower, bool))


register("is_finite", Enclosed(_is_finite))
# x != x: what lies between finite ends is a number.
register("is_nan", Enclosed(lambda x, **_: Interval(jnp.zeros_like(x.lower, bool), ~_is_finite(x).lower)))


def _logic(fn: Callable) -> Enclosed:
    """A function of two booleans takes its extremes at corners."""

    def interval(x: Any, y: Any, **_: Any) -> Interval:
        x, y = as_box(x), as_box(y)
        values = [fn(a, b) for a in x for b in y]
        boxes = [Interval(value, value) for value in values]
        return hull(*boxes) if is_bool(x.lower.dtype) else _unknown(values[0])

    return Enclosed(interval)


register("and", _logic(jnp.bitwise_and))
register("or", _logic(jnp.bitwise_or))
register("xor", _logic(jnp.bitwise_xor))
register("not", Enclosed(lambda x, **_: _opposite(x)))  # of an integer it is -1 - x


def _logic_of_all(fn: Callable) -> Enclosed:
    """A reduction of booleans; of integers it is one of their bits."""

    def interval(x: Interval, *, axes: Sequence[int], **_: Any) -> Interval:
        if is_bool(x.lower.dtype):
            return Interval(*(fn(end, axis=axes) for end in x))
        return _unknown(jnp.max(x.lower, axis=axes, initial=0))

    return Enclosed(interval)


register("reduce_and", _logic_of_all(jnp.all))
register("reduce_or", _logic_of_all(jnp.any))


# Integers.


def integers(interval: Callable[..., Interval], positions: tuple[int, ...] | None = None) -> Enclosed:
    """Arithmetic on integers by the intervals of real arithmetic; unknown where an end may leave the type's range."""

    def checked(*operands: Any, **params: Any) -> Interval:
        exact = interval(*operands, **params)
        least, greatest = extremes(jnp.result_type(exact.lower))
        wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), operands)
        lower, upper = interval(*wide, **params)
        # Rounded to float32 a number is off by a few parts in 10^7, and a sum by that of its largest part.
        safe = (lower >= 0.99 * least) & (upper <= 0.99 * greatest)
        return where_known(safe, exact)

    return Enclosed(checked, positions)


def _converted(x: Interval, *, new_dtype: Any, **_: Any) -> Interval:
    if jnp.issubdtype(new_dtype, jnp.floating) or is_bool(x.lower.dtype):
        return Interval(*(end.astype(new_dtype) for end in x))
    if is_bool(new_dtype):
        return _opposite(_equal(x, Interval(*(jnp.zeros_like(end) for end in x))))
    least, greatest = extremes(new_dtype)
    # What lies outside of the range, or has been rounded to its end, may become any value.
    safe = (x.lower.astype(float) > 0.999 * least - 1) & (x.upper.astype(float) < 0.999 * greatest)
    ends = (jnp.where(safe, jnp.trunc(end) if jnp.issubdtype(end.dtype, jnp.floating) else end, 0) for end in x)
    return where_known(safe, Interval(*(end.astype(new_dtype) for end in ends)))


CONVERTED = Enclosed(_converted, (0,))
refuse(
    "bitcast_convert_type shift_left shift_right_logical shift_right_arithmetic population_count clz reduce_xor",
    "it works on the bits of values that depend on a set, of which bounds say nothing.",
)


# Positions: which element is the largest, which comes first.


def reverse_order(x: Interval) -> Interval:
    """The image of a map that reverses the order, without overflow: -x, and -1 - x of integers."""
    return Interval(*((-end if jnp.issubdtype(end.dtype, jnp.floating) else ~end) for end in x[::-1]))


def _argmax_interval(x: Interval, *, axes: Sequence[int], index_dtype: Any, **_: Any) -> Interval:
    """From the first to the last element that may be the first of the largest ones."""
    (axis,) = axes
    count, least = x.lower.shape[axis], extremes(x.lower.dtype)[0]
    passed = jax.lax.cummax(x.lower.astype(jnp.result_type(x.lower, jnp.int8)), axis=axis).astype(x.lower.dtype)
    passed = jax.lax.slice_in_dim(passed, 0, count - 1, axis=axis)
    # What is certain of elements further to the left, which win ties.
    before = jnp.concatenate([jnp.full_like(jax.lax.slice_in_dim(x.lower, 0, 1, axis=axis), least), passed], axis=axis)
    possible = (x.upper >= jnp.max(x.lower, axis=axis, keepdims=True)) & ((x.upper > before) | (before == least))
    first, from_end = (jnp.argmax(marks, axis=axis) for marks in (possible, jnp.flip(possible, axis)))
    return Interval(first.astype(index_dtype), (count - 1 - from_end).astype(index_dtype))


register("argmax", Enclosed(_argmax_interval))
register("argmin", Enclosed(lambda x, **params: _argmax_interval(reverse_order(x), **params)))
