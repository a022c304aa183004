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

from jaxbound.rules.piecewise import clip_interval, relax_clip
from jaxbound.rules.registry import Nonlinear
from jaxbound.rules.relaxation import Relaxation, Scalar, choose, concave, convex, parallel, sigmoidal
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

    @functools.wraps(fn)
    def call(*args: Array) -> Array:
        return fn(*args)

    label = getattr(fn, "__name__", "function")
    call.__name__ = f"atomic_{label}_{next(_COUNTER)}"
    whole = Nonlinear(lambda *x, **_: rule.interval(*x), lambda *x, **_: rule.relax(*x))
    _NAMED[call.__name__] = Named(fn, whole)
    return functools.wraps(fn)(jax.jit(call))


# Rules of the activations of jax.nn that arrive by name.


# A number given with the call (a slope) is one more operand; left out, it is the default.


def _leaky_interval(x: Interval, slope: Array = 0.01, **_: Any) -> Interval:
    return _range(x, lambda v: jnp.where(v > 0, v, slope * v), (0.0,))


def _relax_leaky(x: Interval, slope: Array = 0.01, *, relu: Any, **_: Any) -> Relaxation:
    """The strategy's lines for slopes in [0, 1]; for others the function is convex or concave."""

    def fn(v: Array) -> Array:
        return jnp.where(v > 0, v, slope * v)

    def gradient(v: Array) -> Array:
        return jnp.where(v > 0, jnp.ones_like(v), slope)

    usual, convex_too = (jnp.broadcast_to(flag, x.lower.shape) for flag in ((slope >= 0) & (slope <= 1), slope <= 1))
    bend = jnp.clip(jnp.zeros_like(x.lower), x.lower, x.upper)
    others = choose(convex_too, convex(x, fn, gradient, bend), concave(x, fn, gradient, bend))
    return choose(usual, relu(x, jnp.clip(slope, 0, 1)), others)


def _elu_interval(x: Interval, alpha: Array = 1.0, **_: Any) -> Interval:
    return _range(x, lambda v: jax.nn.elu(v, alpha), (0.0,))


def _relax_elu(x: Interval, alpha: Array = 1.0, **_: Any) -> Relaxation:
    """The slope jumps from alpha to 1 at zero, which leaves the function convex for alpha in [0, 1]."""

    def fn(v: Array) -> Array:
        return jax.nn.elu(v, alpha)

    def critical(slope: Array) -> list[Array]:
        return [jnp.zeros_like(slope), jnp.log(jnp.maximum(slope / alpha, jnp.finfo(slope.dtype).tiny))]

    is_convex = jnp.broadcast_to((alpha >= 0) & (alpha <= 1), x.lower.shape)
    return choose(is_convex, convex(x, fn, derivative(fn)), parallel(x, fn, derivative(fn), critical))


def _range(x: Interval, fn: Scalar, turning: Sequence[float]) -> Interval:
    """The range of a function that is monotone between the given turning points."""
    values = [fn(end) for end in x] + [fn(jnp.clip(point, x.lower, x.upper)) for point in turning]
    return Interval(functools.reduce(jnp.minimum, values), functools.reduce(jnp.maximum, values))


def curved(fn: Scalar, turning: Sequence[float], critical: Callable[[Array], Sequence[Array]]) -> Nonlinear:
    """A function of any shape whose turning points and whose points of a given slope are known."""
    slope = derivative(fn)
    return Nonlinear(lambda x, **_: _range(x, fn, turning), lambda x, **_: parallel(x, fn, slope, critical), (0,))


def wavy(fn: Scalar, turning: float, inflections: tuple[float, float]) -> Nonlinear:
    """A function that is concave, convex and concave again, as silu, gelu and mish are.

    Args:
      fn: the function.
      turning: its only minimum.
      inflections: where its curvature changes sign; between them the slope grows, outside it falls.
    """
    slope, (left, right) = derivative(fn), inflections

    def critical(s: Array) -> list[Array]:
        far = 64.0  # beyond, these functions are straight lines in floating point
        pieces = ((-far, left, -1), (left, right, 1), (right, far, -1))
        return [_bisect(lambda v, sign=sign: sign * (slope(v) - s), low, high, s) for low, high, sign in pieces]

    return curved(fn, (turning,), critical)


def _bisect(grows: Scalar, low: float, high: float, like: Array) -> Array:
    """Where an increasing function crosses zero between two numbers (one of the two if it does not)."""

    def halve(_: int, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = (low + high) / 2
        positive = grows(middle) > 0
        return jnp.where(positive, low, middle), jnp.where(positive, middle, high)

    ends = (jnp.full_like(like, low), jnp.full_like(like, high))
    low, high = jax.lax.fori_loop(0, jnp.finfo(like.dtype).nmant + 6, halve, ends)
    # A critical point needs no derivative of its own: f(p) - s p is stationary there.
    return jax.lax.stop_gradient((low + high) / 2)


_SELU_SLOPE = 1.0507009873554805 * 1.6732632423543772  # of selu, just left of zero


def _selu_critical(slope: Array) -> list[Array]:
    return [jnp.zeros_like(slope), jnp.log(jnp.maximum(slope / _SELU_SLOPE, jnp.finfo(slope.dtype).tiny))]


def _hard_silu_critical(slope: Array) -> list[Array]:
    return [3 * slope - 1.5, jnp.full_like(slope, -3.0), jnp.full_like(slope, 3.0)]


def _alone(fn: Callable) -> Callable:
    """The function of its first argument: called with more, it is another one, bounded primitive by primitive."""
    return functools.wraps(fn)(lambda x: fn(x))


_HARD_TANH = Nonlinear(lambda x, **_: clip_interval(-1.0, x, 1.0), lambda x, **_: relax_clip(-1.0, x, 1.0))

for _function, _rule in (
    (jax.nn.leaky_relu, Nonlinear(_leaky_interval, _relax_leaky, (0,))),
    (jax.nn.elu, Nonlinear(_elu_interval, _relax_elu, (0,))),
    (_alone(jax.nn.celu), increasing(jax.nn.celu, convex)),
    (jax.nn.selu, curved(jax.nn.selu, (), _selu_critical)),
    (jax.nn.silu, wavy(jax.nn.silu, -1.278464542761074, (-2.399357280515468, 2.399357280515468))),
    (jax.nn.mish, wavy(jax.nn.mish, -1.192431214515495, (-2.25637639636034, 1.490571179485869))),
    (jax.nn.softplus, increasing(jax.nn.softplus, convex)),
    (_alone(jax.nn.squareplus), increasing(jax.nn.squareplus, convex)),
    (jax.nn.sparse_plus, increasing(jax.nn.sparse_plus, convex)),
    (jax.nn.soft_sign, increasing(jax.nn.soft_sign, sigmoidal)),
    (jax.nn.hard_silu, curved(jax.nn.hard_silu, (-1.5,), _hard_silu_critical)),
    (jax.nn.hard_tanh, _HARD_TANH),
):
    _NAMED[_function.__name__] = Named(_function, _rule)
