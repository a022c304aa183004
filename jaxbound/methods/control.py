"""Loops, and whatever else linear bounds know by intervals alone."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxbound.methods.problem import is_float, rule_params, valid_interval
from jaxbound.program import Equation, Program, Scan, While
from jaxbound.rules.discrete import as_box, extremes, hull, is_bool, where_known
from jaxbound.rules.registry import Enclosed
from jaxbound.rules.relaxation import Affine, Relaxation
from jaxbound.sets import Array, Interval, is_set

# (program, sets) -> its `Propagation`.
Propagate = Callable[[Program, Sequence[Any]], Any]

_MOST_STEPS = 1000  # of a `while` whose number of steps depends on a set, before it counts as unbounded


class Loop(NamedTuple):
    """What the interval walk learns of a loop: its results, and as in `Propagation` relaxations and layers."""

    results: Sequence[Any]
    relaxations: Mapping[int, Any]
    layers: Mapping[str, Interval]


def enclose(rule: Enclosed, equation: Equation, operands: Sequence[Any]) -> list[Interval]:
    """The intervals of an equation's results; operands that are invalid are unknown, or no numbers at all."""
    known = [valid_interval(*x) if is_set(x) else x for x in operands]
    results = rule.interval(*known, **rule_params(equation))
    undefined = [jnp.isnan(x.lower) | jnp.isnan(x.upper) for x in operands if is_set(x) and is_float(x.lower)]
    return [_where_defined(undefined, box) for box in ([results] if isinstance(results, Interval) else results)]


def _where_defined(undefined: Sequence[Array], box: Interval) -> Interval:
    """The result, but NaN, or an open decision, where an operand of its shape is NaN."""
    for flags in undefined:
        if flags.shape in ((), box.lower.shape):
            if is_float(box.lower):
                box = Interval(*(jnp.where(flags, jnp.nan, end) for end in box))
            elif is_bool(box.lower.dtype):
                box = Interval(box.lower & ~flags, box.upper | flags)
    return box


def constant_lines(equation: Equation, results: Sequence[Any]) -> dict[int, Relaxation]:
    """Every result that is a set of floats as a constant between its ends: lines without slopes."""
    boxes = {slot: x for slot, x in zip(equation.outputs, results, strict=True) if is_set(x) and is_float(x.lower)}
    return {slot: Relaxation(*(Affine((), end) for end in valid_interval(*box))) for slot, box in boxes.items()}


def closed_results(equation: Equation, operands: Sequence[Any], mask: Sequence[bool]) -> dict[int, Array]:
    """The results of an equation that depend on no set, by slot: a loop may have some."""
    flags = equation.open_outputs(mask)
    if all(flags):
        return {}
    types = zip(operands, equation.types, mask, strict=True)
    results = equation.apply(*(jnp.zeros(kind.shape, kind.dtype) if flag else x for x, kind, flag in types))
    return {slot: x for slot, x, flag in zip(equation.outputs, results, flags, strict=True) if not flag}


def propagate_loop(equation: Equation, operands: list[Any], mask: Sequence[bool], propagate: Propagate) -> Loop:
    """Intervals through a loop."""
    if equation.name == "scan":
        return _propagate_scan(Scan.of(equation), operands, mask, propagate)
    results = _propagate_while(While.of(equation), operands, mask, propagate)
    return Loop(results, constant_lines(equation, results), {})


def _interpreted(program: Program, values: Sequence[Any], flags: Sequence[bool], propagate: Propagate) -> Any:
    """The propagation through a loop's body, with the values that are not flagged as constants."""
    body = program.specialize([None if flag else x for x, flag in zip(values, flags, strict=True)])
    found = propagate(body, [x for x, flag in zip(values, flags, strict=True) if flag])
    return found, [found.values[slot] for slot in program.outputs]


def _propagate_scan(scan: Scan, operands: list[Any], mask: Sequence[bool], propagate: Propagate) -> Loop:
    flags, results_open = scan.open_inputs(mask), scan.open_outputs(mask)
    consts, carries, slices = scan.split([as_box(x) if flag else x for x, flag in zip(operands, flags, strict=True)])

    def step(carry: list[Any], sliced: list[Any]) -> tuple[list[Any], tuple[list[Any], Any, Any]]:
        inner, values = _interpreted(scan.body, (*consts, *carry, *sliced), flags, propagate)
        outputs = [as_box(x) if flag else x for x, flag in zip(values, results_open, strict=True)]
        return outputs[: scan.num_carry], (outputs[scan.num_carry :], inner.relaxations, inner.layers)

    carries, (stacked, relaxations, layers) = jax.lax.scan(step, carries, slices, **scan.options)
    return Loop([*carries, *stacked], relaxations, layers)


def _propagate_while(loop: While, operands: list[Any], mask: Sequence[bool], propagate: Propagate) -> list[Any]:
    """All values that the carries may have where the predicate may be false.

    The state encloses the carries of all executions that have not stopped. It is enough to go on until none goes on,
    or until a step leads back into the state; where neither comes in time, the results are unknown.
    """
    flags = loop.open_inputs(mask)
    values = [as_box(x) if flag else x for x, flag in zip(operands, flags, strict=True)]
    tests, consts, carries = loop.split(values)
    flags_of_tests, flags_of_consts, flags_of_carries = loop.split(flags)
    depends = loop.predicate.outputs[0] in loop.predicate.open_slots((*flags_of_tests, *flags_of_carries))

    def predicate(state: list[Any]) -> Interval:
        _, found = _interpreted(loop.predicate, (*tests, *state), (*flags_of_tests, *flags_of_carries), propagate)
        return as_box(found[0])

    def step(state: list[Any]) -> list[Any]:
        _, found = _interpreted(loop.body, (*consts, *state), (*flags_of_consts, *flags_of_carries), propagate)
        return [as_box(x) if flag else x for x, flag in zip(found, flags_of_carries, strict=True)]

    if not depends:
        return jax.lax.while_loop(lambda state: predicate(state).lower, step, carries)

    def goes_on(progress: tuple) -> Array:
        count, settled, state, _ = progress
        return predicate(state).upper & ~settled & (count < _MOST_STEPS)

    def advance(progress: tuple) -> tuple:
        count, _, state, stopped = progress
        state = [valid_interval(*x) for x in state]
        may_stop = ~predicate(state).lower
        stopped = [_joined(may_stop, x, y) for x, y in zip(state, stopped, strict=True)]
        following = step(state)
        inside = [jnp.all((x.lower >= y.lower) & (x.upper <= y.upper)) for x, y in zip(following, state, strict=True)]
        return count + 1, jnp.stack(inside).all(), following, stopped

    start = (0, jnp.array(False), carries, [_nothing(x) for x in carries])
    count, settled, state, stopped = jax.lax.while_loop(goes_on, advance, start)
    in_time = settled | ~predicate(state).upper
    results = [_joined(~settled, x, y) for x, y in zip(state, stopped, strict=True)]
    return [where_known(in_time, x) for x in results]


def _joined(condition: Array, first: Interval, second: Interval) -> Interval:
    """Both where the condition holds, else the second alone."""
    return Interval(*(jnp.where(condition, a, b) for a, b in zip(hull(first, second), second, strict=True)))


def _nothing(like: Interval) -> Interval:
    """What leaves its partner in a hull as it is."""
    least, greatest = extremes(like.lower.dtype)
    return Interval(jnp.full_like(like.lower, greatest), jnp.full_like(like.upper, least))
