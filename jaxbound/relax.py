"""Strategies for the lines around a ReLU and its kin: the values of every `relu=` option.

A strategy is a function `(x, slope, top) -> Relaxation` on the interval x for the ramp

    f(z) = slope * z + (1 - slope) * clip(z, 0, top),    0 <= slope <= 1,  top >= 0,

which bends upwards at zero and back at `top`: ReLU, leaky ReLU (top is None, or infinite), clipping and
`jaxbound.ramp`. All strategies but `constant` are exact on intervals without a bend inside; they differ in the lower
line where zero is inside and, its mirror image, in the upper line where `top` is inside.

A strategy may leave the parameter `top` out: a ramp is then bounded as the difference of two functions of one bend.
"""

from collections.abc import Callable

import jax.numpy as jnp

from jaxbound.rules.relaxation import Affine, Freedom, Relaxation, is_zero, line, settled, support, zero
from jaxbound.sets import Array, Interval

ReluStrategy = Callable[..., Relaxation]  # (x, slope) or, for ramps, (x, slope, top)


def adaptive(x: Interval, slope: Array = 0.0, top: Array | None = None) -> Relaxation:
    """Lower line z where the upper end is at least as far from zero as the lower one, slope * z elsewhere.

    The smallest area between the lines; the usual choice for training and for normally trained networks. At a ramp's
    upper bend, its mirror image.

    Example:
      >>> float(jaxbound.relax.adaptive(jaxbound.Interval(-1.0, 3.0)).lower.slopes[0])
      1.0

    References:
      Zhang et al. 2018 (CROWN), arXiv:1811.00866.
    """
    nearer_zero = x.upper >= -x.lower
    if top is None:
        return _lines(x, slope, jnp.where(nearer_zero, 1.0, slope))
    return _ramp(x, slope, top, steep=(nearer_zero, x.upper - top <= top - x.lower))


def tight(x: Interval, slope: Array = 0.0, top: Array | None = None) -> Relaxation:
    """Lower line slope * z: never below the interval's own bound, so CROWN-IBP is never looser than IBP.

    Over a ramp's upper bend the line that is exact beyond it, likewise never above the interval's own bound.
    The choice for verifying networks trained by IBP.

    Example:
      >>> float(jaxbound.relax.tight(jaxbound.Interval(-1.0, 3.0)).lower.slopes[0])
      0.0

    References:
      Lyu et al. 2021, CVPR, section 4.
    """
    if top is not None:
        return _ramp(x, slope, top, steep=(False, False))
    return _lines(x, slope, jnp.broadcast_to(jnp.asarray(slope, jnp.result_type(x.lower)), jnp.shape(x.lower)))


def one(x: Interval, slope: Array = 0.0, top: Array | None = None) -> Relaxation:
    """Lower line z; around a ramp the line from zero to the upper end, above it that from the lower end to the top.

    Example:
      >>> float(jaxbound.relax.one(jaxbound.Interval(-3.0, 1.0)).lower.slopes[0])
      1.0
    """
    if top is not None:
        return _ramp(x, slope, top, steep=(True, True))
    return _lines(x, slope, jnp.ones_like(x.lower))


def between(x: Interval, slope: Array = 0.0, top: Array | None = None, *, free: Freedom) -> Relaxation:
    """Lines between those of `tight` and those of `one`; `free` tells where, from 0 to 1: what alpha-CROWN optimises.

    Args:
      x, slope, top: as for every strategy, which `functools.partial(between, free=free)` is.
      free: weights of `one`'s lower and, for ramps, upper line, of the shape of x.

    Example:
      >>> free = jaxbound.Freedom(0.25, 0.0)
      >>> float(jaxbound.relax.between(jaxbound.Interval(-1.0, 3.0), free=free).lower.slopes[0])
      0.25

    References:
      Xu et al. 2021 (alpha-CROWN), arXiv:2011.13824.
    """

    def mixed(first: Affine, second: Affine, part: Array) -> Affine:
        rise = (1 - part) * first.slopes[0] + part * second.slopes[0]
        if is_zero(first.intercept) and is_zero(second.intercept):
            return line(rise, first.intercept)
        return line(rise, (1 - part) * first.intercept + part * second.intercept)

    first, second = tight(x, slope, top), one(x, slope, top)
    below = mixed(first.lower, second.lower, free.lower)
    # Without a top there is one line above, the chord, and no row needs its own.
    return Relaxation(below, first.upper if top is None else mixed(first.upper, second.upper, free.upper))


