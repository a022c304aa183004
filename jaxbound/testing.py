"""Checks for rules that users write."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxbound.rules.activations import Elementwise
from jaxbound.sets import Interval


def check_rule(
    fn: Callable, rule: Elementwise, *, domain: tuple[float, float] = (-4.0, 4.0), operands: int = 1, seed: int = 0
) -> None:
    """Samples an elementwise rule on many intervals: its interval and both of its lines must enclose the function.

    Wide, narrow and single-point intervals are tried, with their ends, their middles and random points in them.

    Args:
      fn: the elementwise function, of `operands` arrays.
      rule: what would be given to `jaxbound.atomic`.
      domain: where all intervals lie.
      operands: how many arrays `fn` takes; all of them are sets here.
      seed: of the samples.

    Raises:
      AssertionError: a value outside, or NaN; it names the bound, the interval, the point and by how much.

    Example:
      >>> def interval(x):
      ...     return jaxbound.Interval(jnp.tanh(x.lower), jnp.tanh(x.upper))
      >>> def relax(x):
      ...     flat = jnp.zeros_like(x.lower)
      ...     return jaxbound.Relaxation(*(jaxbound.Affine((flat,), end) for end in interval(x)))
      >>> jaxbound.testing.check_rule(jnp.tanh, jaxbound.Elementwise(interval, relax))
      >>> jaxbound.testing.check_rule(jnp.sin, jaxbound.Elementwise(interval, relax))
      Traceback (most recent call last):
      AssertionError: the interval's lower end is violated ...
    """
    rng = np.random.default_rng(seed)
    boxes = [_intervals(rng, domain) for _ in range(operands)]
    interval, relaxation = rule.interval(*boxes), rule.relax(*boxes)
    for position in np.concatenate([np.linspace(0, 1, 9), rng.uniform(size=24)]):
        others = [position, *rng.uniform(size=operands - 1)]
        points = [jnp.clip(b.lower + t * (b.upper - b.lower), *b) for b, t in zip(boxes, others, strict=True)]
        values = fn(*points)
        lines = [side(*points) for side in relaxation]
        for name, below, above in (
            ("interval's lower end", interval.lower, values),
            ("interval's upper end", values, interval.upper),
            ("lower line", lines[0], values),
            ("upper line", values, lines[1]),
        ):
            _check(name, below, above, boxes=boxes, points=points)


def _intervals(rng: np.random.Generator, domain: tuple[float, float], count: int = 512) -> Interval:
    low, high = domain
    ends = rng.uniform(low, high, (2, count)) * rng.choice([1.0, 0.1], count)
    ends[1] = ends[0] + (ends[1] - ends[0]) * rng.choice([1.0, 1e-3, 0.0], count)
    ends = jnp.clip(jnp.sort(jnp.asarray(ends, float), axis=0), low, high)
    return Interval(ends[0], ends[1])


def _check(name: str, below: Any, above: Any, *, boxes: list[Interval], points: list[Any]) -> None:
    """Raises unless below <= above up to rounding."""
    slack = 64 * jnp.finfo(points[0].dtype).eps * (1 + jnp.abs(below) + jnp.abs(above))
    excess = jnp.where(jnp.isnan(below - above), jnp.inf, below - above - slack)
    k = int(jnp.argmax(excess))
    if excess[k] > 0:
        where = ", ".join(
            f"{float(p[k])} in [{float(b.lower[k])}, {float(b.upper[k])}]" for p, b in zip(points, boxes, strict=True)
        )
        raise AssertionError(f"the {name} is violated by {float(excess[k])} at {where}")
