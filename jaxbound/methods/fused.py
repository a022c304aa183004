"""Loss fusion: the cross-entropy itself is bounded, by one backward pass whatever the number of classes."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxbound import relax
from jaxbound.bounds import lower_value
from jaxbound.methods.backward import blend, check_beta, is_number
from jaxbound.methods.chunks import Chunks
from jaxbound.methods.interval import Propagation, linear_tail, propagate
from jaxbound.methods.problem import Problem, prepare
from jaxbound.methods.rows import choose_lines, lower_rows
from jaxbound.rules.softmax import mean_decay
from jaxbound.sets import Array, Interval, Set, midpoint, radius
from jaxbound.specs import checked_label

# The rows of the margins are others for each example of a batch: so many classes' are held, and made again for
# derivatives. All of them, [B, K, *x], drive a step with many classes out of the cache (`python -m benchmarks.fusion`).
AT_ONCE = Chunks(size=32, again=True)


def fused_cross_entropy(fn: Callable, *, relu: relax.ReluStrategy = relax.adaptive, beta: Any = 1.0) -> Callable:
    """Turns a classifier into an upper bound of its cross-entropy, at a cost that does not grow with the classes.

    CE = log sum_i exp(-d_i) with the margins d_i = z_label - z_i. On their IBP intervals (with elision) each exp(-d_i)
    lies below its chord, and the sum of all chords is one linear functional of the logits: one row goes backwards,
    instead of the K-1 rows of `margin_spec`. The sum is mixed, beta * CROWN-IBP + (1 - beta) * IBP, before the
    logarithm. The result can be tighter or looser than the robust cross-entropy of CROWN-IBP's margins.

    Args:
      fn: a JAX function of one example, as for `ibp`, that returns logits [K].
      relu: the lines around ReLUs, one of `jaxbound.relax`.
      beta: weight of CROWN-IBP in [0, 1], as for `crown_ibp`. The Python number 0 leaves out the backward pass: the
        result is then the robust cross-entropy of IBP's margins.

    Returns:
      `bound(*args, label, **kwargs)`: a scalar, >= the cross-entropy of fn(x) with the integer `label` for every x of
      the sets; differentiable, batched by `jax.vmap`. Invalid numbers make it +inf.

    Raises:
      UnsupportedError, ValueError: as for `crown_ibp`; also a function that does not return logits [K], K >= 2, or a
        label outside [0, K). A traced label out of range makes the result +inf.

    Example:
      >>> def model(x):
      ...     return jnp.array([[2.0, -1.0], [1.0, 1.0]]) @ jnp.maximum(jnp.array([[1.0, 1.0], [-1.0, 1.0]]) @ x, 0.0)
      >>> box = jaxbound.linf_ball(jnp.array([0.5, 0.75]), 0.25)
      >>> for beta in (0, 0.5, 1):
      ...     print(f"{jaxbound.fused_cross_entropy(model, beta=beta)(box, label=0):.4f}")
      1.1369
      1.0725
      1.0037
      >>> print(f"{jaxbound.attacks.cross_entropy(model(jnp.array([0.25, 1.0])), 0):.4f}")
      0.8259

    References:
      Xu et al. 2020, arXiv:2002.12920.
    """
    check_beta(beta)

    @functools.wraps(fn)
    def bound(*args: Any, label: Any, **kwargs: Any) -> Array:
        problem = prepare(fn, args, kwargs)
        label, valid = checked_label(label, _num_classes(problem))
        without_lines = is_number(beta, 0)
        propagation = propagate(problem.program, problem.sets, None if without_lines else relu)
        margins = _margins(problem, propagation, label)
        # All exponentials are taken relative to the largest one, so that none overflows.
        top = jax.lax.stop_gradient(jnp.max(-margins.lower))
        largest = jnp.exp(-margins.lower - top)
        total = jnp.sum(largest)
        if not without_lines:
            chords = _sum_of_chords(problem, propagation, margins, largest=largest, label=label)
            total = chords if is_number(beta, 1) else blend(beta, chords, total)
        loss = top + jnp.log(total)
        return jnp.where(valid & ~jnp.isnan(loss), loss, jnp.inf)

    return bound


def _num_classes(problem: Problem) -> int:
    shapes = jax.tree.leaves(problem.output)
    if len(shapes) != 1 or len(shapes[0].shape) != 1 or shapes[0].shape[0] < 2:
        found = ", ".join(str(list(shape.shape)) for shape in shapes)
        raise ValueError(
            f"fused_cross_entropy needs a function that returns logits [K] of ONE example with K >= 2, got {found}. If "
            f"the function maps a batch, wrap it by jaxbound.per_example and batch the bounds by jax.vmap."
        )
    return shapes[0].shape[0]


def _margins(problem: Problem, propagation: Propagation, label: Array) -> Interval:
    """Both ends [K] of z_label - z_i, elided; exactly zero at the label.

    The last linear layers are pulled back once for the logits, the same for all examples of a `vmap`. The rows of the
    margins are differences of those, with no further product.
    """
    tail, sets = linear_tail(problem, propagation)
    (logits,) = jax.tree.leaves(problem.output)
    coeffs, bias, _ = choose_lines(tail, {}, sets, [jnp.eye(*logits.shape, dtype=logits.dtype)])
    ranges = [_range_of_margins(c, s, label) for c, s in zip(coeffs, sets, strict=True)]
    offset = bias[label] - bias
    return Interval(*(sum(ends, start=offset) for ends in zip(*ranges, strict=True)))


def _range_of_margins(coeffs: Array, region: Set, label: Array) -> Interval:
    """Both ends [K] of <coeffs[label] - coeffs[i], x> on a set."""
    if not isinstance(region, Interval):

        def ends(others: Array) -> Interval:
            rows, nothing = coeffs[label] - others, jnp.zeros(())
            return Interval(lower_value([rows], nothing, [region]), -lower_value([-rows], nothing, [region]))

        return AT_ONCE.map(ends, coeffs)
    product = functools.partial(jnp.tensordot, axes=jnp.ndim(region.lower), precision=jax.lax.Precision.HIGHEST)
    center = product(coeffs, midpoint(region))
    reach = AT_ONCE.map(lambda others: product(jnp.abs(coeffs[label] - others), radius(region)), coeffs)
    return Interval(center[label] - center - reach, center[label] - center + reach)


def _sum_of_chords(
    problem: Problem, propagation: Propagation, margins: Interval, *, largest: Array, label: Array
) -> Array:
    """Upper bound of the sum of exp(-d - top) over all classes, by the chords through their largest values."""
    slopes = largest * mean_decay(margins.upper - margins.lower)  # how fast each chord falls
    row = jnp.sum(slopes) * jax.nn.one_hot(label, slopes.size, dtype=slopes.dtype) - slopes
    (logits,) = jax.tree.leaves(problem.output)
    lowest = lower_rows(problem.program, propagation.relaxations, problem.sets, [row[None].astype(logits.dtype)])[0]
    # The terms may cancel almost all of each other, and a logarithm is to follow: rounding may not make that unsound.
    size = jnp.sum(largest + slopes * (jnp.abs(margins.lower) + jnp.abs(margins.upper)))
    digits = max(32 * jnp.finfo(size.dtype).eps, 2 * jnp.finfo(logits.dtype).eps)
    slack = jax.lax.stop_gradient(digits * size)
    return jnp.sum(largest + slopes * margins.lower) - lowest + slack
