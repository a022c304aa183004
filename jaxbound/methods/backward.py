"""Backward linear bounds: CROWN-IBP, and the coefficients themselves."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxbound import relax
from jaxbound.bounds import LinearBound, Planes
from jaxbound.methods.chunks import Chunks, chunks
from jaxbound.methods.interval import Propagation, interval_bounds, propagate
from jaxbound.methods.problem import Problem, prepare, valid_interval, valid_lower
from jaxbound.methods.rows import choose_lines, lower_rows
from jaxbound.sets import Array, Interval, is_set

Combine = Callable[[Interval, Interval], Interval]


def crown_ibp(
    fn: Callable,
    *,
    relu: relax.ReluStrategy = relax.adaptive,
    beta: Any = 1.0,
    sharding: jax.sharding.NamedSharding | None = None,
) -> Callable:
    """Turns a function into its CROWN-IBP bounds: interval bounds inside, one backward linear bound for the output.

    With a `beta` below 1 the result is the mixture beta * CROWN-IBP + (1 - beta) * IBP that training anneals, both
    from one walk over the intervals. It lies between the two, so it bounds whatever they bound.

    Args:
      fn: a JAX function of one example, as for `ibp`.
      relu: the lines around ReLUs, one of `jaxbound.relax`. With `tight` the bounds are never looser than `ibp`'s
        (with the same spec); with any other take `jaxbound.tightest` of both where that matters.
      beta: weight of CROWN-IBP in [0, 1], a scalar, traced or not. The Python number 1 leaves out IBP's part, and 0
        the backward pass and all that it needs.
      sharding: over which devices the rows of the spec (or of the output) are spread; as for `crown`.

    Returns:
      `bound(*args, spec=None, **kwargs)` as for `ibp`: Intervals, or lower bounds [S] of the rows of a spec.

    Raises:
      UnsupportedError, ValueError: as for `ibp`; also a beta that is not one number in [0, 1]. A traced beta cannot
        raise: outside [0, 1] or NaN it makes the bounds infinite.

    Example:
      >>> def model(x):
      ...     return jnp.array([1.0, -1.0]) @ jnp.maximum(jnp.array([[1.0, -1.0], [1.0, 1.0]]) @ x, 0.0)
      >>> box = jaxbound.linf_ball(jnp.array([0.5, 0.25]), 0.125)
      >>> jaxbound.ibp(model)(box)
      Interval(lower=Array(-1., dtype=float32), upper=Array(0., dtype=float32))
      >>> jaxbound.crown_ibp(model)(box)
      Interval(lower=Array(-0.75, dtype=float32), upper=Array(-0.25, dtype=float32))
      >>> jaxbound.crown_ibp(model, beta=0.5)(box)
      Interval(lower=Array(-0.875, dtype=float32), upper=Array(-0.125, dtype=float32))

    References:
      Zhang et al. 2020, arXiv:1906.06316.
    """
    check_beta(beta)
    parts = chunks(None, sharding)

    @functools.wraps(fn)
    def bound(*args: Any, spec: Any = None, **kwargs: Any) -> Any:
        problem = prepare(fn, args, kwargs)
        if is_number(beta, 0):
            return interval_bounds(problem, propagate(problem.program, problem.sets), spec)
        propagation = propagate(problem.program, problem.sets, relu)
        linear = bounds_of_walk(problem, propagation, spec, parts)
        if is_number(beta, 1):
            return linear
        return _mixed(beta, linear, interval_bounds(problem, propagation, spec))

    return bound


def linear_bounds(fn: Callable, *, relu: relax.ReluStrategy = relax.adaptive) -> Callable:
    """Turns a function into the linear bounds behind CROWN-IBP: coefficients and biases instead of numbers.

    Args:
      fn: a JAX function of one example, as for `ibp`.
      relu: the lines around ReLUs, one of `jaxbound.relax`.

    Returns:
      `planes(*args, spec=None, **kwargs)`, which returns
      - without spec: `Planes(lower, upper)` for the one array that fn returns, coeffs [*out, *x.shape], bias [*out];
      - with spec [S, *out]: a `LinearBound` with coeffs [S, *x.shape], bias [S].
      The coefficients are not differentiable; `crown_ibp` is.

    Raises:
      UnsupportedError, ValueError: as for `ibp`; also an output of several arrays without a spec.

    Example:
      >>> box = jaxbound.linf_ball(jnp.array([0.5, 0.25]), 0.125)
      >>> planes = jaxbound.linear_bounds(lambda x: jnp.maximum(x - 0.25, 0.0))(box)
      >>> print(planes.upper.coeffs.diagonal(), planes.upper.bias)
      [1.  0.5] [-0.25   -0.0625]

    References:
      Zhang et al. 2020, arXiv:1906.06316.
    """

    @functools.wraps(fn)
    def planes(*args: Any, spec: Any = None, **kwargs: Any) -> Any:
        problem = prepare(fn, args, kwargs)
        relaxations = propagate(problem.program, problem.sets, relu).relaxations

        def rows(spec: Sequence[Array]) -> LinearBound:
            fixed = jax.lax.stop_gradient((relaxations, problem.sets, spec))
            coeffs, bias, _ = choose_lines(problem.program, *fixed)
            return LinearBound(problem.like_arguments(coeffs), bias)

        if spec is not None:
            return rows(problem.rows(spec))
        shapes = jax.tree.leaves(problem.output)
        if len(shapes) != 1:
            raise ValueError(f"linear_bounds of a function that returns {len(shapes)} arrays needs a spec")
        (shape,) = shapes
        size = math.prod(shape.shape)
        eye = jnp.eye(size, dtype=shape.dtype).reshape(size, *shape.shape)
        lower, negative = (
            jax.tree.map(lambda x: x.reshape(*shape.shape, *x.shape[1:]), rows([sign * eye])) for sign in (1, -1)
        )
        return Planes(lower, jax.tree.map(jnp.negative, negative))

    return planes


def bounds_of_walk(problem: Problem, propagation: Propagation, spec: Any, parts: Chunks) -> Any:
    """The output's Intervals, or the lower bounds of a spec's rows."""
    rows = functools.partial(lower_rows, problem.program, propagation.relaxations, problem.sets)
    return bounds_by_rows(problem, rows, spec, parts)


def bounds_by_rows(problem: Problem, rows: Callable[[Sequence[Array]], Array], spec: Any, parts: Chunks) -> Any:
    """The same from a function that bounds any rows."""
    shapes = jax.tree.leaves(problem.output)
    if spec is not None:
        return parts.map(rows, problem.rows(spec))

    def of_output(k: int, units: Array) -> Array:
        zeros = [jnp.zeros((units.shape[0], *shape.shape), shape.dtype) for shape in shapes]
        return rows([*zeros[:k], units, *zeros[k + 1 :]])

    boxes = [unit_rows(functools.partial(of_output, k), shape, parts) for k, shape in enumerate(shapes)]
    return jax.tree.unflatten(jax.tree.structure(problem.output), [valid_interval(*box) for box in boxes])


def check_beta(beta: Any) -> None:
    """Raises on a weight that is known to be invalid."""
    if np.ndim(beta):
        raise ValueError(f"beta must be one number, got the shape {list(np.shape(beta))}; batches go through jax.vmap")
    if not isinstance(beta, Tracer) and not 0 <= np.asarray(beta) <= 1:
        raise ValueError(f"beta, the weight of CROWN-IBP, must lie in [0, 1], got {beta}")


def is_number(beta: Any, value: int) -> bool:
    """Whether a weight is known to be this number when the function is traced."""
    return isinstance(beta, int | float | np.number) and beta == value


def blend(beta: Any, first: Array, second: Array) -> Array:
    """beta * first + (1 - beta) * second; NaN for a beta outside [0, 1].

    A weight of zero leaves out its term even where that is infinite.
    """
    beta = jnp.asarray(beta, first.dtype)
    beta = jnp.where((beta >= 0) & (beta <= 1), beta, jnp.nan)

    def part(weight: Array, value: Array) -> Array:
        return weight * jnp.where((weight == 0) & ~jnp.isfinite(value), 0, value)

    return part(beta, first) + part(1 - beta, second)


def _mixed(beta: Any, linear: Any, interval: Any) -> Any:
    """Bounds between those of two methods, of the same form: Intervals, or lower bounds of rows."""

    def pair(a: Any, b: Any) -> Any:
        if isinstance(a, Interval):
            return valid_interval(blend(beta, a.lower, b.lower), blend(beta, a.upper, b.upper))
        return valid_lower(blend(beta, a, b))

    return jax.tree.map(pair, linear, interval, is_leaf=is_set)


def unit_rows(
    rows: Callable[..., Any], shape: Any, parts: Chunks, *, given: tuple = (), needed: Array | None = None
) -> Any:
    """Lower and upper bounds of every element of an array, one row for each.

    Bounds are numbers or, where `rows` returns a pytree, whatever that holds; each leaf becomes an Interval. What is
    `given`, with an axis for the rows in front, goes to `rows` too. Elements that are not `needed` may be unbounded.
    """
    size = math.prod(shape.shape)

    def bound(chunk: tuple[Array, tuple]) -> Any:
        index, given = chunk
        units = jax.nn.one_hot(index % size, size, dtype=shape.dtype)
        return rows(jnp.where(index[:, None] < size, units, -units).reshape(-1, *shape.shape), *given)

    def ends(values: Array) -> Interval:
        values = values.reshape(2, *shape.shape, *values.shape[1:])
        return Interval(values[0], -values[1])

    index = jnp.arange(2 * size), given
    if needed is None:
        return jax.tree.map(ends, parts.map(bound, index))
    return jax.tree.map(ends, parts.map_some(bound, index, jnp.tile(needed.ravel(), 2)))
