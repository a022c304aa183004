"""Piecewise linear primitives: maxima, minima, absolute value, clipping, steps."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp

from jaxbound.rules.curves import convex
from jaxbound.rules.discrete import as_box, integers, negated
from jaxbound.rules.registry import Enclosed, Nonlinear, register
from jaxbound.rules.relaxation import Affine, Freedom, Relaxation, constant, flipped, is_zero, line, settled
from jaxbound.sets import Array, Interval

# max(x, y) = x + relu(y - x): one strategy serves ReLU, any constant threshold, and two sets.


def _max_interval(x: Any, y: Any, **_: Any) -> Interval:
    x, y = as_box(x), as_box(y)
    return Interval(jnp.maximum(x.lower, y.lower), jnp.maximum(x.upper, y.upper))


def relax_max(x: Any, y: Any, *, relu: Any, **_: Any) -> Relaxation:
    """max(x, y) = x + relu(y - x), of a set and a constant or of two sets."""
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


def relax_min(x: Any, y: Any, *, relu: Any, **_: Any) -> Relaxation:
    """min(x, y) = -max(-x, -y)."""
    sides = flipped(relax_max(negated(x), negated(y), relu=relu))
    return Relaxation(*(Affine(tuple(-slope for slope in side.slopes), side.intercept) for side in sides))


def _min_interval(x: Any, y: Any, **_: Any) -> Interval:
    x, y = as_box(x), as_box(y)
    return Interval(jnp.minimum(x.lower, y.lower), jnp.minimum(x.upper, y.upper))


def _one_bend(x: Any, y: Any, **_: Any) -> Freedom:
    """On the other side of the bend there is one line, the chord."""
    return Freedom(jnp.broadcast_shapes(*(as_box(end).lower.shape for end in (x, y))), ())


register("max", Nonlinear(_max_interval, relax_max, freedom=_one_bend), Enclosed(_max_interval))
register("min", Nonlinear(_min_interval, relax_min, freedom=_one_bend), Enclosed(_min_interval))


# clip(x, low, high) = low + ramp(x - low), with high - low as the ramp's top.


def ramp_lines(x: Interval, slope: Array, top: Array, relu: Any) -> Relaxation:
    """The strategy's lines for slope * x + (1 - slope) * clip(x, 0, top), 0 <= slope <= 1, top >= 0.

    Of a strategy that takes no top, those for the difference of two bends, leaky(x) - (1 - slope) * relu(x - top).
    """
    try:
        inspect.signature(relu).bind(x, slope, top)
    except TypeError:
        top = jnp.minimum(top, x.upper + 1)  # any top above the interval is the same function; inf has no lines
        first, second = relu(x, slope), relu(Interval(x.lower - top, x.upper - top), 0.0)
        sides = ((a, _shifted(b, top)) for a, b in zip(first, reversed(second), strict=True))
        gain = 1 - slope  # _shifted(b, top) is about max(x, top)
        return Relaxation(
            *(line(a.slopes[0] - gain * b.slopes[0], a.intercept - gain * (b.intercept - top)) for a, b in sides)
        )
    return relu(x, slope, top)


def clip_interval(low: Any, x: Any, high: Any, **_: Any) -> Interval:
    """clip(x, low, high) on an interval."""
    return _min_interval(_max_interval(x, low), high)


def relax_clip(low: Any, x: Any, high: Any, *, relu: Any, **_: Any) -> Relaxation:
    """The strategy's lines for a ramp; where an end is a set, those for a minimum of a maximum."""
    if isinstance(low, Interval) or isinstance(high, Interval):
        return _relax_clip_to_sets(low, x, high, relu)
    low, high = (jnp.asarray(end, jnp.result_type(x.lower)) for end in (low, high))
    low = jnp.maximum(low, x.lower - 1)  # any end below the interval is the same function; -inf has no lines
    low = jnp.minimum(low, high)  # of ends that are crossed the higher one counts
    lines = ramp_lines(Interval(x.lower - low, x.upper - low), 0.0, high - low, relu)
    return Relaxation(*(_shifted(side, low) for side in lines))


