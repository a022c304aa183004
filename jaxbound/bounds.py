"""Linear bounds and the only place where they become numbers."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxbound.sets import Array, Ball, Interval, Set, SupportSet, bounding_box, dual_exponent, is_set, norm


class LinearBound(NamedTuple):
    """Affine lower bounds of S functionals of a function: spec . f(x) >= <coeffs, x> + bias for x in the set.

    Attributes:
      coeffs: coefficients [S, *x.shape]. With one argument a pytree like it, with several a tuple of such pytrees;
        None where the argument's leaf is a constant.
      bias: [S].
    """

    coeffs: Any
    bias: Array

    def concretize(self, *args: Any) -> Array:
        """The lowest value over the sets: [S].

        <coeffs, center> - ||coeffs * radius||_q per ball, with 1/p + 1/q = 1; -support(-coeffs) per SupportSet.

        Args:
          *args: the arguments that the bound function was given, with the sets in them.

        Returns:
          Lower bounds [S]; -inf where the numbers are invalid (NaN, or coefficients that have overflowed).

        Example:
          >>> plane = jaxbound.LinearBound(coeffs=jnp.array([[3.0, -4.0]]), bias=jnp.array([1.0]))
          >>> for ball in (jaxbound.l1_ball, jaxbound.l2_ball, jaxbound.linf_ball):
          ...     print(plane.concretize(ball(jnp.zeros(2), 1.0, clip=None)))
          [-3.]
          [-4.]
          [-6.]
        """
        regions = [leaf for leaf in jax.tree.leaves(args, is_leaf=is_set) if is_set(leaf)]
        lowest = lower_value(jax.tree.leaves(self.coeffs), self.bias, regions)
        return jnp.where(lowest < jnp.inf, lowest, -jnp.inf)


class Planes(NamedTuple):
    """A function between two linear bounds: lower <= f <= upper, one row for each element of f's output.

    Attributes:
      lower: LinearBound with coeffs [*out, *x.shape] and bias [*out]; <coeffs, x> + bias <= f(x) on the set.
      upper: the same from above, f(x) <= <coeffs, x> + bias.
    """

    lower: LinearBound
    upper: LinearBound


def lower_value(coeffs: list[Array], bias: Array, regions: list[Set]) -> Array:
    """Sum over sets of the minimum of <coeffs, x>, plus the bias: [S]."""
    return sum((jax.vmap(_minimum, (0, None))(c, s) for c, s in zip(coeffs, regions, strict=True)), start=bias)


def worst_input(coeffs: Array, region: Set) -> Array:
    """Where <coeffs, x> is lowest on a set, for one row of coefficients; the set's shape.

    Differentiable with respect to the set with the direction held fixed: the envelope theorem's derivative.
    """
    if isinstance(region, Interval):
        return jnp.where(coeffs >= 0, region.lower, region.upper)
    curved = _worst_within(coeffs, region)
    if not _has_box(region):
        return curved
    box = bounding_box(region)
    return jnp.where(_minimum_within(coeffs, region) >= _minimum(coeffs, box), curved, worst_input(coeffs, box))


def _minimum(coeffs: Array, region: Set) -> Array:
    if isinstance(region, Interval):
        return jnp.sum(coeffs * worst_input(coeffs, region))
    lowest = _minimum_within(coeffs, region)
    # Both the ball (or what the support function describes) and the box contain the set: the larger minimum is a bound.
    return jnp.maximum(lowest, _minimum(coeffs, bounding_box(region))) if _has_box(region) else lowest


def _has_box(region: Ball | SupportSet) -> bool:
    return isinstance(region, SupportSet) or region.clip is not None


# A set without its box.


def _minimum_within(coeffs: Array, region: Ball | SupportSet) -> Array:
    if isinstance(region, SupportSet):
        return -region.largest(-coeffs)
    return jnp.sum(coeffs * region.center) - norm(coeffs * region.radius, dual_exponent(region.p))


def _worst_within(coeffs: Array, region: Ball | SupportSet) -> Array:
    if isinstance(region, SupportSet):
        # All points are equally bad for coefficients of zero, where a support function may have no derivative.
        return jax.grad(region.support)(jnp.where(jnp.all(coeffs == 0), 1, -coeffs), *region.parameters)
    return region.center - region.radius * _dual_direction(coeffs * region.radius, region.p)


def _dual_direction(v: Array, p: float) -> Array:
    """The d with ||d||_p <= 1 that makes <v, d> = ||v||_q."""
    if p == math.inf:
        return jnp.sign(v)
    if p == 1:
        flat = jnp.abs(v).ravel()
        return jnp.sign(v) * jax.nn.one_hot(jnp.argmax(flat), flat.size, dtype=v.dtype).reshape(v.shape)
    q = dual_exponent(p)
    length = norm(v, q)
    unit = jnp.abs(v) / jnp.where(length > 0, length, 1)
    return jnp.sign(v) * unit ** (q - 1)
