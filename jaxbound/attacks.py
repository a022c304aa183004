"""Attacks: the worst inputs that a gradient finds inside a set.

They bound a network's true error from below as the bound transforms bound it from above. An objective is a function
`(output, label) -> scalar` that the attack makes as large as it can.
"""

import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxbound.sets import Array, Ball, Interval, Set, bounding_box, contains, norm

Objective = Callable[[Any, Any], Array]


def margin(logits: Array, label: Any) -> Array:
    """The largest other logit minus the label's: positive where the classification is wrong.

    Args:
      logits: [K].
      label: integer scalar.

    Returns:
      Scalar max_{j != label} logits_j - logits_label.

    Example:
      >>> float(jaxbound.attacks.margin(jnp.array([1.0, 3.0, 2.5]), 1))
      -0.5
    """
    others = jnp.where(jnp.arange(logits.shape[-1]) == label, -jnp.inf, logits)
    return jnp.max(others) - logits[label]


def cross_entropy(logits: Array, label: Any) -> Array:
    """The cross-entropy of a label, the loss that most published attacks maximise.

    Args:
      logits: [K].
      label: integer scalar.

    Returns:
      Scalar logsumexp(logits) - logits_label.

    Example:
      >>> round(float(jaxbound.attacks.cross_entropy(jnp.zeros(2), 0)), 4)
      0.6931
    """
    return jax.nn.logsumexp(logits) - logits[label]


class _Best(NamedTuple):
    """The best input met so far; `value` is never NaN."""

    x: Array
    value: Array


class _Moves(NamedTuple):
    """How to move in a set: key -> a random point; gradient -> a step of length 1; any point -> one of the set."""

    start: Callable[[Array], Array]
    step: Callable[[Array], Array]
    project: Callable[[Array], Array]


def pgd(
    fn: Callable[[Array], Any], *, objective: Objective = cross_entropy, steps: int, step_size: Any, restarts: int = 1
) -> Callable[[Array, Set, Any], Array]:
    """Projected gradient ascent in a box or in an l_2 or l_1 ball, from random starts.

    In a box steps go along the gradient's sign, in a ball along the gradient itself, normalised. Every iterate counts,
    not only the last one: the input with the largest objective over all steps and restarts is returned. Steps are a
    `lax.scan` and restarts a `vmap`, so an attack is one compiled program.

    Args:
      fn: function of ONE example, array -> output. Its parameters may be traced values.
      objective: what to maximise, `(fn(x), label) -> scalar`; `attacks.margin`, `attacks.cross_entropy` or your own.
      steps: number of gradient steps; 0 returns the best random start.
      step_size: length of a step in the input's own units (pixels, or normalised units where the input is normalised):
        in a box of every coordinate, in a ball of the whole step. A scalar or an array that broadcasts against the
        input, e.g. `0.1 * radius`.
      restarts: number of random starts.

    Returns:
      A jitted function `(key, region, label) -> x` of one example: a PRNG key, an `Interval` or a `Ball`, an integer
      scalar; x has the set's shape and always lies in it. Batches go through `jax.vmap`, with one key per example.

    Raises:
      ValueError: `steps` is negative or `restarts` not positive; by the returned function, TypeError for what is
        not a set, and for a ball whose p is not 1, 2 or infinity.

    Example:
      >>> attack = jaxbound.attacks.pgd(lambda x: jnp.array([x[0] - x[1], 0.0]), steps=5, step_size=0.1)
      >>> attack(jax.random.key(0), jaxbound.linf_ball(jnp.array([0.5, 0.5]), 0.25), 0)
      Array([0.25, 0.75], dtype=float32)

    References:
      Madry et al. 2018, arXiv:1706.06083.
    """
    steps, restarts = operator.index(steps), operator.index(restarts)
    if steps < 0:
        raise ValueError(f"steps must not be negative, got {steps}")
    if restarts < 1:
        raise ValueError(f"restarts must be at least 1, got {restarts}")

    def attack(key: Array, region: Set, label: Any) -> Array:
        moves = _moves(region)
        value_and_grad = jax.value_and_grad(lambda x: objective(fn(x), label))

        def step(carry: tuple[Array, _Best], _: None) -> tuple[tuple[Array, _Best], None]:
            x, best = carry
            value, gradient = value_and_grad(x)
            return (moves.project(x + step_size * moves.step(gradient)), _better(best, x, value)), None

        def climb(key: Array) -> _Best:
            start = moves.project(moves.start(key))
            nothing = _Best(start, jnp.array(-jnp.inf, start.dtype))
            (last, best), _ = jax.lax.scan(step, (start, nothing), None, length=steps)
            return _better(best, last, objective(fn(last), label))

        found = jax.vmap(climb)(jax.random.split(key, restarts))
        return found.x[jnp.argmax(found.value)]

    return jax.jit(attack)


