"""Smooth functions with poles, ends of their domain or two operands."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxbound.rules.curves import concave, convex, mirrored, sigmoidal
from jaxbound.rules.discrete import as_box, hull
from jaxbound.rules.registry import Enclosed, Nonlinear, register
from jaxbound.rules.relaxation import Freedom, Relaxation, choose, constant, line
from jaxbound.rules.smooth import decreasing, derivative, increasing
from jaxbound.sets import Array, Interval

register("asin", increasing(jnp.arcsin, mirrored(sigmoidal)))
register("acos", decreasing(jnp.arccos, sigmoidal))
register("erf_inv", increasing(jax.lax.erf_inv, mirrored(sigmoidal)))
register("cbrt", increasing(jnp.cbrt, sigmoidal))


def _everything(x: Interval) -> Interval:
    return Interval(jnp.full_like(x.lower, -jnp.inf), jnp.full_like(x.upper, jnp.inf))


def _within(domain: Callable[[Interval], Array], rule: Nonlinear, inner: float) -> Nonlinear:
    """A rule where the interval lies in a domain that has `inner` in it; elsewhere nothing is known."""

    def safe(x: Interval) -> tuple[Array, Interval]:
        inside = domain(x)
        return inside, Interval(*(jnp.where(inside, end, inner) for end in x))

    def interval(x: Interval, **_: Any) -> Interval:
        inside, box = safe(x)
        ends = zip(rule.interval(box), _everything(x), strict=True)
        return Interval(*(jnp.where(inside, end, far) for end, far in ends))

    def relax(x: Interval, **params: Any) -> Relaxation:
        inside, box = safe(x)
        return choose(inside, rule.relax(box, **params), constant(x, *_everything(x)))

    return Nonlinear(interval, relax, (0,))


def _tan_piece(x: Interval) -> Array:
    """Which piece between two poles an interval lies in: the number of half turns to its middle."""
    return jnp.round((x.lower + x.upper) / (2 * math.pi))


def _relax_tan(x: Interval, free: Freedom | None = None, **_: Any) -> Relaxation:
    """Turned back to the piece around zero, where tan is concave below zero and convex above."""
    turn = _tan_piece(x) * math.pi

    def shifted(v: Array) -> Array:
        return jnp.tan(v + turn)

    lines = mirrored(sigmoidal)(Interval(x.lower - turn, x.upper - turn), shifted, derivative(shifted), free)
    return Relaxation(*(line(side.slopes[0], side.intercept - side.slopes[0] * turn) for side in lines))


def _between_poles(x: Interval) -> Array:
    turn = _tan_piece(x) * math.pi
    edge = math.pi / 2 - 1e-5 - 4 * jnp.finfo(turn.dtype).eps * jnp.abs(turn)  # closer to a pole tan is rounding
    return (x.lower - turn > -edge) & (x.upper - turn < edge)


_TAN = Nonlinear(lambda x, **_: hull(*(Interval(y, y) for y in map(jnp.tan, x))), _relax_tan)
register("tan", _within(_between_poles, _TAN, 0.0))

_LOWEST_OF_LGAMMA = 1.4616321449683623


def _lgamma_interval(x: Interval, **_: Any) -> Interval:
    lowest = jnp.clip(_LOWEST_OF_LGAMMA, x.lower, x.upper)
    return hull(*(Interval(y, y) for y in map(jax.lax.lgamma, (*x, lowest))))


def _relax_lgamma(x: Interval, free: Freedom | None = None, **_: Any) -> Relaxation:
    return convex(x, jax.lax.lgamma, jax.lax.digamma, free)


register("lgamma", _within(lambda x: x.lower > 0, Nonlinear(_lgamma_interval, _relax_lgamma), 1.0))
register("digamma", _within(lambda x: x.lower > 0, increasing(jax.lax.digamma, concave), 1.0))


# Two operands.


def _atan2_interval(y: Any, x: Any, **_: Any) -> Interval:
    """Seen from outside, a box is widest at corners; behind the cut, or around the origin, it may be any angle."""
    y, x = as_box(y), as_box(x)
    corners = hull(*(Interval(angle, angle) for angle in (jnp.arctan2(b, a) for b in y for a in x)))
    cut = (x.lower <= 0) & (y.lower <= 0) & (y.upper >= 0)
    whole = (jnp.where(cut, side * math.pi, end) for side, end in zip((-1, 1), corners, strict=True))
    return Interval(*whole)


register("atan2", Enclosed(_atan2_interval))


def _nextafter_interval(x: Any, y: Any, **_: Any) -> Interval:
    x, y = as_box(x), as_box(y)
    return Interval(jnp.nextafter(x.lower, y.lower), jnp.nextafter(x.upper, y.upper))


register("nextafter", Enclosed(_nextafter_interval))
