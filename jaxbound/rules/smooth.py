"""Smooth elementwise primitives, one line each where the curvature is that simple."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxbound.rules.curves import concave, convex, enveloped, mirrored, sigmoidal
from jaxbound.rules.discrete import as_box, integers
from jaxbound.rules.registry import Enclosed, Nonlinear, register
from jaxbound.rules.relaxation import Affine, Freedom, Relaxation, Scalar, choose, line
from jaxbound.sets import Array, Interval

# (interval, function, derivative, where its lines touch) -> lines
Shape = Callable[[Interval, Scalar, Scalar, Freedom | None], Relaxation]


def derivative(fn: Scalar) -> Scalar:
    """The elementwise derivative of an elementwise function."""
    return lambda x: jax.jvp(fn, (x,), (jnp.ones_like(x),))[1]


def increasing(fn: Scalar, shape: Shape, gradient: Scalar | None = None) -> Nonlinear:
    """The rule of an increasing function: exact interval, lines by `convex`, `concave` or `sigmoidal`."""
    slope = gradient or derivative(fn)
    return Nonlinear(
        lambda x, **_: _ordered(fn(x.lower), fn(x.upper)),
        lambda x, free=None, **_: shape(x, fn, slope, free),
        (0,),
    )


def _unsigned(x: Array) -> Array:
    """The same with -0 as 0: the end of a set around zero says nothing of a side, though poles have two."""
    return jnp.where(x == 0, jnp.zeros_like(x), x)


def _ordered(lower: Array, upper: Array) -> Interval:
    """Computed values of a monotone function may fall by a rounding where the function is flat."""
    return Interval(lower, jnp.maximum(lower, upper))


def decreasing(fn: Scalar, shape: Shape) -> Nonlinear:
    """The rule of a decreasing function."""
    return Nonlinear(
        lambda x, **_: _ordered(fn(x.upper), fn(x.lower)),
        lambda x, free=None, **_: shape(x, fn, derivative(fn), free),
        (0,),
    )


def _exp_shape(x: Interval, fn: Scalar, slope: Scalar, free: Freedom | None = None) -> Relaxation:
    # Not further right than one above the lower end: the tangent then stays positive, as a divisor needs.
    return convex(x, fn, slope, free, at=jnp.minimum((x.lower + x.upper) / 2, x.lower + 0.99))


register("exp", increasing(jnp.exp, _exp_shape, jnp.exp))
register("exp2", increasing(jnp.exp2, convex))
register("expm1", increasing(jnp.expm1, convex, jnp.exp))
register("log", increasing(jnp.log, concave))
register("log2", increasing(jnp.log2, concave))
register("log1p", increasing(jnp.log1p, concave))
register("sqrt", increasing(jnp.sqrt, concave))
register("rsqrt", decreasing(lambda x: jax.lax.rsqrt(_unsigned(x)), convex))
register("tanh", increasing(jnp.tanh, sigmoidal))
register("logistic", increasing(jax.nn.sigmoid, sigmoidal))
register("erf", increasing(jax.lax.erf, sigmoidal))
register("erfc", decreasing(jax.lax.erfc, mirrored(sigmoidal)))
register("atan", increasing(jnp.arctan, sigmoidal))
register("asinh", increasing(jnp.arcsinh, sigmoidal))
register("acosh", increasing(jnp.arccosh, concave))
register("atanh", increasing(jnp.arctanh, mirrored(sigmoidal)))
register("sinh", increasing(jnp.sinh, mirrored(sigmoidal)))


# Powers.


def _square_interval(x: Interval, **_: Any) -> Interval:
    low = jnp.maximum(jnp.maximum(x.lower, -x.upper), 0)
    high = jnp.maximum(-x.lower, x.upper)
    return Interval(low * low, high * high)


def _cosh_interval(x: Interval, **_: Any) -> Interval:
    low = jnp.maximum(jnp.maximum(x.lower, -x.upper), 0)
    return _ordered(jnp.cosh(low), jnp.cosh(jnp.maximum(-x.lower, x.upper)))


def _relax_square(x: Interval, free: Freedom | None = None, **_: Any) -> Relaxation:
    return convex(x, jnp.square, lambda v: 2 * v, free)


def _even_power_interval(x: Interval, y: int) -> Interval:
    low = jnp.maximum(jnp.maximum(x.lower, -x.upper), 0)
    return Interval(low**y, jnp.maximum(-x.lower, x.upper) ** y)


def _power_interval(x: Interval, y: int, **_: Any) -> Interval:
    if y < 0:
        usable = (x.lower > 0) | (x.upper < 0)
        box = _power_interval(x, -y)
        low, high = (jnp.where(usable, end, 1) for end in box)
        return Interval(jnp.where(usable, 1 / high, 0 if y % 2 == 0 else -jnp.inf), jnp.where(usable, 1 / low, jnp.inf))
    return _even_power_interval(x, y) if y % 2 == 0 else Interval(x.lower**y, x.upper**y)


def _relax_power(x: Interval, y: int, free: Freedom | None = None, **_: Any) -> Relaxation:
    power = functools.partial(jax.lax.integer_pow, y=y)
    slope = derivative(power)
    if y >= 0:
        return (convex if y % 2 == 0 else mirrored(sigmoidal))(x, power, slope, free)
    positive, negative = x.lower > 0, x.upper < 0
    safe = Interval(*(jnp.where(positive | negative, end, 1) for end in x))
    right = convex(safe, power, slope, free)
    left = right if y % 2 == 0 else concave(safe, power, slope, free)
    flat = jnp.zeros_like(x.lower)
    infinite = Relaxation(line(flat, flat - jnp.inf), line(flat, flat + jnp.inf))
    return choose(positive | negative, choose(positive, right, left), infinite)


register("square", Nonlinear(_square_interval, _relax_square, (0,)), integers(_square_interval))
register(  # the derivative of tanh by its value
    "one_minus_square",
    Nonlinear(
        lambda x, **_: Interval(*(1 - end for end in _square_interval(x)[::-1])),
        lambda x, free=None, **_: concave(x, lambda v: 1 - v * v, lambda v: -2 * v, free),
        (0,),
    ),
)
register("cosh", Nonlinear(_cosh_interval, lambda x, free=None, **_: convex(x, jnp.cosh, jnp.sinh, free), (0,)))
register("integer_pow", Nonlinear(_power_interval, _relax_power, (0,)), integers(_power_interval))


def _general_power_interval(x: Interval, y: Array, **_: Any) -> Interval:
    ends = tuple(_unsigned(end) ** y for end in x)
    valid = x.lower >= 0  # elsewhere a real power is undefined: NaN, which bounds nothing
    return Interval(*(jnp.where(valid, fn(*ends), jnp.nan) for fn in (jnp.minimum, jnp.maximum)))


def _relax_general_power(x: Interval, y: Array, free: Freedom | None = None, **_: Any) -> Relaxation:
    def power(v: Array) -> Array:
        return _unsigned(v) ** y

    def slope(v: Array) -> Array:
        return y * _unsigned(v) ** (y - 1)

    x = Interval(*(jnp.broadcast_to(end, jnp.broadcast_shapes(end.shape, jnp.shape(y))) for end in x))
    is_concave = jnp.broadcast_to((y > 0) & (y < 1), x.lower.shape)
    return choose(is_concave, concave(x, power, slope, free), convex(x, power, slope, free))


def _power_of_sets_interval(x: Any, y: Interval, **_: Any) -> Interval:
    """Monotone in each operand where x > 0, so extreme at corners; undefined elsewhere."""
    x = as_box(x)
    values = [a**b for a in x for b in y]
    ends = (functools.reduce(fn, values) for fn in (jnp.minimum, jnp.maximum))
    return Interval(*(jnp.where(x.lower > 0, end, jnp.nan) for end in ends))


def _relax_power_of_base(x: Array, y: Interval, **_: Any) -> Relaxation:
    if not jnp.issubdtype(y.lower.dtype, jnp.floating):  # there is no line over integers
        return Relaxation(*(Affine((), end) for end in _power_of_sets_interval(x, y)))
    return convex(y, lambda v: x**v, lambda v: jnp.log(x) * x**v)


register(
    "pow",
    Nonlinear(_general_power_interval, _relax_general_power, (0,)),
    Nonlinear(_power_of_sets_interval, _relax_power_of_base, (1,)),
    Enclosed(_power_of_sets_interval),
)


# Waves.


def _wave_interval(fn: Scalar, peak: float) -> Callable[..., Interval]:
    """The range of a 2 pi-periodic wave with its maximum 1 at `peak` and its minimum -1 half a period later."""

    def reaches(x: Interval, where: float) -> Array:
        period = 2 * math.pi
        return jnp.floor((x.upper - where) / period) > jnp.ceil((x.lower - where) / period) - 1

    def interval(x: Interval, **_: Any) -> Interval:
        low, high = fn(x.lower), fn(x.upper)
        bottom = jnp.where(reaches(x, peak + math.pi), -1, jnp.minimum(low, high))
        return Interval(bottom, jnp.where(reaches(x, peak), 1, jnp.maximum(low, high)))

    return interval


def _relax_wave(x: Interval, fn: Scalar, slope: Scalar, shift: float, free: Freedom | None) -> Relaxation:
    """A wave's points of slope s are known, cos(v + shift) = s; over two periods its envelopes are -1 and 1."""

    def critical(s: Array) -> list[Array]:
        angle = jnp.arccos(jnp.clip(s, -1, 1))
        first = jnp.floor((x.lower + shift) / (2 * math.pi)) * (2 * math.pi) - shift
        turns = [first + 2 * math.pi * turn for turn in range(4)]
        return [turn + side * angle for turn in turns for side in (-1, 1)]

    lines = enveloped(x, fn, slope, free, critical=critical, steepness=(-1.0, 1.0))
    flat = jnp.zeros_like(x.lower)
    return choose(x.upper - x.lower >= 4 * math.pi, Relaxation(line(flat, flat - 1), line(flat, flat + 1)), lines)


def _wave(name: str, fn: Scalar, slope: Scalar, peak: float, shift: float) -> None:
    def relax(x: Interval, free: Freedom | None = None, **_: Any) -> Relaxation:
        return _relax_wave(x, fn, slope, shift, free)

    register(name, Nonlinear(_wave_interval(fn, peak), relax, (0,)))


_wave("sin", jnp.sin, jnp.cos, math.pi / 2, 0.0)
_wave("cos", jnp.cos, lambda v: -jnp.sin(v), 0.0, math.pi / 2)
