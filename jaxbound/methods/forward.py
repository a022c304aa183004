"""Forward linear bounds: LBP, CROWN with LBP inside, and CROWN that looks only a few layers back."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxbound import relax
from jaxbound.methods.affine import AffinePair, advance, enclosure, identity, lowest
from jaxbound.methods.backward import Combine, bounds_by_rows, unit_rows
from jaxbound.methods.chunks import WHOLE, Chunks
from jaxbound.methods.interval import Propagation, Tighten, linear_tail, propagate
from jaxbound.methods.problem import narrowed, prepare, valid_interval, valid_lower
from jaxbound.methods.replay import Nodes
from jaxbound.methods.rows import choose_lines, lower_rows
from jaxbound.program import Program
from jaxbound.sets import Array, Interval, Set, tightest

# Affine functions of the inputs around arrays, by slot; the program's inputs are among them.
Pairs = Mapping[int, AffinePair]
# (slots, relaxations so far) -> pairs, of these slots and of others.
Reach = Callable[[Sequence[int], Nodes], Pairs]
# Rows of a spec -> coefficients [S, N] and bias [S] of affine lower bounds.
Rows = Callable[[Sequence[Array]], tuple[Array, Array]]


def lbp(fn: Callable, *, relu: relax.ReluStrategy = relax.tight, combine: Combine = tightest) -> Callable:
    """Turns a function into its linear bound propagation: two affine functions of the input, carried forward.

    One walk, whose cost is that of N + 1 interval walks for N input elements and whose memory is N times the largest
    layer; `crown` costs a backward pass for every neuron. For ReLU networks and `relax.tight` never looser than `ibp`
    (with the same spec).

    Args:
      fn: a JAX function of one example, as for `ibp`.
      relu: the lines around ReLUs, one of `jaxbound.relax`.
      combine: (interval by propagation, interval by LBP) -> the one used for what enters a nonlinear operation;
        `jaxbound.tightest` intersects them.

    Returns:
      `bound(*args, spec=None, **kwargs)` as for `ibp`: Intervals, or lower bounds [S] of the rows of a spec, which
      are bounded together with the last linear layers.

    Raises:
      UnsupportedError, ValueError: as for `ibp`.

    Example:
      >>> def model(x):
      ...     return jnp.array([1.0, -1.0]) @ jnp.maximum(jnp.array([[1.0, -1.0], [1.0, 1.0]]) @ x, 0.0)
      >>> box = jaxbound.linf_ball(jnp.array([0.5, 0.25]), 0.125)
      >>> jaxbound.ibp(model)(box)
      Interval(lower=Array(-1., dtype=float32), upper=Array(0., dtype=float32))
      >>> jaxbound.lbp(model)(box)
      Interval(lower=Array(-0.75, dtype=float32), upper=Array(-0.25, dtype=float32))

    References:
      Lyu et al. 2021, CVPR, arXiv:2104.00447.
    """

    @functools.wraps(fn)
    def bound(*args: Any, spec: Any = None, **kwargs: Any) -> Any:
        problem = prepare(fn, args, kwargs)
        program, sets = problem.program, problem.sets
        reach = _forward(program, sets)
        propagation = propagate(program, sets, relu, _tighten_by_pairs(reach, sets, combine))
        if spec is not None:
            tail, _ = linear_tail(problem, propagation)
            pairs = reach(tail.inputs, propagation.relaxations)
            return valid_lower(lowest(*_pulled_back(tail, {}, pairs, problem.rows(spec)), sets))
        boxes, is_open = propagation.boxes(program.outputs), program.open_slots()
        for k, slot in enumerate(program.outputs):
            if slot in is_open:
                boxes[k] = enclosure(reach([slot], propagation.relaxations)[slot], sets)
        return jax.tree.unflatten(jax.tree.structure(problem.output), [valid_interval(*box) for box in boxes])

    return bound


def crown_lbp(fn: Callable, *, relu: relax.ReluStrategy = relax.tight, combine: Combine = tightest) -> Callable:
    """Turns a function into its CROWN-LBP bounds: LBP inside, one backward linear bound for the output.

    For ReLU networks and `relax.tight` never looser than `lbp` or `crown_ibp` and never tighter than `crown`, with the
    same spec.

    Args:
      fn: a JAX function of one example, as for `ibp`.
      relu: the lines around ReLUs, one of `jaxbound.relax`.
      combine: as for `lbp`.

    Returns:
      `bound(*args, spec=None, **kwargs)` as for `ibp`: Intervals, or lower bounds [S] of the rows of a spec.

    Raises:
      UnsupportedError, ValueError: as for `ibp`.

    Example:
      >>> def model(x):
      ...     hidden = jnp.maximum(jnp.array([[1.0, 1.0], [2.0, 0.0]]) @ x, 0.0)
      ...     return -jnp.maximum(hidden[1] - hidden[0], 0.0)
      >>> box = jaxbound.linf_ball(jnp.array([0.5, 0.5]), 0.25)
      >>> for method in (jaxbound.ibp, jaxbound.crown_ibp, jaxbound.crown_lbp):
      ...     print(method(model)(box).lower)
      -1.0
      -0.75
      -0.5

    References:
      Lyu et al. 2021, CVPR, arXiv:2104.00447.
    """

    @functools.wraps(fn)
    def bound(*args: Any, spec: Any = None, **kwargs: Any) -> Any:
        problem = prepare(fn, args, kwargs)
        program, sets = problem.program, problem.sets
        tighten = _tighten_by_pairs(_forward(program, sets), sets, combine)
        relaxations = propagate(program, sets, relu, tighten).relaxations
        return bounds_by_rows(problem, functools.partial(lower_rows, program, relaxations, sets), spec, WHOLE)

    return bound


def relaxed_crown(
    fn: Callable,
    *,
    depth: int,
    relu: relax.ReluStrategy = relax.tight,
    chunk: int = 512,
    combine: Combine = tightest,
) -> Callable:
    """Turns a function into its Relaxed-CROWN bounds: every bound goes back through a few nonlinear operations only.

    What is reached there is replaced by its own affine bounds, found earlier in the same way. A depth of 1 is LBP (or
    tighter, where several linear operations follow one another); a depth of all nonlinear operations is `crown`. In
    between deeper is mostly, not always, tighter.

    Args:
      fn: a JAX function of one example, as for `ibp`.
      depth: through how many nonlinear operations, counted along the longest path; at least 1.
      relu: the lines around ReLUs, one of `jaxbound.relax`.
      chunk: how many rows (two for each neuron) go backwards at once; bounds the memory.
      combine: as for `lbp`.

    Returns:
      `bound(*args, spec=None, **kwargs)` as for `ibp`. A loop (`jax.lax.scan`) counts as one nonlinear operation.

    Raises:
      UnsupportedError, ValueError: as for `ibp`; also a depth or a chunk below 1.

    Example:
      >>> def model(x):
      ...     return jnp.array([1.0, -1.0]) @ jnp.maximum(jnp.array([[1.0, -1.0], [1.0, 1.0]]) @ x, 0.0)
      >>> jaxbound.relaxed_crown(model, depth=1)(jaxbound.linf_ball(jnp.array([0.5, 0.25]), 0.125))
      Interval(lower=Array(-0.75, dtype=float32), upper=Array(-0.25, dtype=float32))

    References:
      Lyu et al. 2021, CVPR, arXiv:2104.00447.
    """
    if depth < 1 or chunk < 1:
        raise ValueError(f"depth and chunk must be at least 1, got depth={depth}, chunk={chunk}")

    @functools.wraps(fn)
    def bound(*args: Any, spec: Any = None, **kwargs: Any) -> Any:
        problem = prepare(fn, args, kwargs)
        program, sets = problem.program, problem.sets
        known = dict(zip(program.inputs, identity(sets), strict=True))

        def tighten(slot: int, box: Interval, so_far: Propagation) -> Interval:
            rows = _looking_back(program, [slot], (so_far.relaxations, known), depth)
            shape = jax.ShapeDtypeStruct(box.lower.shape, box.lower.dtype)
            coeffs, bias = unit_rows(lambda units: rows([units]), shape, Chunks(chunk))
            known[slot] = AffinePair(Interval(*(jnp.moveaxis(end, -1, 0) for end in coeffs)), bias)
            return narrowed(box, combine(box, enclosure(known[slot], sets)))

        relaxations = propagate(program, sets, relu, tighten).relaxations
        rows = _looking_back(program, program.outputs, (relaxations, known), depth)
        return bounds_by_rows(problem, lambda spec: valid_lower(lowest(*rows(spec), sets)), spec, Chunks(chunk))

    return bound


def _pulled_back(tail: Program, relaxations: Nodes, pairs: Pairs, spec: Sequence[Array]) -> tuple[Array, Array]:
    """A spec's rows as affine functions of the inputs: [S, N] and [S].

    They go back to the tail's own inputs; there positive coefficients take the lower function of the pair, negative
    ones the upper.
    """
    reached = [pairs[slot] for slot in tail.inputs]
    coeffs, bias, _ = choose_lines(tail, relaxations, [pair.bias for pair in reached], spec)
    count = next(iter(pairs.values())).coeffs.lower.shape[0]
    rows = jnp.zeros((*bias.shape, count), bias.dtype)
    for c, pair in zip(coeffs, reached, strict=True):
        for part, slopes, offset in zip((jnp.maximum(c, 0), jnp.minimum(c, 0)), *pair, strict=True):
            product = functools.partial(jnp.tensordot, part, precision=jax.lax.Precision.HIGHEST)
            rows = rows + product(jnp.moveaxis(slopes, 0, -1), axes=offset.ndim)
            bias = bias + product(offset, axes=offset.ndim)
    return rows, bias


def _looking_back(program: Program, slots: Sequence[int], found: tuple[Nodes, Pairs], depth: int) -> Rows:
    """Bounds of some slots by going back through `depth` nonlinear equations to slots whose pairs are known."""
    relaxations, pairs = found
    levels = dict.fromkeys(program.inputs, 0)  # nonlinear equations on the longest path from the inputs
    for equation in program.equations:
        level = max(levels.get(slot, 0) for slot in equation.inputs) + (equation.outputs[0] in relaxations)
        levels |= dict.fromkeys(equation.outputs, level)
    floor = max(levels.get(slot, 0) for slot in slots) - depth
    tail = program.cone(slots, [slot for slot in pairs if levels[slot] <= floor])
    inside = {key: relaxations[key] for eq in tail.equations for key in eq.outputs[:1] if key in relaxations}
    return functools.partial(_pulled_back, tail, inside, pairs)


def _tighten_by_pairs(reach: Reach, sets: Sequence[Set], combine: Combine) -> Tighten:
    def tighten(slot: int, box: Interval, so_far: Propagation) -> Interval:
        return narrowed(box, combine(box, enclosure(reach([slot], so_far.relaxations)[slot], sets)))

    return tighten


def _forward(program: Program, sets: Sequence[Set]) -> Reach:
    """Carries pairs forward, as far as is asked for; what was reached before is not computed again."""
    known = dict(zip(program.inputs, identity(sets), strict=True))

    def reach(slots: Sequence[int], relaxations: Nodes) -> Pairs:
        cone = program.cone(slots, known)
        values = advance(cone, [known[slot] for slot in cone.inputs], relaxations)
        known.update({slot: value for slot, value in values.items() if isinstance(value, AffinePair)})
        return known

    return reach
