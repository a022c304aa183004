"""Activations that arrive as one named call, and `atomic`, which makes such calls of a user's own functions.

A named call is kept whole only if its program is the one that the reference function has; anything else that bears the
name is inlined and bounded primitive by primitive.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxbound.rules.curves import Critical, bent, concave, convex, enveloped, sigmoidal
from jaxbound.rules.discrete import as_box
from jaxbound.rules.piecewise import clip_interval, ramp_lines, relax_clip
from jaxbound.rules.registry import Nonlinear
from jaxbound.rules.relaxation import Affine, Freedom, Relaxation, Scalar, choose, constant, line
from jaxbound.rules.smooth import derivative, increasing
from jaxbound.sets import Array, Interval


class Elementwise(NamedTuple):
    """A rule for `atomic`: how to bound an elementwise function of one or more arrays.

    Attributes:
      interval: (*operands) -> Interval that contains f; operands that depend on a set are Intervals, others arrays.
      relax: (*operands) -> `Relaxation`: lower and upper `Affine` with one slope for each operand that is a set, and
        lower <= f <= upper wherever the operands lie in their intervals.
    """

    interval: Callable[..., Interval]
    relax: Callable[..., Relaxation]


class Named(NamedTuple):
    """A function known by name: what it must be, and its rule."""

    reference: Callable[..., Any]
    rule: Nonlinear


_NAMED: dict[str, Named] = {}
_COUNTER = itertools.count()


def named(name: str) -> Named | None:
    """What is known about a call of this name."""
    return _NAMED.get(name)


def whole(fn: Callable, name: str, rule: Nonlinear) -> Callable:
    """The function as a call of this name, which every bound keeps whole and bounds by the rule."""

    @functools.wraps(fn)
    def call(*args: Array) -> Array:
        return fn(*args)

    call.__name__ = name
    _NAMED[name] = Named(fn, rule)
    return jax.jit(call)


def known_names() -> tuple[str, ...]:
    """The names of all calls that are kept whole."""
    return tuple(_NAMED)


def atomic(fn: Callable, rule: Elementwise) -> Callable:
    """Gives an elementwise function a rule of its own, in place of those of the primitives that it is made of.

    The result is called like `fn` and computes the same; every bound transform uses `rule` for it. Check the rule by
    `jaxbound.testing.check_rule`.

    Args:
      fn: an elementwise function of one or more arrays of one shape.
      rule: its interval function and relaxation.

    Returns:
      A function like `fn`.

    Example:
      >>> def cube(x):
      ...     return x**3
      >>> def interval(x):
      ...     return jaxbound.Interval(cube(x.lower), cube(x.upper))
      >>> def relax(x):
      ...     flat = jnp.zeros_like(x.lower)
      ...     return jaxbound.Relaxation(*(jaxbound.Affine((flat,), end) for end in interval(x)))
      >>> bounded_cube = jaxbound.atomic(cube, jaxbound.Elementwise(interval, relax))
      >>> jaxbound.ibp(bounded_cube)(jaxbound.Interval(jnp.array(-1.0), jnp.array(2.0)))
      Interval(lower=Array(-1., dtype=float32), upper=Array(8., dtype=float32))
    """
    name = f"atomic_{getattr(fn, '__name__', 'function')}_{next(_COUNTER)}"
    bounded = Nonlinear(lambda *x, **_: rule.interval(*x), lambda *x, **_: rule.relax(*x))
    return functools.wraps(fn)(whole(fn, name, bounded))


# Rules of the activations of jax.nn that arrive by name.


# A number given with the call (a slope) is one more operand; left out, it is the default.


def _leaky_interval(x: Interval, slope: Array = 0.01, **_: Any) -> Interval:
    return _range(x, lambda v: jnp.where(v > 0, v, slope * v), (0.0,))


def _relax_leaky(x: Interval, slope: Array = 0.01, *, relu: Any, free: Freedom | None = None, **_: Any) -> Relaxation:
    """The strategy's lines for slopes in [0, 1]; for others the function is convex or concave."""

    def fn(v: Array) -> Array:
        return jnp.where(v > 0, v, slope * v)

    def gradient(v: Array) -> Array:
        return jnp.where(v > 0, jnp.ones_like(v), slope)

    usual, convex_too = (jnp.broadcast_to(flag, x.lower.shape) for flag in ((slope >= 0) & (slope <= 1), slope <= 1))
    others = choose(convex_too, convex(x, fn, gradient, free), concave(x, fn, gradient, free))
    return choose(usual, relu(x, jnp.clip(slope, 0, 1)), others)


