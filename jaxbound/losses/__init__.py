"""Losses of certified training: pure functions from bounds to one number per example.

A non-finite bound never looks verified: it costs an infinite loss, which a training loop can see and stop at.
"""

from jaxbound.losses.cross_entropy import mixed, robust_cross_entropy
from jaxbound.losses.global_robust import (
    arithmetic_weights,
    decreasing_weights,
    exponential_weights,
    geometric_weights,
    global_robust_loss,
    harmonic_weights,
    increasing_weights,
    polynomial_weights,
    uniform_weights,
    weighted_robust_cross_entropy,
)

__all__ = [
    "arithmetic_weights",
    "decreasing_weights",
    "exponential_weights",
    "geometric_weights",
    "global_robust_loss",
    "harmonic_weights",
    "increasing_weights",
    "mixed",
    "polynomial_weights",
    "robust_cross_entropy",
    "uniform_weights",
    "weighted_robust_cross_entropy",
]
