"""Sums, extremes over axes and windows, and running extremes."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbound.rules.arithmetic import corners
from jaxbound.rules.discrete import as_box, integers, negated
from jaxbound.rules.registry import Enclosed, Linear, Nonlinear, register
from jaxbound.rules.relaxation import Affine, Freedom, Relaxation, flipped, line, settled
from jaxbound.sets import Array, Interval


def _summed(x: Interval, *, axes: tuple[int, ...], **_: Any) -> Interval:
    return Interval(*(jnp.sum(end, axis=axes, dtype=end.dtype) for end in x))


def _running_sum(x: Interval, *, axis: int, reverse: bool, **_: Any) -> Interval:
    return Interval(*(jax.lax.cumsum(end, axis=axis, reverse=reverse) for end in x))


register("reduce_sum", Linear((0,)), integers(_summed))
register("reduce_window_sum", Linear((0,)))
register("cumsum", Linear((0,)), integers(_running_sum))


# Maximum over axes: lower, the element with the largest lower end, or a weighted mean of elements; upper, that element
# if it dominates all others, else the largest upper end.


def _weighted_sum(slopes: tuple[Array], x: Array, *, axes: tuple[int, ...], **_: Any) -> Array:
    return jnp.sum(slopes[0] * x, axis=axes)


def _relax_max(x: Interval, axes: tuple[int, ...], free: Freedom | None = None, **_: Any) -> Relaxation:
    kept = [axis for axis in range(x.lower.ndim) if axis not in axes]
    order = (*kept, *axes)
    lower, upper = (jnp.transpose(end, order).reshape(*(end.shape[axis] for axis in kept), -1) for end in x)
    chosen = jax.nn.one_hot(jnp.argmax(lower, axis=-1), lower.shape[-1], dtype=lower.dtype)
    rival = jnp.max(jnp.where(chosen > 0, -jnp.inf, upper), axis=-1)
    dominates, chosen = settled(jnp.max(lower, axis=-1) >= rival, chosen)
    top = jnp.where(dominates, 0, jnp.max(upper, axis=-1))

    def restore(weights: Array) -> Array:
        shape = [x.lower.shape[axis] for axis in order]
        return jnp.transpose(weights.reshape(shape), [order.index(axis) for axis in range(len(order))])

    weights = restore(chosen) if free is None else _mean_weights(restore(chosen), free.lower, axes)
    return Relaxation(line(weights, jnp.zeros_like(top)), line(restore(chosen * dominates[..., None]), top))


def _mean_weights(chosen: Array, free: Array, axes: tuple[int, ...]) -> Array:
    """Weights of a mean: the chosen element alone where all that is free is zero, the others' share where it grows."""
    shares = chosen * (1 - free) + (1 - chosen) * free
    total = jnp.sum(shares, axis=axes, keepdims=True)
    return jnp.where(total > 0, shares / jnp.where(total > 0, total, 1), chosen)


def _relax_min(x: Interval, free: Freedom | None = None, **params: Any) -> Relaxation:
    mirrored = _relax_max(negated(x), free=None if free is None else Freedom(*free[::-1]), **params)
    # min(x) = -max(-x): the slopes meet two sign changes, the intercepts one.
    sides = flipped(mirrored)
    return Relaxation(*(Affine(tuple(-s for s in side.slopes), side.intercept) for side in sides))


def _reduced(reduce: Any) -> Any:
    return lambda x, *, axes, **_: Interval(reduce(x.lower, axis=axes), reduce(x.upper, axis=axes))


def _every_element(x: Interval, **_: Any) -> tuple[int, ...]:
    return x.lower.shape


def _extreme(name: str, reduce: Any, relax: Any) -> None:
    interval = _reduced(reduce)
    register(name, Nonlinear(interval, relax, (0,), _weighted_sum, _every_element), Enclosed(interval))


_extreme("reduce_max", jnp.max, _relax_max)
_extreme("reduce_min", jnp.min, _relax_min)


# Pooling: a window is an axis once the shifted copies of the input are stacked.


def _windows(x: Array, fill: float, params: dict[str, Any]) -> Array:
    """All elements under each window: [prod(window), *out]."""
    sizes, strides = params["window_dimensions"], params["window_strides"]
    spread, dilation = params["base_dilation"], params["window_dilation"]
    edges = [(low, high, step - 1) for (low, high), step in zip(params["padding"], spread, strict=True)]
    padded = jax.lax.pad(x, jnp.asarray(fill, x.dtype), edges)
    reach = [(size - 1) * step for size, step in zip(sizes, dilation, strict=True)]
    copies = []
    for corner in np.ndindex(*sizes):
        start = [k * step for k, step in zip(corner, dilation, strict=True)]
        stop = [n - r + s for n, r, s in zip(padded.shape, reach, start, strict=True)]
        copies.append(jax.lax.slice(padded, start, stop, strides))
    return jnp.stack(copies)


def _pooled(fill: float, reduce: Any) -> Any:
    def interval(x: Interval, **params: Any) -> Interval:
        return Interval(*(reduce(_windows(end, fill, params), axis=0) for end in x))

    return interval


def _relax_pool(x: Interval, *, fill: float, relax: Any, free: Freedom | None = None, **params: Any) -> Relaxation:
    # Padding must not take part: at the far end of the order, but finite, for a slope of 0 must cancel it.
    far = jnp.finfo(x.lower.dtype).max / 4 * np.sign(fill)
    if free is not None:
        inside = _windows(jnp.ones_like(x.lower), 0.0, params)
        free = Freedom(*(part * inside for part in free))
    return relax(Interval(*(_windows(end, far, params) for end in x)), axes=(0,), free=free)


