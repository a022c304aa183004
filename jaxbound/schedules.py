"""Schedules of a perturbation radius and of the weights that follow it.

A schedule is a function `step -> value`, the same thing that an optax schedule is: it runs under `jit`, takes a Python
integer or a traced one, and goes wherever optax takes a schedule (`optax.join_schedules`, `inject_hyperparams`, ...).

`linear` agrees with `optax.linear_schedule` value for value and is written out here all the same, because optax imports
chex and absl, which `import jaxbound` must not need; the smoothed ramp has no counterpart in optax. Learning rates,
for which optax has everything, are left to it.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

Schedule = Callable[[Any], Any]  # step, an integer scalar -> value, a float scalar


def linear(init_value: float, end_value: float, *, begin: int, end: int) -> Schedule:
    """A straight ramp from one value to another, constant before and after it.

    value(s) = init_value + (end_value - init_value) * clip((s - begin) / (end - begin), 0, 1)

    Args:
      init_value: value up to step `begin`.
      end_value: value from step `end` on.
      begin: the last step with the first value, >= 0.
      end: the first step with the last value, > `begin`.

    Returns:
      A schedule.

    Raises:
      ValueError: a ramp that ends where or before it begins, or begins before step 0.

    Example:
      >>> radius = jaxbound.schedules.linear(0.0, 0.4, begin=100, end=300)
      >>> [round(float(radius(step)), 3) for step in (0, 100, 200, 300, 1000)]
      [0.0, 0.0, 0.2, 0.4, 0.4]
    """
    _check_ramp(begin, end)

    def schedule(step: Any) -> Any:
        return init_value + (end_value - init_value) * jnp.clip((step - begin) / (end - begin), 0, 1)

    return schedule


def smoothed(
    init_value: float, end_value: float, *, begin: int, end: int, mid: float = 0.25, exponent: float = 4.0
) -> Schedule:
    """A ramp that starts flat: a power of the step up to a switch, then a straight line of the same slope.

    With the switch at step M = begin + floor(mid * (end - begin)), the value grows as (s - begin)^exponent before M and
    linearly after it; value and slope are continuous at M.

    Args:
      init_value: value up to step `begin`.
      end_value: value from step `end` on.
      begin: the last step with the first value, >= 0.
      end: the first step with the last value, > `begin`.
      mid: fraction of the ramp that is curved, in (0, 1).
      exponent: how flat the start is, >= 1; 1 is the linear ramp.

    Returns:
      A schedule.

    Raises:
      ValueError: a ramp that ends where or before it begins, or begins before step 0; `mid` outside (0, 1);
        `exponent` below 1.

    Example:
      >>> radius = jaxbound.schedules.smoothed(0.0, 1.0, begin=0, end=1000)
      >>> [round(float(radius(step)), 6) for step in (100, 250, 500, 1000)]
      [0.001969, 0.076923, 0.384615, 1.0]

    References:
      Gowal et al. 2018, arXiv:1810.12715 (its published code).
    """
    _check_ramp(begin, end)
    if not 0 < mid < 1:
        raise ValueError(f"mid must lie strictly between 0 and 1, got {mid}: it is the curved fraction of the ramp")
    if not exponent >= 1:
        raise ValueError(f"exponent must be at least 1, got {exponent}: below that the ramp would start vertically")
    curved = int(mid * (end - begin))  # steps before the switch; 0 on a very short ramp, which is then straight
    straight = end - begin - curved
    # Equal slopes at the switch, e * (middle - init) / curved = (end - middle) / straight, give this share of the rise.
    share = curved / (exponent * straight + curved)

    def schedule(step: Any) -> Any:
        power = share * jnp.clip((step - begin) / max(curved, 1), 0, 1) ** exponent
        line = (1 - share) * jnp.clip((step - begin - curved) / straight, 0, 1)
        return init_value + (end_value - init_value) * (power + line)

    return schedule


def following(radius: Schedule, start: float, end: float, *, full: float) -> Schedule:
    """A weight that moves from `start` to `end` as a radius grows from 0 to `full`, and so takes the radius's shape.

    value(s) = start + (end - start) * radius(s) / full. Certified training lets kappa, the weight of the natural loss,
    and beta, the weight of a tighter bound, follow the radius in this way.

    Args:
      radius: the schedule to follow, with values from 0 to `full`.
      start: value where the radius is 0.
      end: value where the radius is `full`.
      full: the largest radius, > 0, in the units of `radius`.

    Returns:
      A schedule.

    Raises:
      ValueError: `full` is not positive.

    Example:
      >>> radius = jaxbound.schedules.linear(0.0, 0.4, begin=100, end=300)
      >>> kappa = jaxbound.schedules.following(radius, 1.0, 0.5, full=0.4)
      >>> [round(float(kappa(step)), 3) for step in (0, 200, 300)]
      [1.0, 0.75, 0.5]

    References:
      Zhang et al. 2020, arXiv:1906.06316.
    """
    if not full > 0:
        raise ValueError(f"full must be positive, got {full}: it is the radius at which the weight reaches its end")
    return lambda step: start + (end - start) * (radius(step) / full)


def _check_ramp(begin: int, end: int) -> None:
    if begin < 0:
        raise ValueError(f"a ramp cannot begin before step 0, got begin={begin}")
    if not end > begin:
        raise ValueError(f"a ramp must end after it begins, got begin={begin} and end={end}")
