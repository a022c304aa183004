"""Fitting functions that insist on a batch axis to bounds, which are of one example."""

import functools
from collections.abc import Callable
from typing import Any

import jax


def per_example(batched_fn: Callable, argnums: int = -1) -> Callable:
    """Adapts a function that insists on a leading batch axis to one example.

    Args:
      batched_fn: a function one of whose positional arguments (a pytree) has a batch axis first, and all of whose
        results have one. Batch statistics must be constants of it: a batch norm in training mode would see one example.
      argnums: which positional argument has it; by default the last, as in `model.apply(variables, x)`.

    Returns:
      A function without that axis.

    Example:
      >>> def batched(x):
      ...     return x.reshape(x.shape[0], -1).sum(axis=1)
      >>> jaxbound.ibp(jaxbound.per_example(batched))(jaxbound.linf_ball(jnp.full((2, 2), 0.5), 0.25))
      Interval(lower=Array(1., dtype=float32), upper=Array(3., dtype=float32))
    """

    @functools.wraps(batched_fn)
    def fn(*args: Any, **kwargs: Any) -> Any:
        filled = list(args)
        filled[argnums] = jax.tree.map(lambda x: x[None], filled[argnums])
        return jax.tree.map(lambda x: x[0], batched_fn(*filled, **kwargs))

    return fn
