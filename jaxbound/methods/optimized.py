"""alpha-CROWN: backward linear bounds whose lines are optimised.

Any relaxation gives a bound, so the best one is a matter of optimisation: what `Freedom` leaves open in the lines of
each node is moved by gradient steps that raise the bound. By the envelope theorem one step costs a backward pass, a
forward pass and its gradient (`methods/replay.py`).
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxbound import relax
from jaxbound.methods.backward import bounds_by_rows
from jaxbound.methods.chunks import chunks
from jaxbound.methods.crown import crown_walk
from jaxbound.methods.interval import Propagation
from jaxbound.methods.problem import Problem, prepare, valid_lower
from jaxbound.methods.replay import fixed_program, graft, lower_rows
from jaxbound.rules.relaxation import Freedom
from jaxbound.sets import Array

# Label of a node -> what its lines were given, with the rows as leading axis.
Freedoms = Mapping[str, Freedom]


class Optimized(NamedTuple):
    """Optimised lower bounds, and the lines that give them.

    Attributes:
      bounds: [S], one for each row of the spec.
      free: label "index operation file.py:line" of each node -> `Freedom` with arrays [S, ...]; a start for the next
        optimisation of the same function.
    """

    bounds: Array
    free: Freedoms


class Ascent(NamedTuple):
    """How lines are optimised: the options of `alpha_crown`."""

    steps: int
    optimizer: Any
    patience: int
    until: float


def alpha_crown(
    fn: Callable,
    *,
    steps: int = 20,
    optimizer: Any = None,
    patience: int = 10,
    until: float = math.inf,
    relu: relax.ReluStrategy = relax.adaptive,
    chunk: int = 512,
) -> Callable:
    """Turns a function into its alpha-CROWN bounds: CROWN whose lines are optimised, for each row of the spec.

    Intermediate bounds are those of `crown`, and stay. Each row keeps the best bound of all steps, beginning with that
    of `crown`: it is never looser.

    Args:
      fn: a JAX function of one example, as for `ibp`.
      steps: gradient steps, at most.
      optimizer: an `optax.GradientTransformation`; by default Adam, its rate 0.1 falling by 2 % a step.
      patience: ends after so many steps in a row in which no row has gained.
      until: ends when all rows lie above this number (0: when all margins are verified).
      relu: the lines around ReLUs to begin with, one of `jaxbound.relax`.
      chunk: how many rows go backwards at once; bounds the memory, of which each row needs that of all nodes.

    Returns:
      `bound(*args, spec=None, **kwargs)` as for `ibp`. Its derivative is that of the bound with the lines held where
      they are. Lines inside a loop (`jax.lax.scan`) are not optimised.

    Raises:
      UnsupportedError, ValueError: as for `crown`; also fewer steps than 0 or a patience below 1.

    Example:
      >>> def model(x):
      ...     hidden = jnp.maximum(jnp.array([[1.0, 1.0], [1.0, -1.0]]) @ x, 0.0)
      ...     return hidden[0] - 0.5 * hidden[1]
      >>> box = jaxbound.Interval(jnp.full(2, -1.0), jnp.full(2, 1.0))
      >>> for method in (jaxbound.crown, jaxbound.alpha_crown):
      ...     print(method(model)(box).lower)
      -2.5
      -1.0

    References:
      Xu et al. 2021, arXiv:2011.13824.
    """
    optimized = _optimizer(fn, Ascent(steps, optimizer, patience, until), relu, chunk)

    @functools.wraps(fn)
    def bound(*args: Any, spec: Any = None, **kwargs: Any) -> Any:
        problem, rows = optimized(args, kwargs)
        return bounds_by_rows(problem, lambda spec: rows(spec, None).bounds, spec, chunks(chunk))

    return bound


def optimized_lines(
    fn: Callable,
    *,
    steps: int = 20,
    optimizer: Any = None,
    patience: int = 10,
    until: float = math.inf,
    relu: relax.ReluStrategy = relax.adaptive,
    chunk: int = 512,
) -> Callable:
    """Turns a function into its alpha-CROWN bounds together with the lines that give them.

    Args:
      fn, steps, optimizer, patience, until, relu: as for `alpha_crown`.
      chunk: how many rows of intermediate bounds go backwards at once; the rows of the spec all do.

    Returns:
      `optimize(*args, spec, free=None, **kwargs)`, which returns `Optimized(bounds, free)` for a spec [S, *out]; given
      the `free` of an earlier call (for the same function, S rows) it goes on from there.

    Raises:
      UnsupportedError, ValueError: as for `alpha_crown`; also a `free` of another function or number of rows.

    Example:
      >>> box, spec = jaxbound.Interval(jnp.full(2, -1.0), jnp.full(2, 1.0)), jnp.array([[1.0, -0.5]])
      >>> first = jaxbound.optimized_lines(jax.nn.relu)(box, spec=spec)
      >>> again = jaxbound.optimized_lines(jax.nn.relu, steps=0)(box, spec=spec, free=first.free)
      >>> print(first.bounds, again.bounds)
      [-0.5] [-0.5]

    References:
      Xu et al. 2021, arXiv:2011.13824.
    """
    optimized = _optimizer(fn, Ascent(steps, optimizer, patience, until), relu, chunk)

    @functools.wraps(fn)
    def optimize(*args: Any, spec: Any, free: Freedoms | None = None, **kwargs: Any) -> Optimized:
        problem, rows = optimized(args, kwargs)
        return rows(problem.rows(spec), free)

    return optimize


def _optimizer(fn: Callable, ascent: Ascent, relu: relax.ReluStrategy, chunk: int) -> Callable:
    """(args, kwargs) -> the problem, and the function that optimises rows of a spec."""
    if ascent.steps < 0 or ascent.patience < 1:
        raise ValueError(
            f"steps must be at least 0 and patience at least 1, got steps={ascent.steps}, patience={ascent.patience}"
        )
    parts = chunks(chunk)

    def optimized(args: tuple, kwargs: Mapping[str, Any]) -> tuple[Problem, Callable]:
        problem = prepare(fn, args, kwargs)
        propagation = crown_walk(problem, relu, parts=parts)
        return problem, lambda spec, free: _optimize(_Lines(problem, propagation, relu, spec), free, ascent)

    return optimized


class _Lines(NamedTuple):
    """Rows of a spec, whose lower bounds are a function of what is free."""

    problem: Problem
    propagation: Propagation
    relu: relax.ReluStrategy
    spec: Sequence[Array]

    def fixed(self) -> "_Lines":
        """The same, to be differentiated with respect to what is free only."""
        problem, propagation = self.problem, self.propagation
        fixed = jax.lax.stop_gradient
        program, nodes = fixed_program(problem.program), {k: node.fixed() for k, node in propagation.nodes.items()}
        problem = dataclasses.replace(problem, program=program, sets=fixed(problem.sets))
        relaxations = fixed(propagation.relaxations)
        propagation = dataclasses.replace(propagation, nodes=nodes, relaxations=relaxations)
        return _Lines(problem, propagation, self.relu, fixed(list(self.spec)))

    def start(self) -> Freedoms:
        """Where the strategy's lines are."""
        count = self.spec[0].shape[0]
        nodes = self.propagation.nodes
        each = {node.label: node.freedom(self.relu) for node in nodes.values()}
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), each)

    def bounds(self, free: Freedoms | None) -> Array:
        """Lower bounds [S], each row with lines of its own; None for the strategy's."""
        rows = functools.partial(lower_rows, self.problem.program)
        relaxations, nodes = dict(self.propagation.relaxations), self.propagation.nodes
        if free is None:
            return rows(relaxations, self.problem.sets, self.spec)

        def of_row(row: list[Array], free: Freedoms) -> Array:
            lines = {slot: node.lines(self.relu, free[node.label]) for slot, node in nodes.items()}
            return rows(relaxations | lines, self.problem.sets, [x[None] for x in row])[0]

        return jax.vmap(of_row)(list(self.spec), free)


