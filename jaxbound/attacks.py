"""Attacks: the worst inputs that a gradient finds inside a box.

They bound a network's true error from below as the bound transforms bound it from above. An objective is a function
`(output, label) -> scalar` that the attack makes as large as it can.
"""

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxbound.sets import Array, Interval

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


def pgd(
    fn: Callable[[Array], Any], *, objective: Objective = cross_entropy, steps: int, step_size: Any, restarts: int = 1
) -> Callable[[Array, Interval, Any], Array]:
    """Projected gradient ascent in a box: steps along the gradient's sign from uniformly random starts.

    Every iterate counts, not only the last one: the input with the largest objective over all steps and restarts is
    returned. Steps are a `lax.scan` and restarts a `vmap`, so an attack is one compiled program.

    Args:
      fn: function of ONE example, array -> output. Its parameters may be traced values.
      objective: what to maximise, `(fn(x), label) -> scalar`; `attacks.margin`, `attacks.cross_entropy` or your own.
      steps: number of gradient steps; 0 returns the best random start.
      step_size: length of a step in every coordinate, in the input's own units (pixels, or normalised units where the
        input is normalised): a scalar or an array that broadcasts against the input, e.g. `0.1 * radius`.
      restarts: number of random starts.

    Returns:
      A jitted function `(key, box, label) -> x` of one example: a PRNG key, an `Interval`, an integer scalar; x has the
      box's shape and always lies in it. Batches go through `jax.vmap`, with one key per example.

    Raises:
      ValueError: `steps` is negative or `restarts` not positive; by the returned function, TypeError for a set that
        is not an `Interval`.

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

    def attack(key: Array, box: Interval, label: Any) -> Array:
        if not isinstance(box, Interval):
            raise TypeError(f"pgd attacks a box (jaxbound.Interval), got {type(box).__name__}")
        value_and_grad = jax.value_and_grad(lambda x: objective(fn(x), label))

        def project(x: Array) -> Array:
            return jnp.clip(x, box.lower, box.upper)

        def step(carry: tuple[Array, _Best], _: None) -> tuple[tuple[Array, _Best], None]:
            x, best = carry
            value, gradient = value_and_grad(x)
            # A NaN gradient has no direction; without this it would move the iterate out of the box for good.
            direction = jnp.where(jnp.isnan(gradient), 0, jnp.sign(gradient))
            return (project(x + step_size * direction), _better(best, x, value)), None

        def climb(key: Array) -> _Best:
            uniform = jax.random.uniform(key, box.lower.shape, box.lower.dtype)
            start = project(box.lower + uniform * (box.upper - box.lower))
            nothing = _Best(start, jnp.array(-jnp.inf, start.dtype))
            (last, best), _ = jax.lax.scan(step, (start, nothing), None, length=steps)
            return _better(best, last, objective(fn(last), label))

        found = jax.vmap(climb)(jax.random.split(key, restarts))
        return found.x[jnp.argmax(found.value)]

    return jax.jit(attack)


def _better(best: _Best, x: Array, value: Array) -> _Best:
    """Keeps x if it beats the best so far; a NaN beats nothing."""
    wins = value > best.value
    return _Best(jnp.where(wins, x, best.x), jnp.where(wins, value, best.value).astype(best.value.dtype))