def _moves(region: Set) -> _Moves:
    if isinstance(region, Interval):
        return _moves_in_box(region)
    if isinstance(region, Ball) and region.p == math.inf:
        return _moves_in_box(_box_of(region))
    if isinstance(region, Ball) and region.p in (1, 2):
        return _moves_in_ball(region)
    kind = f"a ball of p = {region.p}" if isinstance(region, Ball) else type(region).__name__
    raise TypeError(
        f"pgd attacks a box (jaxbound.Interval) or a ball (jaxbound.Ball) of p = 1, 2 or inf, got {kind}; other sets "
        f"can only be attacked from inside, through a box or a ball that they contain"
    )


def _moves_in_box(box: Interval) -> _Moves:
    def start(key: Array) -> Array:
        uniform = jax.random.uniform(key, box.lower.shape, box.lower.dtype)
        return box.lower + uniform * (box.upper - box.lower)

    # A NaN gradient has no direction; without this it would move the iterate out of the box for good.
    return _Moves(
        start,
        lambda gradient: jnp.where(jnp.isnan(gradient), 0, jnp.sign(gradient)),
        lambda x: jnp.clip(x, box.lower, box.upper),
    )


def _box_of(ball: Ball) -> Interval:
    """The box of an l_inf ball, its ends rounded inwards: none is further from the centre than the radius."""
    box = bounding_box(ball)
    return Interval(
        jnp.where(box.lower < ball.center, jnp.nextafter(box.lower, ball.center), box.lower),
        jnp.where(box.upper > ball.center, jnp.nextafter(box.upper, ball.center), box.upper),
    )


def _moves_in_ball(ball: Ball) -> _Moves:
    """Steps and projections of an l_2 or l_1 ball, or of an ellipsoid: along its axes it is a unit ball."""
    free = ball.radius > 0
    scale = jnp.where(free, ball.radius, 1)
    home = ball.center if ball.clip is None else jnp.clip(ball.center, ball.clip.lower, ball.clip.upper)
    # What rounding of center + radius * d, and of its way back to d, may add to the length of d.
    eps = jnp.finfo(ball.center.dtype).eps
    longest = jnp.maximum(0, 1 - 4 * eps * (2 + norm(jnp.where(free, ball.center / scale, 0), ball.p)))

    def start(key: Array) -> Array:
        direction, length = jax.random.split(key)
        unit = _unit(jax.random.normal(direction, ball.center.shape, ball.center.dtype))
        reach = jax.random.uniform(length, (), ball.center.dtype) ** (1 / max(1, ball.center.size))
        return ball.center + ball.radius * unit * (reach / jnp.maximum(1, norm(unit, ball.p)))

    def project(x: Array) -> Array:
        offset = jnp.where(free, (x - ball.center) / scale, 0)
        offset = _nearest_of_l1_ball(offset) if ball.p == 1 else offset
        x = ball.center + ball.radius * offset * (longest / jnp.maximum(norm(offset, ball.p), longest))
        # Clipping brings every coordinate closer to a centre inside the clip box, so the point stays in the ball.
        x = x if ball.clip is None else jnp.clip(x, ball.clip.lower, ball.clip.upper)
        return jnp.where(contains(ball, x), x, home)

    return _Moves(start, lambda gradient: _unit(ball.radius**2 * _finite(gradient)), project)


def _nearest_of_l1_ball(x: Array) -> Array:
    """The point of the unit l_1 ball that is nearest to x: all elements shrunk by the same amount, small ones to zero.

    Radial scaling would leave an attack among dense vectors, while a linear function is largest at a corner.
    """
    sizes = jnp.sort(jnp.abs(x).ravel(), descending=True)
    amounts = (jnp.cumsum(sizes) - 1) / jnp.arange(1, 1 + x.size, dtype=x.dtype)
    return jnp.sign(x) * jnp.maximum(jnp.abs(x) - jnp.maximum(jnp.max(amounts, initial=0), 0), 0)


def _finite(x: Array) -> Array:
    """The same without NaN and infinity, scaled to a largest element of 1: its squares neither vanish nor overflow."""
    x = jnp.where(jnp.isfinite(x), x, 0)
    largest = jnp.max(jnp.abs(x), initial=0)
    return x / jnp.where(largest > 0, largest, 1)


def _unit(x: Array) -> Array:
    """A vector of length 1 in the same direction; zero stays zero."""
    x = _finite(x)
    length = norm(x, 2)
    return x / jnp.where(length > 0, length, 1)


def _better(best: _Best, x: Array, value: Array) -> _Best:
    """Keeps x if it beats the best so far; a NaN beats nothing."""
    wins = value > best.value
    return _Best(jnp.where(wins, x, best.x), jnp.where(wins, value, best.value).astype(best.value.dtype))