class _Best(NamedTuple):
    """The best bound of every row so far, what was free, and for how many steps no row has gained."""

    bounds: Array
    free: Freedoms
    idle: Array

    def improved(self, bounds: Array, free: Freedoms) -> "_Best":
        """With the rows that have gained replaced."""
        better = bounds > self.bounds

        def pick(new: Array, old: Array) -> Array:
            return jnp.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old)

        idle = jnp.where(better.any(), 0, self.idle + 1)
        return _Best(jnp.where(better, bounds, self.bounds), jax.tree.map(pick, free, self.free), idle)


def _optimize(lines: _Lines, free: Freedoms | None, ascent: Ascent) -> Optimized:
    best = _ascend(lines.fixed(), free, ascent)
    best = jax.lax.stop_gradient(best)
    # Nothing differentiates through the steps: at the best lines the bound is a function like any other.
    return Optimized(valid_lower(graft(best.bounds, lines.bounds(best.free))), best.free)


def _ascend(lines: _Lines, free: Freedoms | None, ascent: Ascent) -> _Best:
    import optax  # only who optimises needs it

    optimizer = ascent.optimizer or optax.adam(optax.exponential_decay(0.1, 1, 0.98))
    start = lines.start()
    free = start if free is None else _checked(free, start)
    best = _Best(lines.bounds(None), start, jnp.zeros((), int))

    def loss(free: Freedoms) -> tuple[Array, Array]:
        bounds = lines.bounds(free)
        return -jnp.sum(jnp.where(jnp.isfinite(bounds), bounds, 0)), bounds

    def going(state: tuple) -> Array:
        step, _, _, best = state
        return (step < ascent.steps) & (best.idle < ascent.patience) & ~(best.bounds > ascent.until).all()

    def move(state: tuple) -> tuple:
        step, free, memory, best = state
        gradient, bounds = jax.grad(loss, has_aux=True)(free)
        best = best.improved(bounds, free)
        updates, memory = optimizer.update(jax.tree.map(jnp.nan_to_num, gradient), memory, free)
        free = jax.tree.map(lambda x: jnp.clip(x, 0, 1), optax.apply_updates(free, updates))
        return step + 1, free, memory, best

    state = (jnp.zeros((), int), free, optimizer.init(free), best)
    _, free, _, best = jax.lax.while_loop(going, move, state)
    return best.improved(lines.bounds(free), free)


def _checked(free: Freedoms, start: Freedoms) -> Freedoms:
    """What was free before, if it is of these nodes."""
    given, expected = (jax.tree.map(jnp.shape, tree) for tree in (free, start))
    if given != expected:
        raise ValueError(
            f"`free` must come from the same function with as many rows: it has {sorted(given)} of shapes "
            f"{jax.tree.leaves(given)}, not {sorted(expected)} of shapes {jax.tree.leaves(expected)}"
        )
    return jax.tree.map(lambda x, like: jnp.clip(jnp.asarray(x, like.dtype), 0, 1), free, start)
