"""alpha-CROWN: backward linear bounds whose lines are optimised.

Any relaxation gives a bound, so the best one is a matter of optimisation: what `Freedom` leaves open in the lines of
each node is moved by gradient steps that raise the bound. By the envelope theorem one step costs a backward pass and a
forward pass (`methods/rows.py`).
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from jaxbound import relax
from jaxbound.methods.backward import bounds_by_rows
from jaxbound.methods.chunks import chunks
from jaxbound.methods.crown import crown_walk
from jaxbound.methods.lines import Boxes, Freedoms, Lines, LineStrategy, free_layers, sets_of_lines, single_lines
from jaxbound.methods.problem import Problem, prepare, valid_lower
from jaxbound.methods.rows import graft
from jaxbound.sets import Array


class Optimized(NamedTuple):
    """Optimised lower bounds, and the lines that give them.

    Attributes:
      bounds: [S], one for each row of the spec.
      free: label "index operation file.py:line" of each node -> `Freedom` with arrays [S, ...], or [1, ...] where all
        rows share them; a start for the next optimisation of the same function, on any sets. Those of intermediate
        bounds are under "label of what meets them/label of the node". Rows that share lines have those under which the
        sum of their bounds was highest, all rows if intermediate bounds are optimised.
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
    lines: LineStrategy = single_lines,
    intermediate: LineStrategy | None = None,
) -> Callable:
    """Turns a function into its alpha-CROWN bounds: CROWN whose lines are optimised, for each row of the spec.

    Each row keeps the best bound of all steps, beginning with that of `crown`: it is never looser. Intermediate bounds
    are those of `crown`, and stay, or are optimised jointly for the sake of the rows; then too the best of all steps
    are kept. Under `jax.vmap` all examples go on until the last one ends.

    Args:
      fn: a JAX function of one example, as for `ibp`.
      steps: gradient steps, at most.
      optimizer: an `optax.GradientTransformation`; by default Adam, its rate 0.1 falling by 2 % a step.
      patience: ends after so many steps in a row in which no row has gained.
      until: ends when all rows lie above this number (0: when all margins are verified).
      relu: the lines around ReLUs to begin with, one of `jaxbound.relax`.
      chunk: how many rows go backwards at once; bounds the memory, of which each row needs that of all nodes.
      lines: which rows of the spec have lines together: `jaxbound.single_lines`, none, or `jaxbound.shared_lines`, all
        of a chunk: looser, in a fraction of the memory.
      intermediate: by default intermediate bounds are those of `crown`. With `jaxbound.shared_lines` they are optimised
        jointly, all of one array by the same lines; with `jaxbound.single_lines` each end of each by its own, which
        needs the memory of all nodes for each. A step then costs as much as about ten times `crown`.

    Returns:
      `bound(*args, spec=None, **kwargs)` as for `ibp`. Its derivative is that of the bound with the lines held where
      they are: those that `optimized_lines` returns, whose bound may be a little looser than the best of all steps if
      it shares lines or optimises intermediate bounds. Lines inside a loop (`jax.lax.scan`) are not optimised.

    Raises:
      UnsupportedError, ValueError: as for `crown`; also fewer steps than 0, a patience below 1, or a strategy for lines
        that does not deal rows out evenly.

    Example:
      >>> def model(x):
      ...     hidden = jnp.maximum(jnp.array([[1.0, 1.0], [1.0, -1.0]]) @ x, 0.0)
      ...     return hidden[0] - 0.5 * hidden[1]
      >>> box = jaxbound.Interval(jnp.full(2, -1.0), jnp.full(2, 1.0))
      >>> for method in (jaxbound.crown, jaxbound.alpha_crown):
      ...     print(method(model)(box).lower)
      -2.5
      -1.0
      >>> joint = jaxbound.alpha_crown(lambda x: -jnp.maximum(-1.5 - model(x), 0.0), intermediate=jaxbound.shared_lines)
      >>> print(joint(box).lower + 1)
      1.0

    References:
      Xu et al. 2021, arXiv:2011.13824.
    """
    options = _Options(relu, chunk, lines, intermediate)
    optimized = _optimizer(fn, Ascent(steps, optimizer, patience, until), options)

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
    lines: LineStrategy = single_lines,
    intermediate: LineStrategy | None = None,
) -> Callable:
    """Turns a function into its alpha-CROWN bounds together with the lines that give them.

    Args:
      fn, steps, optimizer, patience, until, relu, lines, intermediate: as for `alpha_crown`.
      chunk: how many rows of intermediate bounds go backwards at once; the rows of the spec all do.

    Returns:
      `optimize(*args, spec, free=None, **kwargs)`, which returns `Optimized(bounds, free)` for a spec [S, *out]. Given
      the `free` of an earlier call (for the same function, S rows and the same options) it goes on from there. With no
      steps a row that has lines of its own gets its earlier bound again, and the bounds of rows that share lines have
      at least the highest sum of all steps. Where intermediate bounds were optimised, the earlier bounds may be better:
      they rest on the best intermediate bounds of all steps, not of one.

    Raises:
      UnsupportedError, ValueError: as for `alpha_crown`; also a `free` of another function, number of rows or sharing.

    Example:
      >>> box, spec = jaxbound.Interval(jnp.full(2, -1.0), jnp.full(2, 1.0)), jnp.array([[1.0, -0.5]])
      >>> first = jaxbound.optimized_lines(jax.nn.relu)(box, spec=spec)
      >>> again = jaxbound.optimized_lines(jax.nn.relu, steps=0)(box, spec=spec, free=first.free)
      >>> print(first.bounds, again.bounds)
      [-0.5] [-0.5]

    References:
      Xu et al. 2021, arXiv:2011.13824.
    """
    options = _Options(relu, chunk, lines, intermediate)
    optimized = _optimizer(fn, Ascent(steps, optimizer, patience, until), options)

    @functools.wraps(fn)
    def optimize(*args: Any, spec: Any, free: Freedoms | None = None, **kwargs: Any) -> Optimized:
        problem, rows = optimized(args, kwargs)
        return rows(problem.rows(spec), free)

    return optimize