def _elu_interval(x: Interval, alpha: Array = 1.0, **_: Any) -> Interval:
    return _range(x, lambda v: jax.nn.elu(v, alpha), (0.0,))


def _relax_elu(x: Interval, alpha: Array = 1.0, *, free: Freedom | None = None, **_: Any) -> Relaxation:
    """The slope jumps from alpha to 1 at zero, which leaves the function convex for alpha in [0, 1]."""

    def fn(v: Array) -> Array:
        return jax.nn.elu(v, alpha)

    def critical(slope: Array) -> list[Array]:
        return [jnp.zeros_like(slope), jnp.log(jnp.maximum(slope / alpha, jnp.finfo(slope.dtype).tiny))]

    usual = convex(x, fn, derivative(fn), free)
    is_convex = (alpha >= 0) & (alpha <= 1)
    if not isinstance(is_convex, Tracer) and np.all(is_convex):
        return usual
    steepness = (jnp.minimum(alpha, 0), jnp.maximum(alpha, 1))
    others = enveloped(x, fn, derivative(fn), free, critical=critical, steepness=steepness)
    return choose(jnp.broadcast_to(is_convex, x.lower.shape), usual, others)


def _range(x: Interval, fn: Scalar, turning: Sequence[float]) -> Interval:
    """The range of a function that is monotone between the given turning points."""
    values = [fn(end) for end in x] + [fn(jnp.clip(point, x.lower, x.upper)) for point in turning]
    return Interval(functools.reduce(jnp.minimum, values), functools.reduce(jnp.maximum, values))


def curved(fn: Scalar, turning: Sequence[float], critical: Critical, steepness: tuple[float, float]) -> Nonlinear:
    """A function of any shape whose turning points, points of a given slope and range of slopes are known."""
    slope = derivative(fn)

    def relax(x: Interval, free: Freedom | None = None, **_: Any) -> Relaxation:
        return enveloped(x, fn, slope, free, critical=critical, steepness=steepness)

    return Nonlinear(lambda x, **_: _range(x, fn, turning), relax, (0,))


def wavy(fn: Scalar, turning: float, inflections: tuple[float, float]) -> Nonlinear:
    """A function that is concave, convex and concave again, as silu, gelu and mish are.

    Args:
      fn: the function.
      turning: its only minimum.
      inflections: where its curvature changes sign; between them the slope grows, outside it falls.
    """
    slope = derivative(fn)

    def relax(x: Interval, free: Freedom | None = None, **_: Any) -> Relaxation:
        return bent(x, fn, slope, free, inflections=inflections)

    return Nonlinear(lambda x, **_: _range(x, fn, (turning,)), relax, (0,))


_SELU_SLOPE = 1.0507009873554805 * 1.6732632423543772  # of selu, just left of zero


def _selu_critical(slope: Array) -> list[Array]:
    return [jnp.zeros_like(slope), jnp.log(jnp.maximum(slope / _SELU_SLOPE, jnp.finfo(slope.dtype).tiny))]


def _hard_silu_critical(slope: Array) -> list[Array]:
    return [3 * slope - 1.5, jnp.full_like(slope, -3.0), jnp.full_like(slope, 3.0)]


def _alone(fn: Callable) -> Callable:
    """The function of its first argument: called with more, it is another one, bounded primitive by primitive."""
    return functools.wraps(fn)(lambda x: fn(x))


def _clip(x: Array, low: Array, high: Array) -> Array:
    """Raises a TypeError, as any call that is not the one we know, where x would change its shape or type."""
    clipped = jnp.clip(x, low, high)
    if (clipped.shape, clipped.dtype) != (x.shape, x.dtype):
        raise TypeError("only operands of one shape and type are bounded together")
    return clipped


def _clipping(low: float, high: float) -> Nonlinear:
    """A function that clips to two numbers."""

    def relax(x: Interval, *, relu: Any, **_: Any) -> Relaxation:
        return relax_clip(low, x, high, relu=relu)

    return Nonlinear(lambda x, **_: clip_interval(low, x, high), relax)


_CLIP = Nonlinear(
    lambda x, low, high, **_: clip_interval(low, x, high),
    lambda x, low, high, *, relu, **_: relax_clip(low, x, high, relu=relu),
)

