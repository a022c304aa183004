"""Strategies for the lines around a ReLU and its leaky kin: the values of every `relu=` option.

A strategy is a function `(x, slope) -> Relaxation` for f(z) = z where z > 0 and slope * z elsewhere, 0 <= slope <= 1,
on the interval x. All of them but `constant` share the upper line, the chord, and are exact on intervals that do not
cross zero; they differ in the lower line of an interval that does.
"""

from collections.abc import Callable

import jax.numpy as jnp

from jaxbound.rules.relaxation import Relaxation, line, zero
from jaxbound.sets import Array, Interval

ReluStrategy = Callable[[Interval, Array], Relaxation]


def adaptive(x: Interval, slope: Array = 0.0) -> Relaxation:
    """Lower line z where the upper end is at least as far from zero as the lower one, slope * z elsewhere.

    The smallest area between the lines; the usual choice for training and for normally trained networks.

    Example:
      >>> float(jaxbound.relax.adaptive(jaxbound.Interval(-1.0, 3.0)).lower.slopes[0])
      1.0

    References:
      Zhang et al. 2018 (CROWN), arXiv:1811.00866.
    """
    return _lines(x, slope, jnp.where(x.upper >= -x.lower, 1.0, slope))


def tight(x: Interval, slope: Array = 0.0) -> Relaxation:
    """Lower line slope * z: never below the interval's own bound, so CROWN-IBP is never looser than IBP.

    The choice for verifying networks trained by IBP.

    Example:
      >>> float(jaxbound.relax.tight(jaxbound.Interval(-1.0, 3.0)).lower.slopes[0])
      0.0

    References:
      Lyu et al. 2021, CVPR, section 4.
    """
    return _lines(x, slope, jnp.broadcast_to(jnp.asarray(slope, jnp.result_type(x.lower)), jnp.shape(x.lower)))


def one(x: Interval, slope: Array = 0.0) -> Relaxation:
    """Lower line z.

    Example:
      >>> float(jaxbound.relax.one(jaxbound.Interval(-3.0, 1.0)).lower.slopes[0])
      1.0
    """
    return _lines(x, slope, jnp.ones_like(x.lower))


def same_slope(x: Interval, slope: Array = 0.0) -> Relaxation:
    """Lower line parallel to the upper one.

    Example:
      >>> float(jaxbound.relax.same_slope(jaxbound.Interval(-1.0, 3.0)).lower.slopes[0])
      0.75

    References:
      Weng et al. 2018 (Fast-Lin), arXiv:1804.09699.
    """
    return _lines(x, slope, None)


def constant(x: Interval, slope: Array = 0.0) -> Relaxation:
    """Both slopes zero: f(lower) <= f(z) <= f(upper). Backward bounds with it are interval bounds.

    Example:
      >>> jaxbound.relax.constant(jaxbound.Interval(-1.0, 3.0)).upper.intercept
      Array(3., dtype=float32, weak_type=True)
    """
    flat = jnp.zeros_like(x.lower)
    lower, upper = (jnp.where(end > 0, end, slope * end) for end in x)
    return Relaxation(line(flat, lower), line(flat, upper))


def _lines(x: Interval, slope: Array, crossing: Array | None) -> Relaxation:
    """The chord above; below z, slope * z, or where the interval crosses zero the given slope (None: the chord's)."""
    low, high = jnp.minimum(x.lower, 0), jnp.maximum(x.upper, 0)
    width = high - low
    active = high / jnp.where(width > 0, width, 1)  # how much of the interval is above zero: 0 dead, 1 alive
    rise = slope + (1 - slope) * active
    above = line(rise, -(1 - slope) * active * low)
    if crossing is not None:
        rise = jnp.where((x.lower < 0) & (x.upper > 0), crossing, rise)
    return Relaxation(line(jnp.where(jnp.isfinite(rise), rise, slope), zero(rise)), above)
