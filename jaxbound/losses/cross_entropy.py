"""The cross-entropy of the worst case, and its mixture with that of the unperturbed input."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxbound.sets import Array


def robust_cross_entropy(margins: Array) -> Array:
    """An upper bound of the cross-entropy over a whole set, from lower bounds of the margins.

    log(1 + sum_j exp(-margins_j)): the cross-entropy of `worst_case_logits`, so no input of the set that the margins
    were bounded on has a larger cross-entropy.

    Args:
      margins: lower bounds of z_label - z_j for the K-1 other classes, [..., K-1].

    Returns:
      [...], >= 0. Where a margin is -inf or NaN: +inf.

    Example:
      >>> round(float(jaxbound.losses.robust_cross_entropy(jnp.array([jnp.inf, 0.0]))), 4)
      0.6931

    References:
      Gowal et al. 2018, arXiv:1810.12715; Wong and Kolter 2018, arXiv:1711.00851.
    """
    worst = jnp.where(jnp.isnan(margins), jnp.inf, -margins)
    return jax.nn.logsumexp(jnp.concatenate([jnp.zeros_like(worst[..., :1]), worst], axis=-1), axis=-1)


def mixed(natural: Array, robust: Array, kappa: Any) -> Array:
    """The weighted mean of a natural and a robust loss, kappa * natural + (1 - kappa) * robust.

    Args:
      natural: loss of the unperturbed inputs, any shape.
      robust: loss of the worst case, the same shape.
      kappa: weight of the natural loss, in [0, 1]; scalar or broadcastable. The Python number 0 (or 1) leaves the other
        term out altogether, and so saves its gradient.

    Returns:
      The mixture, of the losses' shape.

    Raises:
      ValueError: kappa is known to lie outside [0, 1]. A traced one cannot raise.

    Example:
      >>> float(jaxbound.losses.mixed(jnp.array(1.0), jnp.array(3.0), 0.25))
      2.5

    References:
      Gowal et al. 2018, arXiv:1810.12715.
    """
    if not isinstance(kappa, Tracer) and not np.all((np.asarray(kappa) >= 0) & (np.asarray(kappa) <= 1)):
        raise ValueError(f"kappa, the weight of the natural loss, must lie in [0, 1], got {kappa}")
    if isinstance(kappa, int | float) and kappa in (0, 1):
        return natural if kappa else robust
    return kappa * natural + (1 - kappa) * robust