for _function, _rule in (
    (jax.nn.leaky_relu, Nonlinear(_leaky_interval, _relax_leaky, (0,))),
    (jax.nn.elu, Nonlinear(_elu_interval, _relax_elu, (0,))),
    (_alone(jax.nn.celu), increasing(jax.nn.celu, convex)),
    (jax.nn.selu, curved(jax.nn.selu, (), _selu_critical, (0.0, _SELU_SLOPE))),
    (jax.nn.silu, wavy(jax.nn.silu, -1.278464542761074, (-2.399357280515468, 2.399357280515468))),
    (jax.nn.mish, wavy(jax.nn.mish, -1.192431214515495, (-2.25637639636034, 1.490571179485869))),
    (jax.nn.softplus, increasing(jax.nn.softplus, convex)),
    (_alone(jax.nn.squareplus), increasing(jax.nn.squareplus, convex)),
    (jax.nn.sparse_plus, increasing(jax.nn.sparse_plus, convex)),
    (jax.nn.soft_sign, increasing(jax.nn.soft_sign, sigmoidal)),
    (jax.nn.hard_silu, curved(jax.nn.hard_silu, (-1.5,), _hard_silu_critical, (-0.5, 1.5))),
    (jax.nn.hard_tanh, _clipping(-1.0, 1.0)),
    (jax.nn.relu6, _clipping(0.0, 6.0)),
):
    _NAMED[_function.__name__] = Named(_function, _rule)
_NAMED["clip"] = Named(_clip, _CLIP)


# The ramp.


def ramp(x: Array, top: Array, slope: Array = 0.0) -> Array:
    """A leaky ReLU that bends back at a top: slope * x + (1 - slope) * clip(x, 0, top), elementwise.

    That is slope * x below zero, x up to `top` and slope * x + (1 - slope) * top above; with top = inf the leaky ReLU,
    whose derivative with respect to `top` is zero. Bounds keep it whole: linear ones take its lines from the `relu`
    strategy.

    Args:
      x: any shape.
      top: at least 0, may be infinite; broadcasts with x. It may be a set too (a perturbed parameter).
      slope: in [0, 1], where the ramp is monotone; broadcasts with x.

    Returns:
      The shape of x, top and slope together.

    Raises:
      ValueError: a slope is outside [0, 1]. Where that shows only under `jit`, bounds are infinite.

    Example:
      >>> jaxbound.ramp(jnp.array([-1.0, 0.5, 3.0]), 2.0, 0.25)
      Array([-0.25,  0.5 ,  2.25], dtype=float32)

    References:
      Lyu et al. 2021, CVPR, section 4 (ParamRamp).
    """
    if not isinstance(slope, Tracer) and not np.all((np.asarray(slope) >= 0) & (np.asarray(slope) <= 1)):
        raise ValueError(f"the slope of a ramp must lie in [0, 1], got {slope}")
    dtype = jnp.result_type(x, top, slope, 1.0)
    shape = jnp.broadcast_shapes(*(jnp.shape(each) for each in (x, top, slope)))
    x, top = (jnp.broadcast_to(jnp.asarray(each, dtype), shape) for each in (x, top))
    return _jitted_ramp(x, top, jnp.asarray(slope, dtype))


def _ramp(x: Array, top: Array, slope: Array) -> Array:
    """Of one type, x and top of one shape."""
    return slope * x + (1 - slope) * jnp.minimum(jax.nn.relu(x), top)


def _ramp_interval(x: Any, top: Any, slope: Array, **_: Any) -> Interval:
    """The ramp grows with x and with its top."""
    ends = [_ramp(*each, slope) for each in zip(as_box(x), as_box(top), strict=True)]
    return Interval(*(jnp.where((slope >= 0) & (slope <= 1), end, jnp.nan) for end in ends))


def _relax_ramp(x: Any, top: Any, slope: Array, *, relu: Any, **_: Any) -> Relaxation:
    """The strategy's lines; of a top that is a set, those for its lower end below and for its upper end above."""
    if not isinstance(x, Interval):
        return constant(top, *_ramp_interval(x, top, slope))
    if not isinstance(top, Interval):
        return _lines_of_ramp(x, top, slope, relu)
    sides = _lines_of_ramp(x, top.lower, slope, relu).lower, _lines_of_ramp(x, top.upper, slope, relu).upper
    flat = jnp.zeros_like(top.lower)
    return Relaxation(*(Affine((*side.slopes, flat), side.intercept) for side in sides))


def _lines_of_ramp(x: Interval, top: Array, slope: Array, relu: Any) -> Relaxation:
    """A top below zero is one at zero of a function that lies lower."""
    lines = ramp_lines(x, slope, jnp.maximum(top, 0), relu)
    shift = (1 - slope) * jnp.minimum(top, 0)
    return Relaxation(*(line(side.slopes[0], side.intercept + shift) for side in lines))


_ramp.__name__ = "ramp"  # in labels and errors
_jitted_ramp = jax.jit(_ramp)
_NAMED["ramp"] = Named(_ramp, Nonlinear(_ramp_interval, _relax_ramp, (0, 1)))
