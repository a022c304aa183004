"""Full CROWN: every intermediate bound by a backward pass of its own."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxbound import relax
from jaxbound.methods.backward import Combine, bounds_of_walk, unit_rows
from jaxbound.methods.chunks import Chunks, chunks
from jaxbound.methods.interval import Propagation, Tighten, propagate
from jaxbound.methods.locality import RowStrategy, shared_rows
from jaxbound.methods.problem import Problem, narrowed, prepare, rule_of
from jaxbound.methods.replay import Nodes
from jaxbound.methods.rows import lower_rows
from jaxbound.methods.shared import Sharing, shared_bounds
from jaxbound.methods.units import UnitStrategy, every_unit
from jaxbound.program import LOOPS, Program
from jaxbound.rules.registry import Coefficient, Linear
from jaxbound.sets import Array, Interval, Set, tightest


def crown(
    fn: Callable,
    *,
    relu: relax.ReluStrategy = relax.adaptive,
    chunk: int = 512,
    sharding: jax.sharding.NamedSharding | None = None,
    combine: Combine = tightest,
    rows: RowStrategy = shared_rows,
    units: UnitStrategy = every_unit,
) -> Callable:
    """Turns a function into its full CROWN bounds: every intermediate bound by a backward pass of its own.

    Args:
      fn: a JAX function of one example, as for `ibp`.
      relu: the lines around ReLUs, one of `jaxbound.relax`.
      chunk: how many rows (two for each neuron, or for each group that shares one) go backwards at once; bounds the
        memory.
      sharding: over which devices the rows of a chunk are spread, under `jax.jit`, such as
        `NamedSharding(mesh, PartitionSpec("model"))`: the memory of each device falls with their number. The mesh's
        axis is of the type `AxisType.Auto`.
      combine: (interval by propagation, interval by CROWN) -> the one used; `jaxbound.tightest` intersects them.
      rows: which neurons go backwards together: `jaxbound.shared_rows`, those that read nothing in common, or
        `jaxbound.single_rows`, each on its own. The bounds are the same.
      units: which neurons are bounded by backward passes: `jaxbound.every_unit`, or `jaxbound.unstable_units`, those
        that intervals leave undecided; on trained networks these are few.

    Returns:
      `bound(*args, spec=None, **kwargs)` as for `ibp`. Inside a loop (`jax.lax.scan`) the intermediate bounds are
      interval bounds, started from CROWN bounds of what enters the loop.

    Raises:
      UnsupportedError, ValueError: as for `ibp`; also a chunk below 1, or a sharding that does not spread rows.

    Example:
      >>> def model(x):
      ...     return jnp.array([1.0, -1.0]) @ jnp.maximum(jnp.array([[1.0, -1.0], [1.0, 1.0]]) @ x, 0.0)
      >>> jaxbound.crown(model, chunk=64)(jaxbound.linf_ball(jnp.array([0.5, 0.25]), 0.125))
      Interval(lower=Array(-0.75, dtype=float32), upper=Array(-0.25, dtype=float32))

    References:
      Zhang et al. 2018, arXiv:1811.00866.
    """
    parts = chunks(chunk, sharding)

    @functools.wraps(fn)
    def bound(*args: Any, spec: Any = None, **kwargs: Any) -> Any:
        problem = prepare(fn, args, kwargs)
        walk = crown_walk(problem, relu, parts=parts, combine=combine, rows=rows, units=units)
        return bounds_of_walk(problem, walk, spec, parts)

    return bound


def crown_layer_bounds(
    fn: Callable,
    *,
    relu: relax.ReluStrategy = relax.adaptive,
    chunk: int = 512,
    sharding: jax.sharding.NamedSharding | None = None,
    combine: Combine = tightest,
    rows: RowStrategy = shared_rows,
) -> Callable:
    """Turns a function into the intervals that its nonlinear operations meet, as full CROWN finds and uses them.

    Args:
      fn, relu, chunk, sharding, combine, rows: as for `crown`.

    Returns:
      `layers(*args, spec=None, **kwargs)` as for `layer_bounds`: a dictionary with the same keys, and with a spec also
      the lower bounds [S] that `crown` has for it, from one walk.

    Raises:
      UnsupportedError, ValueError: as for `crown`.

    Example:
      >>> def model(x):
      ...     hidden = jnp.maximum(jnp.array([[1.0, 1.0], [1.0, -1.0]]) @ x, 0.0)
      ...     return jnp.maximum(hidden[0] - 2 * hidden[1], 0.0)
      >>> box = jaxbound.linf_ball(jnp.array([0.5, 0.25]), 0.125)
      >>> for layers in (jaxbound.layer_bounds, jaxbound.crown_layer_bounds):
      ...     print([float(end) for end in list(layers(model)(box).values())[1]])
      [-0.5, 1.0]
      [-0.25, 0.75]

    References:
      Zhang et al. 2018, arXiv:1811.00866.
    """
    parts = chunks(chunk, sharding)

    @functools.wraps(fn)
    def layers(*args: Any, spec: Any = None, **kwargs: Any) -> Any:
        problem = prepare(fn, args, kwargs)
        propagation = crown_walk(problem, relu, parts=parts, combine=combine, rows=rows)
        boxes = dict(propagation.layers)
        return boxes if spec is None else (bounds_of_walk(problem, propagation, spec, parts), boxes)

    return layers


def crown_walk(
    problem: Problem,
    relu: relax.ReluStrategy,
    *,
    parts: Chunks,
    combine: Combine = tightest,
    rows: RowStrategy = shared_rows,
    units: UnitStrategy = every_unit,
) -> Propagation:
    """The interval walk in which every operand of a nonlinear equation gets CROWN bounds."""

    def needed(slot: int, box: Interval) -> Array | None:
        return units(problem.program, slot, box, relu)

    tighten = tighten_by_crown(problem, parts=parts, combine=combine, rows=rows, needed=needed)
    return propagate(problem.program, problem.sets, relu, tighten)


def tighten_by_crown(
    problem: Problem,
    *,
    parts: Chunks,
    combine: Combine,
    rows: RowStrategy,
    needed: Callable[[int, Interval], Array | None] = lambda slot, box: None,
) -> Tighten:
    """What that walk does with an operand: bounds of the elements that are needed (None: all of them)."""

    def tighten(slot: int, box: Interval, so_far: Propagation) -> Interval:
        cone, inside = problem.cone(slot)
        if is_exact(cone, inside):
            return box
        lines = cone.among(so_far.relaxations)
        some = needed(slot, box)
        options = {"sharing": rows(cone, inside, lines), "parts": parts, "needed": some}
        found = backward_bounds(cone, lines, inside, like=box, **options)
        if some is not None:
            found = Interval(*(jnp.where(some, end, known) for end, known in zip(found, box, strict=True)))
        return narrowed(box, combine(box, found))

    return tighten


def backward_bounds(
    cone: Program,
    relaxations: Nodes,
    sets: Sequence[Any],
    *,
    like: Interval,
    sharing: Sharing | None,
    parts: Chunks,
    needed: Array | None = None,
) -> Interval:
    """The bounds of a program's one output, an array like one end of the Interval, by single or by shared rows."""
    if sharing is not None:
        return shared_bounds(cone, relaxations, sets, sharing=sharing, parts=parts, needed=needed)
    return unit_rows(lambda units: lower_rows(cone, relaxations, sets, [units]), like.lower, parts, needed=needed)


def is_exact(cone: Program, sets: Sequence[Set]) -> bool:
    """Whether interval propagation of boxes through these equations is exact: a chain with at most one mixing."""
    if not all(isinstance(s, Interval) for s in sets):
        return False
    is_open, mixing = cone.open_slots(), 0
    for equation in cone.equations:
        mask = [slot in is_open for slot in equation.inputs]
        rule = None if equation.name in LOOPS else rule_of(equation, mask)
        if not isinstance(rule, Linear | Coefficient) or sum(mask) != 1:
            return False
        mixing += not rule.carries
        if isinstance(rule, Linear) and not rule.carries:
            return False
    return mixing <= 1
