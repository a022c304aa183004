"""How far a property is verified: the certified radius, by bisection."""

import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxbound.sets import Array


def certified_radius(holds: Callable[[Array], Array], largest: Array, *, halvings: int = 12) -> Array:
    """The largest radius found at which a property is verified, by bisection of [0, largest].

    Every radius returned, but 0, is one at which `holds` was true: it is the set of that very radius that was verified,
    whether or not the bound is monotone. Where it is (a larger set never has tighter bounds, as with `ibp`) the result
    is within largest / 2^halvings of the supremum; where it is not (CROWN's lines change with the set) a larger radius
    may be verified too.

    Args:
      holds: radius -> whether the property is verified at it, both of the shape of `largest`. It is called once, in a
        loop: a batch, of one radius for each example, costs `halvings` verifications of the batch.
      largest: the radius to search up to (it is not tried itself), at least 0; a scalar, or [B] for a batch.
      halvings: how many radii are tried.

    Returns:
      Radii of the shape of `largest`; 0 where no radius that was tried is verified.

    Raises:
      ValueError: fewer than one halving.

    Example:
      >>> def model(x):
      ...     return jnp.array([[1.0, -1.0], [-1.0, 1.0]]) @ x
      >>> def holds(radius):
      ...     box = jaxbound.linf_ball(jnp.array([0.75, 0.25]), radius)
      ...     return jnp.all(jaxbound.ibp(model)(box, spec=jaxbound.margin_spec(0, 2)) > 0)
      >>> print(jaxbound.certified_radius(holds, 1.0, halvings=10))  # of all radii below 1/4
      0.24902344
    """
    if operator.index(halvings) < 1:
        raise ValueError(f"halvings must be at least 1, got {halvings}")
    high = jnp.asarray(largest, jnp.result_type(float))

    def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        verified = holds(middle)
        return jnp.where(verified, middle, low), jnp.where(verified, high, middle)

    return jax.lax.fori_loop(0, halvings, halve, (jnp.zeros_like(high), high))[0]