class _Options(NamedTuple):
    """The options of `alpha_crown` that are not those of the ascent."""

    relu: relax.ReluStrategy
    chunk: int
    lines: LineStrategy
    intermediate: LineStrategy | None


def _optimizer(fn: Callable, ascent: Ascent, options: _Options) -> Callable:
    """(args, kwargs) -> the problem, and the function that optimises rows of a spec."""
    if ascent.steps < 0 or ascent.patience < 1:
        raise ValueError(
            f"steps must be at least 0 and patience at least 1, got steps={ascent.steps}, patience={ascent.patience}"
        )
    parts = chunks(options.chunk)

    def optimized(args: tuple, kwargs: Mapping[str, Any]) -> tuple[Problem, Callable]:
        problem = prepare(fn, args, kwargs)
        propagation = crown_walk(problem, options.relu, parts=parts)
        layers = free_layers(problem, propagation, options.intermediate)

        def of_rows(spec: Sequence[Array], free: Freedoms | None) -> Optimized:
            sets = sets_of_lines(options.lines, spec[0].shape[0])
            again = parts._replace(again=True)  # the chunks of all steps and layers would be too much to keep
            return _optimize(Lines(problem, propagation, options.relu, spec, sets, layers, again), free, ascent)

        return problem, of_rows

    return optimized