def same_slope(x: Interval, slope: Array = 0.0, top: Array | None = None) -> Relaxation:
    """Lower line parallel to the upper one; around a ramp both have the chord's slope.

    Example:
      >>> float(jaxbound.relax.same_slope(jaxbound.Interval(-1.0, 3.0)).lower.slopes[0])
      0.75

    References:
      Weng et al. 2018 (Fast-Lin), arXiv:1804.09699.
    """
    if top is None:
        return _lines(x, slope, None)
    width = x.upper - x.lower
    risen = jnp.clip(x.upper, 0, top) - jnp.clip(x.lower, 0, top)
    part = jnp.where(width > 0, risen / jnp.where(width > 0, width, 1), 0)
    part = jnp.where((x.lower >= 0) & (x.upper > 0) & (x.upper <= top), 1, part)
    points = (x.lower, x.upper, jnp.clip(0, x.lower, x.upper), jnp.clip(top, x.lower, x.upper))
    return Relaxation(*support(lambda z: _value(z, slope, top), slope + (1 - slope) * part, points))


def constant(x: Interval, slope: Array = 0.0, top: Array | None = None) -> Relaxation:
    """Both slopes zero: f(lower) <= f(z) <= f(upper). Backward bounds with it are interval bounds.

    Example:
      >>> jaxbound.relax.constant(jaxbound.Interval(-1.0, 3.0)).upper.intercept
      Array(3., dtype=float32, weak_type=True)
    """
    flat = jnp.zeros_like(x.lower)
    lower, upper = (_value(end, slope, top) for end in x)
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


def _value(z: Array, slope: Array, top: Array | None) -> Array:
    """f(z)."""
    leaky = jnp.where(z > 0, z, slope * z)
    return leaky if top is None else jnp.where(z > top, slope * z + (1 - slope) * _finite(top), leaky)


def _finite(top: Array) -> Array:
    """The top, zero where there is none: a branch that is not taken may not hold infinities, or derivatives are NaN."""
    return jnp.where(jnp.isfinite(top), top, 0)


def _ramp(x: Interval, slope: Array, top: Array, *, steep: tuple[Array, Array]) -> Relaxation:
    """Lines around a ramp.

    Below: slope * z, or the line from zero (from the lower end, if it is on the rising piece) to the upper end. Above,
    its mirror image: the line of the piece beyond the top, or the line from the lower end to the top (to the upper
    end). Where an interval starts below zero, or ends beyond the top, `steep` tells (below, above) to take the second.
    """
    low, high = jnp.minimum(x.lower, 0), jnp.clip(x.upper, 0, top)
    width = high - low
    active = high / jnp.where(width > 0, width, 1)  # how much of what lies below the top is above zero
    start, beyond = jnp.clip(x.lower, 0, top), jnp.maximum(x.upper - top, 0)
    rest = jnp.where(beyond > 0, x.upper - start, 1)
    passive = beyond / rest  # how much of what lies above zero is beyond the top
    # Not 1 - passive, which loses every digit where the interval is long: its error is multiplied by that length.
    rising = jnp.where(beyond > 0, (_finite(top) - start) / rest, 1)
    late = (x.upper > 0) & ((x.lower >= 0) | steep[0])
    rises = (x.upper <= top) | ((x.lower < top) & steep[1])
    active, passive, rising, late, rises = settled(active, passive, rising, late, rises)
    gain = 1 - slope
    below = line(jnp.where(late, slope + gain * rising, slope), jnp.where(late, gain * passive * start, 0))
    above = line(
        jnp.where(rises, slope + gain * active, slope), jnp.where(rises, -gain * active * low, gain * _finite(top))
    )
    return Relaxation(below, above)
