"""Selections by a predicate that depends on a set: `jnp.where`, and the branches of `jax.lax.cond` and `switch`."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxbound.rules.discrete import as_box, extremes
from jaxbound.rules.piecewise import relax_max, relax_min
from jaxbound.rules.registry import Enclosed, Nonlinear
from jaxbound.rules.relaxation import Affine, Relaxation, settled
from jaxbound.sets import Array, Interval, midpoint


def _interval(which: Interval, *cases: Any, **_: Any) -> Interval:
    """The hull of the cases that may be selected."""
    boxes, dtype = [as_box(case) for case in cases], jnp.result_type(*jax.tree.leaves(cases))
    least, greatest = (jnp.asarray(end, dtype) for end in extremes(dtype))
    possible = _possible(which, boxes)
    lower = [jnp.where(p, box.lower, greatest) for p, box in zip(possible, boxes, strict=True)]
    upper = [jnp.where(p, box.upper, least) for p, box in zip(possible, boxes, strict=True)]
    return Interval(functools.reduce(jnp.minimum, lower), functools.reduce(jnp.maximum, upper))


def _possible(which: Interval, cases: Sequence[Interval]) -> list[Array]:
    first, last = (jnp.broadcast_to(jnp.asarray(end, int), cases[0].lower.shape) for end in which)
    return [(first <= k) & (k <= last) for k in range(len(cases))]


def _relax(which: Interval, *cases: Any, relu: Any, **_: Any) -> Relaxation:
    """The selected case where it is decided; elsewhere constants, or of two cases lines around both."""
    box, possible = _interval(which, *cases), _possible(which, [as_box(case) for case in cases])
    sets = [k for k, case in enumerate(cases) if isinstance(case, Interval)]
    (decided,) = settled(jnp.broadcast_to(which.lower == which.upper, box.lower.shape))
    value = jnp.zeros_like(box.lower)
    for k, case in enumerate(cases):
        value = value if k in sets else jnp.where(possible[k], case, value)
    taken = Affine(tuple(jnp.where(possible[k], jnp.ones_like(value), 0) for k in sets), value)
    flat = tuple(jnp.zeros_like(value) for _ in sets)
    sides = [Affine(flat, end) for end in box]
    if len(cases) == 2 and sets:
        around = (relax_min(*cases, relu=relu).lower, relax_max(*cases, relu=relu).upper)
        middles = [midpoint(cases[k]) for k in sets]
        sides = [_closer(sign, pair, middles) for sign, *pair in zip((-1, 1), around, sides, strict=True)]
    return Relaxation(*(_where(decided, taken, side) for side in sides))


def _closer(sign: int, pair: Sequence[Affine], middles: Sequence[Array]) -> Affine:
    """Of a line and a constant, both above (sign 1) or below (-1), the one that is closer in the middle."""
    line, constant = pair
    line = Affine(line.slopes, line.intercept + jnp.zeros_like(constant.intercept))
    (closer,) = settled(sign * line(*middles) < sign * constant.intercept)
    return _where(closer, line, constant)


def _where(condition: Array, first: Affine, second: Affine) -> Affine:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), first, second)


SELECTED = (Nonlinear(_interval, _relax), Enclosed(_interval))