class _Best(NamedTuple):
    """The best of all steps so far.

    Attributes:
      bounds: [S], each row's best.
      boxes: the tightest intermediate bounds.
      free: what was free when the rows that it serves had the best bounds together.
      under: [S], the bounds that rows had then.
      idle: for how many steps no row has gained.
    """

    bounds: Array
    boxes: Boxes
    free: Freedoms
    under: Array
    idle: Array

    def improved(self, found: tuple[Array, Boxes], free: Freedoms, groups: int) -> "_Best":
        """With what a step found; in each group of rows, lines stay or change together."""
        bounds, boxes = found
        gains = jnp.where(bounds == self.under, 0, bounds - self.under)  # so that -inf and -inf are no gain
        better = gains.reshape(groups, -1).sum(axis=1) > 0

        def pick(new: Array, old: Array) -> Array:
            return jnp.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old)

        under = pick(bounds.reshape(groups, -1), self.under.reshape(groups, -1)).reshape(bounds.shape)
        idle = jnp.where((bounds > self.bounds).any(), 0, self.idle + 1)
        return _Best(jnp.maximum(bounds, self.bounds), boxes, jax.tree.map(pick, free, self.free), under, idle)


def _optimize(lines: Lines, free: Freedoms | None, ascent: Ascent) -> Optimized:
    best = _ascend(lines.fixed(), free, ascent)
    best = jax.lax.stop_gradient(best)
    # Nothing differentiates through the steps: at the best lines the bound is a function like any other.
    return Optimized(valid_lower(graft(best.bounds, lines.bounds(best.free)[0])), best.free)


def _ascend(lines: Lines, free: Freedoms | None, ascent: Ascent) -> _Best:
    import optax  # only who optimises needs it

    optimizer = ascent.optimizer or optax.adam(optax.exponential_decay(0.1, 1, 0.98))
    start = lines.start()
    free = start if free is None else _checked(free, start)
    bounds, boxes = lines.by_strategy()
    best = _Best(bounds, boxes, start, bounds, jnp.zeros((), int))
    groups = 1 if lines.layers else lines.sets  # lines of intermediate values serve all rows

    def loss(free: Freedoms, boxes: Boxes) -> tuple[Array, tuple[Array, Boxes]]:
        bounds, boxes = lines.bounds(free, boxes)
        return -jnp.sum(jnp.where(jnp.isfinite(bounds), bounds, 0)), (bounds, boxes)

    def going(state: tuple) -> Array:
        step, _, _, best = state
        return _any((step < ascent.steps) & (best.idle < ascent.patience) & ~(best.bounds > ascent.until).all())

    def move(state: tuple) -> tuple:
        step, free, memory, best = state
        gradient, found = jax.grad(loss, has_aux=True)(free, best.boxes)
        best = best.improved(found, free, groups)
        updates, memory = optimizer.update(jax.tree.map(jnp.nan_to_num, gradient), memory, free)
        free = jax.tree.map(lambda x: jnp.clip(x, 0, 1), optax.apply_updates(free, updates))
        return step + 1, free, memory, best

    state = (jnp.zeros((), int), free, optimizer.init(free), best)
    _, free, _, best = jax.lax.while_loop(going, move, state)
    return best.improved(lines.bounds(free, best.boxes), free, groups)


@custom_vmap
def _any(condition: Array) -> Array:
    """The same; under `jax.vmap`, whether it holds of any example: a loop on it needs no selection at each step."""
    return condition


@_any.def_vmap
def _any_of_batch(size: int, batched: list[bool], condition: Array) -> tuple[Array, bool]:
    del size
    return (_any(condition.any()) if batched[0] else condition), False


def _checked(free: Freedoms, start: Freedoms) -> Freedoms:
    """What was free before, if it is of these nodes."""
    given, expected = (jax.tree.map(jnp.shape, tree) for tree in (free, start))
    if given != expected:
        raise ValueError(
            f"`free` must come from the same function with as many rows, and from the same `lines` and `intermediate`: "
            f"it has {sorted(given)} of shapes {jax.tree.leaves(given)}, not {sorted(expected)} of shapes "
            f"{jax.tree.leaves(expected)}"
        )
    return jax.tree.map(lambda x, like: jnp.clip(jnp.asarray(x, like.dtype), 0, 1), free, start)