def _relax_clip_to_sets(low: Any, x: Any, high: Any, relu: Any) -> Relaxation:
    inner = _max_interval(x, low)
    if not (isinstance(x, Interval) or isinstance(low, Interval)):
        return relax_min(inner.lower, high, relu=relu)
    return _composed(relax_min(inner, high, relu=relu), relax_max(x, low, relu=relu))


def _composed(outer: Relaxation, inner: Relaxation) -> Relaxation:
    """The relaxation of a function whose first operand is the result of another."""

    def side(line: Affine, same: Affine, opposite: Affine) -> Affine:
        slope, *others = line.slopes
        (grows,) = settled(slope >= 0)
        chosen = jax.tree.map(lambda a, b: slope * jnp.where(grows, a, b), same, opposite)
        return Affine((*chosen.slopes, *others), chosen.intercept + line.intercept)

    return Relaxation(side(outer.lower, inner.lower, inner.upper), side(outer.upper, inner.upper, inner.lower))


register("clamp", Nonlinear(clip_interval, relax_clip, (1,)), Enclosed(clip_interval))


# Absolute value and steps.


def _abs_interval(x: Interval, **_: Any) -> Interval:
    low = jnp.maximum(jnp.maximum(x.lower, -x.upper), 0)
    return Interval(low, jnp.maximum(-x.lower, x.upper))


def _relax_abs(x: Interval, free: Freedom | None = None, **_: Any) -> Relaxation:
    """The chord above; below x or -x, whichever is the function at the middle."""
    return convex(x, jnp.abs, jnp.sign, free)


register("abs", Nonlinear(_abs_interval, _relax_abs), integers(_abs_interval))


def _step(name: str, fn: Any) -> None:
    def interval(x: Interval, **params: Any) -> Interval:
        return Interval(fn(x.lower, params), fn(x.upper, params))

    lines = Nonlinear(interval, lambda x, **params: constant(x, *interval(x, **params)))
    register(name, lines, Enclosed(interval))


_step("sign", lambda x, _: jnp.sign(x))
_step("floor", lambda x, _: jnp.floor(x))
_step("ceil", lambda x, _: jnp.ceil(x))
_step("round", lambda x, params: jax.lax.round(x, params["rounding_method"]))
_step(
    "reduce_precision", lambda x, params: jax.lax.reduce_precision(x, params["exponent_bits"], params["mantissa_bits"])
)


# Remainders: a line on each piece.


def _rem_interval(x: Any, y: Any, **_: Any) -> Interval:
    """x - y * trunc(x / y) for a constant y: the same quotient at both ends, or all remainders of x's signs."""
    x = as_box(x)
    ends = Interval(*(jax.lax.rem(end, y) for end in x))
    whole = jnp.abs(y) + jax.lax.rem(y, y)  # NaN for y = 0
    same = _quotients_agree(x, y)
    nothing = jax.lax.rem(x.lower, y) * 0 + jax.lax.rem(x.upper, y) * 0  # NaN for an end that is NaN
    lower = jnp.where(same, ends.lower, jnp.where(x.lower < 0, -whole, jnp.zeros_like(whole)))
    upper = jnp.where(same, ends.upper, jnp.where(x.upper > 0, whole, jnp.zeros_like(whole)))
    return Interval(lower + nothing, upper + nothing)


def _quotients_agree(x: Interval, y: Array) -> Array:
    first, second = (jax.lax.div(end - jax.lax.rem(end, y), y) for end in x)
    return (jnp.round(first) == jnp.round(second)) if jnp.issubdtype(first.dtype, jnp.floating) else first == second


def _relax_rem(x: Interval, y: Array, **_: Any) -> Relaxation:
    box = _rem_interval(x, y)
    (same,) = settled(_quotients_agree(x, y))
    shift = jax.lax.rem(x.lower, y) - x.lower
    return Relaxation(*(line(jnp.where(same, 1, jnp.zeros_like(end)), jnp.where(same, shift, end)) for end in box))


register("rem", Nonlinear(_rem_interval, _relax_rem, (0,)), Enclosed(_rem_interval, (0,)))
