"""What the interval walk knows of a nonlinear equation, and the lines that can be drawn from it."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxbound import relax
from jaxbound.methods.problem import is_valid, rule_params
from jaxbound.program import Equation
from jaxbound.rules.registry import Nonlinear, elementwise
from jaxbound.rules.relaxation import Affine, Freedom, Relaxation, is_zero
from jaxbound.sets import Array, Interval


@dataclasses.dataclass(frozen=True)
class Node:
    """A nonlinear equation on its operands' intervals.

    Attributes:
      rule: what it is.
      equation: the equation.
      operands: an Interval for each operand that depends on a set, an array for every other one.
      result: the interval of its result.
      label: "index operation file.py:line", the user's source.
    """

    rule: Nonlinear
    equation: Equation
    operands: Sequence[Any]
    result: Interval
    label: str

    def fixed(self) -> "Node":
        """The same, not to be differentiated."""
        operands, result = jax.lax.stop_gradient((list(self.operands), self.result))
        return dataclasses.replace(self, operands=operands, result=result)

    def lines(self, relu: relax.ReluStrategy, free: Freedom | None = None) -> Relaxation:
        """Its relaxation, by a strategy or with lines of free choice.

        Lines are constant where their numbers are not finite, NaN where the interval is invalid.
        """
        strategy = relu if free is None else functools.partial(relax.between, free=free)
        lower, upper = self.rule.relax(*self.operands, relu=strategy, free=free, **rule_params(self.equation))
        # Lines through zero are those of comparisons, whose intervals no rounding makes cross.
        result = self.result
        valid = result.lower <= result.upper if is_zero(lower.intercept) else is_valid(*result)

        def guarded(side: Affine, end: Array) -> Affine:
            slopes, intercept = side
            if is_zero(intercept) and side is lower:  # None survives where a known zero becomes a number like any other
                return side._replace(slopes=tuple(jnp.where(valid, slope, jnp.nan) for slope in slopes), intercept=None)
            if self.rule.evaluate is elementwise:  # slopes are elementwise too
                usable = functools.reduce(lambda a, s: a & jnp.isfinite(s), slopes, valid & jnp.isfinite(intercept))
                return Affine(tuple(jnp.where(usable, s, 0) for s in slopes), jnp.where(usable, intercept, end))
            return Affine(slopes, jnp.where(valid, intercept, jnp.nan))

        return Relaxation(guarded(lower, result.lower), guarded(upper, result.upper))

    def freedom(self, relu: relax.ReluStrategy) -> Freedom:
        """Where the lines of free choice are nearest to those of the strategy, by the slope of the first operand."""
        rule, result = self.rule, self.result.lower
        shape = rule.freedom(*self.operands, **rule_params(self.equation)) if rule.freedom else result.shape
        shapes = shape if isinstance(shape, Freedom) else Freedom(shape, shape)
        none, whole = (Freedom(*(make(shape, result.dtype) for shape in shapes)) for make in (jnp.zeros, jnp.ones))
        lines = (none, *(self.lines(relu, free) for free in (none, whole)), self.lines(relu))

        def part(none: Array, first: Affine, last: Affine, own: Affine) -> Array:
            low, high, slope = (side.slopes[0] for side in (first, last, own))
            if [x.shape for x in jax.tree.leaves(slope)] != [none.shape]:
                return none
            differ = jnp.isfinite(high - low) & (high != low)
            return jnp.where(differ, jnp.clip((slope - low) / jnp.where(differ, high - low, 1), 0, 1), 0.5)

        return Freedom(*(part(*sides) for sides in zip(*lines, strict=True)))
