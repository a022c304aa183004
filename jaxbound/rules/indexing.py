"""Sorting, and reading at positions that depend on a set: known by intervals alone."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxbound.rules.discrete import as_box, extremes, hull, reverse_order
from jaxbound.rules.registry import Enclosed, register
from jaxbound.sets import Array, Interval

# Order.


def _ranks(keys: Interval, stable: bool) -> Interval:
    """The positions that each element may have once the last axis is sorted."""
    size = keys.lower.shape[-1]
    first, second = (Interval(*(jnp.expand_dims(end, axis) for end in keys)) for axis in (-1, -2))
    earlier = jnp.arange(size)[:, None] < jnp.arange(size)
    precedes = first.upper < second.lower  # [..., i, j]: element i certainly comes before element j
    precedes |= (first.upper <= second.lower) & earlier & stable
    return Interval(jnp.sum(precedes, axis=-2), size - 1 - jnp.sum(precedes, axis=-1))


def _placed(ranks: Interval, values: Interval) -> Interval:
    """The hull, for each position, of the values of all elements that may come there."""
    positions = jnp.arange(values.lower.shape[-1])
    possible = (ranks.lower[..., None] <= positions) & (positions <= ranks.upper[..., None])
    least, greatest = (jnp.asarray(end, values.lower.dtype) for end in extremes(values.lower.dtype))
    return Interval(
        jnp.min(jnp.where(possible, values.lower[..., None], greatest), axis=-2),
        jnp.max(jnp.where(possible, values.upper[..., None], least), axis=-2),
    )


def _sort_interval(*operands: Any, dimension: int, is_stable: bool, num_keys: int, **_: Any) -> list[Interval]:
    """Sorted ends of one key; what is sorted along, wherever its element may come to lie."""
    boxes = [as_box(x) for x in operands]
    keys = Interval(*(jnp.sort(end, axis=dimension) for end in boxes[0]))
    if len(boxes) == 1:
        return [keys]
    boxes = [Interval(*(jnp.moveaxis(end, dimension, -1) for end in box)) for box in boxes]
    # Several keys: the first decides unless it ties, so of a tie the order is taken for unknown.
    ranks = _ranks(boxes[0], stable=is_stable and num_keys == 1)
    placed = [_placed(ranks, box) for box in boxes[1:]]
    return [keys, *(Interval(*(jnp.moveaxis(end, -1, dimension) for end in box)) for box in placed)]


def _top_k_interval(x: Interval, *, k: int, axis: int = -1, **_: Any) -> list[Interval]:
    """The largest ends; the positions of all elements that may be among them."""
    mirrored = reverse_order(Interval(*(jnp.moveaxis(end, axis, -1) for end in x)))
    values = reverse_order(Interval(*(jnp.sort(end, axis=-1)[..., :k] for end in mirrored)))
    index = jnp.broadcast_to(jnp.arange(mirrored.lower.shape[-1], dtype=jnp.int32), mirrored.lower.shape)
    ranks = _ranks(mirrored, stable=not jnp.issubdtype(mirrored.lower.dtype, jnp.floating))  # -0 comes behind 0
    found = _placed(ranks, Interval(index, index))
    indices = Interval(*(end[..., :k] for end in found))
    return [Interval(*(jnp.moveaxis(end, -1, axis) for end in box)) for box in (values, indices)]


register("sort", Enclosed(_sort_interval))
register("top_k", Enclosed(_top_k_interval, (0,)))


# Positions.


def _slice_interval(x: Any, *starts: Any, slice_sizes: Sequence[int]) -> Interval:
    """The hull over all starts, an axis at a time."""
    box = as_box(x)
    least, greatest = (jnp.asarray(end, box.lower.dtype) for end in extremes(box.lower.dtype))
    for axis, (start, size) in enumerate(zip(starts, slice_sizes, strict=True)):
        count = box.lower.shape[axis] - size + 1
        index = jnp.arange(count)[:, None] + jnp.arange(size)
        first, last = (jnp.clip(end, 0, count - 1) for end in as_box(start))
        possible = (first <= jnp.arange(count)) & (jnp.arange(count) <= last)
        possible = possible.reshape(-1, *(1,) * (box.lower.ndim - axis))
        windows = Interval(*(jnp.take(end, index, axis=axis) for end in box))
        box = Interval(
            jnp.min(jnp.where(possible, windows.lower, greatest), axis=axis),
            jnp.max(jnp.where(possible, windows.upper, least), axis=axis),
        )
    return box


SLICED = Enclosed(_slice_interval)


def _gather_interval(
    x: Any, indices: Any, *, dimension_numbers: Any, slice_sizes: Sequence[int], mode: Any, fill_value: Any, **_: Any
) -> Interval:
    """The hull over all positions that the indices may name, one at a time."""
    box, where = as_box(x), as_box(indices)
    mapped = dimension_numbers.start_index_map
    counts = [box.lower.shape[axis] - slice_sizes[axis] + 1 for axis in mapped]
    fills = mode == jax.lax.GatherScatterMode.FILL_OR_DROP
    limits = jnp.asarray(counts) - 1
    first, last = (end if fills else jnp.clip(end, 0, limits) for end in where)

    def read(position: Array) -> Interval:
        at = jnp.broadcast_to(position.astype(where.lower.dtype), where.lower.shape)
        ends = (
            jax.lax.gather(end, at, dimension_numbers, slice_sizes, mode=jax.lax.GatherScatterMode.CLIP) for end in box
        )
        return Interval(*ends)

    def along_batch(flags: Array, like: Array) -> Array:
        batch = [axis for axis in range(like.ndim) if axis not in dimension_numbers.offset_dims]
        return jax.lax.broadcast_in_dim(flags, like.shape, batch)

    def widen(so_far: Interval, flat: Array) -> tuple[Interval, None]:
        position = jnp.stack(jnp.unravel_index(flat, counts))
        possible = jnp.all((first <= position) & (position <= last), axis=-1)
        return _hull_where(along_batch(possible, so_far.lower), so_far, read(position)), None

    shape = jax.eval_shape(read, limits).lower
    least, greatest = extremes(shape.dtype)
    empty = Interval(jnp.full(shape.shape, greatest, shape.dtype), jnp.full(shape.shape, least, shape.dtype))
    found = jax.lax.scan(widen, empty, jnp.arange(math.prod(counts)))[0]
    if not fills:
        return found
    outside = jnp.any((first < 0) | (last > limits), axis=-1)
    filled = jnp.full_like(found.lower, _fill(fill_value, shape.dtype))
    return _hull_where(along_batch(outside, found.lower), found, Interval(filled, filled))


def _hull_where(condition: Array, box: Interval, other: Interval) -> Interval:
    return Interval(*(jnp.where(condition, a, b) for a, b in zip(hull(box, other), box, strict=True)))


def _fill(value: Any, dtype: Any) -> Any:
    """What `jax.lax.gather` fills in unless it is told: NaN, which bounds nothing, and the extremes of integers."""
    if value is not None:
        return value
    if jnp.issubdtype(dtype, jnp.floating):
        return math.nan
    least, greatest = extremes(dtype)
    return greatest if least == 0 else least


GATHERED = Enclosed(_gather_interval)
