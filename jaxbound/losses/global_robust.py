"""The robust loss at several radii at once, and families of weights of those radii.

Training at one radius only says little about the others. A weighted mean over increasing radii shapes the bounds of
all of them; weights that decrease keep the largest radii, whose bounds are the loosest, from ruling the gradient.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxbound.losses.cross_entropy import robust_cross_entropy
from jaxbound.sets import Array

_TOLERANCE = 1e-5  # of a sum of weights


def global_robust_loss(margins_at: Callable[[Array], Array], radii: Any, weights: Any) -> Array:
    """The weighted mean of the robust cross-entropy over several radii.

    sum_i weights[i] * robust_cross_entropy(margins_at(radii[i])), with the radii as one more axis of a `jax.vmap`: what
    does not depend on the radius is computed once, and everything else as one larger batch.

    Args:
      margins_at: radius (scalar) -> lower bounds of the margins [..., K-1] on the sets of this radius.
      radii: [k], increasing; an array may be traced. One radius is the usual robust loss.
      weights: [k], >= 0, summing to 1, such as `arithmetic_weights(k)`.

    Returns:
      [...]. +inf where a margin of a radius with a weight is invalid, as in `robust_cross_entropy`.

    Raises:
      ValueError: different numbers of radii and weights; radii that are not increasing; weights that are negative or
        not finite, or that do not sum to 1. Traced values are checked for their shapes only.

    Example:
      >>> def margins_at(radius):
      ...     box = jaxbound.linf_ball(jnp.array([0.75, 0.25]), radius)
      ...     return jaxbound.ibp(lambda x: 4 * x)(box, spec=jaxbound.margin_spec(0, 2))
      >>> weights = jaxbound.losses.arithmetic_weights(2)
      >>> loss = jaxbound.losses.global_robust_loss(margins_at, jnp.array([0.125, 0.25]), weights)
      >>> round(float(loss), 4)
      0.4399
    """
    radii, weights = _vector("radii", radii), _vector("weights", weights)
    _check_radii(radii)
    if len(weights) != len(radii):
        raise ValueError(f"there must be a weight for each radius, got {len(weights)} weights for {len(radii)} radii")
    radii = jnp.asarray(radii) if jnp.issubdtype(radii.dtype, jnp.floating) else jnp.asarray(radii, float)
    return weighted_robust_cross_entropy(jax.vmap(margins_at)(radii), weights)


def weighted_robust_cross_entropy(margins: Array, weights: Any) -> Array:
    """The weighted mean of the robust cross-entropy over a leading axis, for margins that are at hand already.

    Args:
      margins: lower bounds of z_label - z_j for the K-1 other classes at each of k radii, [k, ..., K-1].
      weights: [k], >= 0, summing to 1.

    Returns:
      [...]. +inf where a margin with a weight is invalid.

    Raises:
      ValueError: the weights are not of the margins' number, negative, not finite, or do not sum to 1. Of traced
        weights only the shape is checked.

    Example:
      >>> margins = jnp.array([[jnp.inf, 0.0], [0.0, 0.0]])
      >>> round(float(jaxbound.losses.weighted_robust_cross_entropy(margins, [0.75, 0.25])), 4)
      0.7945
    """
    weights = _vector("weights", weights)
    if len(weights) != len(margins):
        raise ValueError(f"there must be a weight for each of the {len(margins)} margins, got {len(weights)}")
    if not isinstance(weights, Tracer):
        if not (np.isfinite(weights).all() and (weights >= 0).all()):
            raise ValueError(f"weights must be finite and >= 0, got {weights}")
        _check_sum(weights)
    each = robust_cross_entropy(margins)
    weights = jnp.asarray(weights, each.dtype).reshape(-1, *[1] * (each.ndim - 1))
    loss = jnp.sum(weights * jnp.where(weights == 0, 0, each), axis=0)
    return jnp.where(jnp.isnan(loss) | jnp.any(weights < 0), jnp.inf, loss)


def _vector(name: str, values: Any) -> Array:
    """A list of numbers as an array: traced where one of them is."""
    traced = any(isinstance(value, Tracer) for value in jax.tree.leaves(values))
    vector = jnp.asarray(values) if traced else np.asarray(values)
    if vector.ndim != 1 or not vector.size:
        raise ValueError(f"{name} must be a list of at least one number, got the shape {list(vector.shape)}")
    return vector


def _check_radii(radii: Array) -> None:
    if isinstance(radii, Tracer):
        return
    if not (np.isfinite(radii).all() and radii[0] >= 0 and (np.diff(radii) > 0).all()):
        raise ValueError(
            f"radii must be finite, >= 0 and increase strictly, got {radii}; sort them, with their weights"
        )


def _check_sum(values: np.ndarray) -> None:
    if abs(values.sum() - 1) > _TOLERANCE:
        raise ValueError(f"weights must sum to 1, but {values} sum to {values.sum():g}; divide them by their sum")


def arithmetic_weights(k: int) -> np.ndarray:
    """Weights [k] of increasing radii, in proportion to k, k-1, ..., 1.

    Raises:
      ValueError: k is below 1.

    Example:
      >>> jaxbound.losses.arithmetic_weights(4)
      array([0.4, 0.3, 0.2, 0.1])
    """
    return _normalised(_count(k) - np.arange(k))


def harmonic_weights(k: int) -> np.ndarray:
    """Weights [k] in proportion to 1/i for i = 1 ... k.

    Example:
      >>> jaxbound.losses.harmonic_weights(2).round(4)
      array([0.6667, 0.3333])
    """
    return _normalised(1 / _index(k))


def geometric_weights(k: int, ratio: float = 0.5) -> np.ndarray:
    """Weights [k] in proportion to ratio^(i-1) for i = 1 ... k.

    Raises:
      ValueError: k is below 1, or a ratio outside (0, 1).

    Example:
      >>> jaxbound.losses.geometric_weights(2).round(4)
      array([0.6667, 0.3333])
    """
    if not 0 < ratio < 1:
        raise ValueError(f"ratio must lie between 0 and 1, got {ratio}; weights would not decrease")
    return _normalised(ratio ** (_index(k) - 1))


def exponential_weights(k: int, rate: float = 1.0) -> np.ndarray:
    """Weights [k] in proportion to exp(-rate * i/k) for i = 1 ... k: the same decay over all radii, whatever k.

    Raises:
      ValueError: k is below 1, or a rate that is not positive.

    Example:
      >>> jaxbound.losses.exponential_weights(2).round(4)
      array([0.6225, 0.3775])
    """
    return _normalised(np.exp(-_positive("rate", rate) * _index(k) / k))


def polynomial_weights(k: int, power: float = 2.0) -> np.ndarray:
    """Weights [k] in proportion to (1/i)^power for i = 1 ... k.

    Raises:
      ValueError: k is below 1, or a power that is not positive.

    Example:
      >>> jaxbound.losses.polynomial_weights(2)
      array([0.8, 0.2])
    """
    return _normalised(_index(k) ** -_positive("power", power))


def uniform_weights(k: int) -> np.ndarray:
    """Weights [k] that are all the same: several radii without the decrease, for comparison.

    Example:
      >>> jaxbound.losses.uniform_weights(4)
      array([0.25, 0.25, 0.25, 0.25])
    """
    return _normalised(np.ones(_count(k)))


def increasing_weights(k: int) -> np.ndarray:
    """Weights [k] in proportion to 1, 2, ..., k: the decrease turned round, for comparison.

    Example:
      >>> jaxbound.losses.increasing_weights(4)
      array([0.1, 0.2, 0.3, 0.4])
    """
    return _normalised(_index(k))


def decreasing_weights(values: Sequence[float]) -> np.ndarray:
    """Weights [k] of one's own, held to what a decreasing family promises.

    Args:
      values: k positive numbers that decrease strictly and sum to 1.

    Returns:
      The same as an array.

    Raises:
      ValueError: they are not positive, do not decrease, or do not sum to 1.

    Example:
      >>> jaxbound.losses.decreasing_weights([0.7, 0.3])
      array([0.7, 0.3])
    """
    weights = _vector("weights", np.asarray(values, np.float64))
    if not (np.isfinite(weights).all() and (weights > 0).all()):
        raise ValueError(f"weights must be positive and finite, got {weights}; leave out a radius without a weight")
    if not (np.diff(weights) < 0).all():
        raise ValueError(f"weights must decrease strictly, got {weights}; the smallest radius comes first")
    _check_sum(weights)
    return weights


def _count(k: int) -> int:
    if operator.index(k) < 1:
        raise ValueError(f"there must be at least 1 radius, got k = {k}")
    return operator.index(k)


def _index(k: int) -> np.ndarray:
    """1, 2, ..., k as floats."""
    return np.arange(1.0, _count(k) + 1)


def _positive(name: str, value: float) -> float:
    if not 0 < value < np.inf:
        raise ValueError(f"{name} must be positive and finite, got {value}; weights would not decrease")
    return value


def _normalised(values: np.ndarray) -> np.ndarray:
    return values / values.sum()
