"""Checks for rules and sets that users write."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbound.rules.activations import Elementwise
from jaxbound.sets import Interval, SupportSet, element


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


def check_support(region: SupportSet, points: Any = None, *, seed: int = 0) -> None:
    """Samples what must be true of a support function h, in dense and in sparse directions c and d.

    h(c + d) <= h(c) + h(d), h(3 c) = 3 h(c), and the derivative x of h at c has <c, x> = h(c). This does not show that
    h is large enough for the set that was meant; points of that set do, where there are any: <c, point> <= h(c).

    Args:
      region: one set, no batch.
      points: points [N, *shape] that must lie in the set.
      seed: of the samples.

    Raises:
      AssertionError: one of these is violated, or NaN; or a point lies outside the box.

    Example:
      >>> def disk(c, radius):
      ...     return radius * jnp.sqrt(jnp.sum(c * c))
      >>> rim = jnp.array([[0.5, 0.0], [0.3, 0.4]])
      >>> jaxbound.testing.check_support(jaxbound.support_set(disk, 0.5, shape=(2,)), rim)
      >>> jaxbound.testing.check_support(jaxbound.support_set(disk, 0.25, shape=(2,)), rim)
      Traceback (most recent call last):
      AssertionError: a point lies outside the set: ...
    """
    like = element(region)
    c, d = (_directions(np.random.default_rng((seed, k)), like) for k in range(2))
    largest, product = jax.vmap(region.largest), jax.vmap(lambda c, x: jnp.sum(c * x))
    attained = product(c, jax.vmap(jax.grad(region.largest))(c))
    _compare("a support function must be subadditive: h(c + d) <= h(c) + h(d)", largest(c + d), largest(c) + largest(d))
    for below, above in ((largest(3 * c), 3 * largest(c)), (3 * largest(c), largest(3 * c))):
        _compare("a support function must be positively homogeneous: h(3 c) = 3 h(c)", below, above)
    for below, above in ((attained, largest(c)), (largest(c), attained)):
        _compare("the derivative of a support function must be a point with <c, x> = h(c)", below, above)
    for point in () if points is None else jnp.asarray(points, like.dtype):
        everywhere = jnp.broadcast_to(point, c.shape)
        _compare("a point lies outside the set: <c, x> <= h(c)", product(c, everywhere), largest(c))
        _compare("a point lies outside the box", jnp.ravel(region.box.lower), jnp.ravel(point))
        _compare("a point lies outside the box", jnp.ravel(point), jnp.ravel(region.box.upper))


def _directions(rng: np.random.Generator, like: Any, count: int = 256) -> Any:
    """Random arrays, half of them with many zeros."""
    axes = tuple(range(1, like.ndim + 1))
    kept = rng.uniform(size=(count, *like.shape)) < np.expand_dims(rng.choice([0.2, 1.0], count), axes)
    kept |= ~kept.any(axis=axes, keepdims=True)
    return jnp.asarray(kept * rng.normal(size=kept.shape), like.dtype)


def _compare(claim: str, below: Any, above: Any) -> None:
    """Raises unless below <= above up to rounding."""
    slack = 1024 * jnp.finfo(below.dtype).eps * (1 + jnp.abs(below) + jnp.abs(above))
    excess = jnp.where(jnp.isnan(below - above), jnp.inf, below - above - slack)
    if jnp.max(excess, initial=-jnp.inf) > 0:
        k = int(jnp.argmax(excess))
        raise AssertionError(f"{claim}, violated by {float(below[k])} > {float(above[k])}")