def _every_window(x: Interval, **params: Any) -> tuple[int, ...]:
    return jax.eval_shape(lambda end: _windows(end, 0.0, params), x.lower).shape


def _weighted_windows(slopes: tuple[Array], x: Array, **params: Any) -> Array:
    return jnp.sum(slopes[0] * _windows(x, 0.0, params), axis=0)


def _pool(name: str, fill: float, reduce: Any, relax: Any) -> None:
    lines = functools.partial(_relax_pool, fill=fill, relax=relax)
    register(name, Nonlinear(_pooled(fill, reduce), lines, (0,), _weighted_windows, _every_window))


_pool("reduce_window_max", -np.inf, jnp.max, _relax_max)
_pool("reduce_window_min", np.inf, jnp.min, _relax_min)


# Running extremes: the element itself where it is the extreme so far, else a constant.


def _running(name: str, fn: Any) -> None:
    def interval(x: Interval, **params: Any) -> Interval:
        return Interval(*(fn(end, axis=params["axis"], reverse=params["reverse"]) for end in x))

    def relax(x: Interval, **params: Any) -> Relaxation:
        result, zeros = interval(x, **params), jnp.zeros_like(x.lower)
        side = 0 if name == "cummax" else 1  # where the element itself is a bound
        (own,) = settled(x[side] == result[side])
        lines = [line(zeros, extreme) for extreme in result]
        lines[side] = line(jnp.where(own, 1, zeros), jnp.where(own, 0, result[side]))
        return Relaxation(*lines)

    register(name, Nonlinear(interval, relax, (0,)), Enclosed(interval, (0,)))


_running("cummax", jax.lax.cummax)
_running("cummin", jax.lax.cummin)


# Running and whole products, and running sums of exponentials.


def _running_product(x: Interval, *, axis: int, reverse: bool = False, **_: Any) -> Interval:
    return jax.lax.associative_scan(corners, x, axis=axis, reverse=reverse)


def _product(x: Interval, *, axes: tuple[int, ...], **_: Any) -> Interval:
    for axis in sorted(axes, reverse=True):
        if x.lower.shape[axis] == 0:
            x = Interval(*(jnp.prod(end, axis=axis) for end in x))
        else:
            x = Interval(*(end.take(-1, axis=axis) for end in _running_product(x, axis=axis)))
    return x


def _of_numbers(interval: Callable[..., Interval]) -> Enclosed:
    """Floats by an interval function, integers by the same with an eye on their range."""
    counted = integers(interval, (0,))

    def either(x: Interval, **params: Any) -> Interval | list[Interval]:
        return (interval if jnp.issubdtype(x.lower.dtype, jnp.floating) else counted.interval)(x, **params)

    return Enclosed(either, (0,))


def _running_log_sum(x: Interval, *, axis: int, reverse: bool, **_: Any) -> Interval:
    return Interval(*(jax.lax.cumlogsumexp(end, axis=axis, reverse=reverse) for end in x))


register("cumprod", _of_numbers(_running_product))
register("reduce_prod", _of_numbers(_product))
register("cumlogsumexp", Enclosed(_running_log_sum, (0,)))


# Derivatives of pooling: each window gives to, or takes from, the element that it selects.


def _selected(x: Interval, params: dict[str, Any]) -> tuple[Interval, dict[str, Any]]:
    """Whether each element under each window is the one selected, as an open decision; the windows' parameters."""
    rank = x.lower.ndim
    params = {"base_dilation": (1,) * rank, "window_dilation": (1,) * rank, **params}
    if params["select_prim"].name == "le":
        x = negated(x)
    lower, upper = (_windows(end, -np.inf, params) for end in x)
    inside = _windows(jnp.ones_like(x.lower), 0.0, params) > 0
    largest = jnp.max(lower, axis=0)
    # It is the only one that can be the largest: ties are left open.
    rivals = jnp.sum((upper >= largest) & inside, axis=0)
    possible = (upper >= largest) & inside
    return Interval(possible & (rivals == 1), possible), params


def _scatter_selected(source: Any, operand: Any, **params: Any) -> Interval:
    source, operand = as_box(source), as_box(operand)
    chosen, params = _selected(operand, params)
    give = jax.linear_transpose(lambda x: _windows(x, 0.0, params), operand.lower)
    lower = jnp.where(chosen.lower, source.lower, jnp.where(chosen.upper, jnp.minimum(source.lower, 0), 0))
    upper = jnp.where(chosen.lower, source.upper, jnp.where(chosen.upper, jnp.maximum(source.upper, 0), 0))
    return Interval(*(give(end)[0] for end in (lower, upper)))


def _gather_selected(tangents: Any, operand: Any, **params: Any) -> Interval:
    tangents, operand = as_box(tangents), as_box(operand)
    chosen, params = _selected(operand, params)
    lower, upper = (_windows(end, 0.0, params) for end in tangents)
    return Interval(
        jnp.min(jnp.where(chosen.upper, lower, jnp.inf), axis=0),
        jnp.max(jnp.where(chosen.upper, upper, -jnp.inf), axis=0),
    )


register("select_and_scatter_add", Enclosed(_scatter_selected))
register("select_and_gather_add", Enclosed(_gather_selected))
