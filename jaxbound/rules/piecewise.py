"""Piecewise linear primitives: maxima, minima, absolute value, clipping, steps."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxbound.rules.registry import Nonlinear, register
from jaxbound.rules.relaxation import Affine, Relaxation, constant, convex, flipped, is_zero, line, settled
from jaxbound.sets import Array, Interval


def _box(x: Any) -> Interval:
    return x if isinstance(x, Interval) else Interval(x, x)


def _negated(x: Any) -> Any:
    return Interval(-x.upper, -x.lower) if isinstance(x, Interval) else -x


# max(x, y) = x + relu(y - x): one strategy serves ReLU, any constant threshold, and two sets.


def _max_interval(x: Any, y: Any, **_: Any) -> Interval:
    x, y = _box(x), _box(y)
    return Interval(jnp.maximum(x.lower, y.lower), jnp.maximum(x.upper, y.upper))


def _relax_max(x: Any, y: Any, *, relu: Any, **_: Any) -> Relaxation:
    if not isinstance(y, Interval):
        x, y = y, x  # the constant first
    if isinstance(x, Interval):
        return _relax_max_of_sets(x, y, relu)
    if not is_zero(x):
        x = jnp.maximum(x, y.lower - 1)  # any threshold below the interval is the same function; -inf has no lines
    lines = relu(Interval(y.lower - x, y.upper - x), 0.0)
    # max(x, y) = x + relu(y - x), whose lines are slope * (y - x) + intercept.
    return Relaxation(*(_shifted(side, x) for side in lines))


def _shifted(side: Affine, x: Array) -> Affine:
    """slope * (y - x) + intercept + x."""
    return side if is_zero(x) else line(side.slopes[0], side.intercept + x * (1 - side.slopes[0]))


def _relax_max_of_sets(x: Interval, y: Interval, relu: Any) -> Relaxation:
    lines = relu(Interval(y.lower - x.upper, y.upper - x.lower), 0.0)
    return Relaxation(*(Affine((1 - s.slopes[0], s.slopes[0]), s.intercept) for s in lines))


def _relax_min(x: Any, y: Any, *, relu: Any, **_: Any) -> Relaxation:
    """min(x, y) = -max(-x, -y)."""
    sides = flipped(_relax_max(_negated(x), _negated(y), relu=relu))
    return Relaxation(*(Affine(tuple(-slope for slope in side.slopes), side.intercept) for side in sides))


def _min_interval(x: Any, y: Any, **_: Any) -> Interval:
    x, y = _box(x), _box(y)
    return Interval(jnp.minimum(x.lower, y.lower), jnp.minimum(x.upper, y.upper))


register("max", Nonlinear(_max_interval, _relax_max))
register("min", Nonlinear(_min_interval, _relax_min))


# Clipping to constants.


def clip_interval(low: Array, x: Interval, high: Array, **_: Any) -> Interval:
    """clip(x, low, high) on an interval."""
    return Interval(jnp.clip(x.lower, low, high), jnp.clip(x.upper, low, high))


def relax_clip(low: Array, x: Interval, high: Array, **_: Any) -> Relaxation:
    """Exact where x stays on one piece; lines through the bends elsewhere.

    Above: from (lower, f(lower)) to the bend at `high`, or the constant `high`, whichever encloses less; below: its
    mirror image.
    """
    upper = _cap(x, low, high)
    mirrored = _cap(_negated(x), -jnp.asarray(high), -jnp.asarray(low))
    return Relaxation(line(mirrored.slopes[0], -mirrored.intercept), upper)


def _cap(x: Interval, low: Array, high: Array) -> Affine:
    """The upper line of a clip."""
    start, stop = jnp.clip(x.lower, low, high), jnp.clip(x.upper, low, high)
    bend = jnp.minimum(x.upper, jnp.maximum(high, x.lower))  # where the rising piece ends
    run = bend - x.lower
    rise = jnp.where(run > 0, (jnp.clip(bend, low, high) - start) / jnp.where(run > 0, run, 1), 0)
    (rises,) = settled((x.upper - bend) <= run)  # the longer part decides
    slope = jnp.where(rises, rise, 0)
    intercept = jnp.where(rises, start - rise * x.lower, stop)
    return line(slope, intercept)


register("clamp", Nonlinear(clip_interval, relax_clip, (1,)))


# Absolute value and steps.


def _abs_interval(x: Interval, **_: Any) -> Interval:
    low = jnp.maximum(jnp.maximum(x.lower, -x.upper), 0)
    return Interval(low, jnp.maximum(-x.lower, x.upper))


def _relax_abs(x: Interval, **_: Any) -> Relaxation:
    """The chord above; below x, -x, or zero where the interval crosses zero."""
    crossing = (x.lower < 0) & (x.upper > 0)
    at = jnp.where(crossing, 0, (x.lower + x.upper) / 2)
    return convex(x, jnp.abs, jnp.sign, at)


register("abs", Nonlinear(_abs_interval, _relax_abs))


def _step(name: str, fn: Any) -> None:
    def interval(x: Interval, **params: Any) -> Interval:
        return Interval(fn(x.lower, params), fn(x.upper, params))

    register(name, Nonlinear(interval, lambda x, **params: constant(x, *interval(x, **params))))


_step("sign", lambda x, _: jnp.sign(x))
_step("floor", lambda x, _: jnp.floor(x))
_step("ceil", lambda x, _: jnp.ceil(x))
_step("round", lambda x, params: jax.lax.round(x, params["rounding_method"]))
_step(
    "reduce_precision", lambda x, params: jax.lax.reduce_precision(x, params["exponent_bits"], params["mantissa_bits"])
)
