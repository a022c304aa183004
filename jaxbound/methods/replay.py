"""A program with stand-ins for its nonlinear equations: what choosing lines and evaluating them have in common.

Every constant on the way is multiplied by a scalar tap `one`, so that the program is linear in its inputs and the tap,
and a cotangent of the tap collects the bias.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxbound.methods.control import closed_results
from jaxbound.methods.problem import is_float, rule_of, rule_params
from jaxbound.program import LOOPS, Equation, Program, Scan, walk
from jaxbound.rules.registry import Coefficient, Enclosed, Linear, Nonlinear, Rule
from jaxbound.sets import Array

# Per nonlinear equation, by its first result's slot: a relaxation; for a scan such a mapping stacked over its steps;
# for what is known by intervals alone a mapping of its results' constant lines, by their slots.
Nodes = Mapping[int, Any]
# What constants are multiplied by: one. A scalar, or for each slot where a constant enters an array that broadcasts.
Tap = Array | Mapping[int, Array]


class Stage(NamedTuple):
    """What stands in for the equations of a program.

    Attributes:
      nonlinear: (apply, operands, state, one) -> result, where `apply(slopes, *operands)` is the rule's reading of the
        slopes of one line and the state is what the stage knows of the equation.
      form: (rule, which_operands_are_open) -> the function that computes the operation, None for the primitive itself.
      infinite: (constant, one) -> their product, for a constant that may be infinite.
    """

    nonlinear: Callable[[Callable[..., Array], Sequence[Array], Any, Array], Array]
    form: Callable[[Coefficient, Sequence[bool]], Callable[..., Array] | None]
    infinite: Callable[[Array, Array], Array]


def replay(program: Program, inputs: Sequence[Array], one: Tap, states: Nodes, stage: Stage) -> list[Array]:
    """The outputs of a program at a stage, with the states of its nonlinear equations; linear in inputs and tap."""
    values, is_open = replayed(program, inputs, one, states, stage), program.open_slots()
    tap = _tap(program, one, stage, _masks(program))
    return [values[slot] if slot in is_open else tap(slot, values[slot]) for slot in program.outputs]


def replayed(program: Program, inputs: Sequence[Array], one: Tap, states: Nodes, stage: Stage) -> Mapping[int, Array]:
    """The values of all slots of a program at a stage."""
    local, masks = isinstance(one, Mapping), _masks(program)

    def at(slot: int) -> Array:
        return one[slot] if isinstance(one, Mapping) else one

    tap = _tap(program, one, stage, masks)

    def handler(equation: Equation, operands: list[Array], mask: tuple[bool, ...]) -> Sequence[Array]:
        if equation.name == "scan":
            return _replay_scan(equation, operands, mask, one, states[equation.outputs[0]], stage)
        state = states.get(equation.outputs[0])
        if _is_constant(equation, state):
            return _constants(equation, operands, mask, functools.partial(_constant, state or {}, at, stage))
        if equation.name == "stop_gradient":  # to `vjp` it is zero, to the bound it is the identity
            return operands
        rule = rule_of(equation, mask)
        if isinstance(rule, Nonlinear):
            return [stage.nonlinear(*reading(rule, equation, operands, mask), state, at(equation.outputs[0]))]
        if isinstance(rule, Linear) and (rule.offset or local and _has_constant(rule, mask)):
            infinite = None if masks.isdisjoint(equation.inputs) else stage.infinite
            return _with_offset(equation, operands, mask, at=at, infinite=infinite)
        if isinstance(rule, Linear):
            operands = [
                x if flag or not rule.is_linear_in(k) else tap(equation.inputs[k], x)
                for k, (x, flag) in enumerate(zip(operands, mask, strict=True))
            ]
        own = stage.form(rule, mask) if isinstance(rule, Coefficient) else None
        return equation.apply(*operands) if own is None else [own(*operands, **equation.params)]

    return walk(program, inputs, handler)


def reading(
    rule: Nonlinear, equation: Equation, operands: Sequence[Array], mask: Sequence[bool]
) -> tuple[Callable, list[Array]]:
    """The rule's reading of the slopes of one line, and the operands that these are slopes of."""
    apply = functools.partial(rule.evaluate, **rule_params(equation))
    return apply, [x for x, flag in zip(operands, mask, strict=True) if flag and is_float(x)]


def _tap(program: Program, one: Array, stage: Stage, masks: frozenset[int]) -> Callable[[int, Array], Array]:
    """(slot, constant) -> the constant tapped; before it was copied, if it was, so that its bias is summed first."""

    def tap(slot: int, constant: Array) -> Array:
        if slot in masks and is_float(constant):
            return stage.infinite(constant, one)
        copied = program.copies.get(slot)
        if copied is None:
            return _tapped(constant, one)
        return copied.apply(_tapped(program.constants[copied.inputs[0]], one))[0]

    return tap


def _masks(program: Program) -> frozenset[int]:
    """The infinite constants, if nothing but moving them happens before a nonlinear equation takes them, else none.

    What meets a coefficient of zero, or cancels, makes the function NaN, and NaN must not get a bound.
    """
    is_open, carrying = program.open_slots(), set(program.infinite)
    for equation in program.equations if carrying else ():
        met = [k for k, slot in enumerate(equation.inputs) if slot in carrying and is_float(equation.types[k])]
        mask = [slot in is_open for slot in equation.inputs]
        rule = None if equation.name in (*LOOPS, "stop_gradient") else rule_of(equation, mask)
        if not met or isinstance(rule, Nonlinear | Enclosed):
            continue
        whole = all(mask[k] or equation.types[k].shape == equation.shapes[0].shape for k in met)
        linear = isinstance(rule, Linear) and len(met) == 1 and rule.is_linear_in(met[0])
        if not (equation.name == "stop_gradient" or linear and whole):
            return frozenset()
        carrying.update(equation.outputs)
    return program.infinite


def _is_constant(equation: Equation, state: Any) -> bool:
    """Whether linear bounds know constants only of the results."""
    return isinstance(state, Mapping) or not any(map(is_float, equation.shapes))


def _with_offset(
    equation: Equation,
    operands: Sequence[Array],
    mask: Sequence[bool],
    *,
    at: Callable[[int], Array],
    infinite: Callable[[Array, Array], Array] | None,
) -> list[Array]:
    """The results of a linear equation, with their constant part tapped, by a function of its own if it is infinite."""
    constant = equation.apply(*(jnp.zeros_like(x) if flag else x for x, flag in zip(operands, mask, strict=True)))
    results = zip(equation.outputs, equation.apply(*operands), constant, strict=True)
    if infinite is None:
        return [x + _tapped(c, at(slot) - 1) for slot, x, c in results]
    return [jnp.where(jnp.isinf(c), 0, x - c) + infinite(c, at(slot)) for slot, x, c in results]


def _constants(
    equation: Equation, operands: list[Array], mask: Sequence[bool], constant: Callable[[int, Any], Array]
) -> list[Array]:
    """The results of an equation of which linear bounds know constants only; what depends on no set as it is."""
    closed = closed_results(equation, operands, mask)
    results = zip(equation.outputs, equation.shapes, strict=True)
    return [closed[slot] if slot in closed else constant(slot, shape) for slot, shape in results]


def _constant(states: Nodes, at: Callable[[int], Array], stage: Stage, slot: int, shape: Any) -> Array:
    """Floats have lines without slopes, and no line goes through integers or booleans."""
    if slot not in states:
        return jnp.zeros(shape.shape, shape.dtype)
    return stage.nonlinear(lambda *_: 0.0, [], states[slot], at(slot))


def _tapped(constant: Array, one: Array) -> Array:
    """constant * one; if that is a scalar, the transpose is one matrix product for all rows."""
    constant = jnp.asarray(constant)
    if not is_float(constant):
        return constant
    if one.ndim:
        return constant * one.astype(constant.dtype)
    return jnp.tensordot(constant, one.astype(constant.dtype), 0, precision=jax.lax.Precision.HIGHEST)


def constant_slots(program: Program) -> list[int]:
    """Where constants enter: the results of nonlinear equations, and of linear ones with a constant operand."""
    is_open, slots = program.open_slots(), []
    for equation in program.equations:
        mask = [slot in is_open for slot in equation.inputs]
        if equation.name != "stop_gradient" and _has_constant(rule_of(equation, mask), mask):
            slots.extend(equation.outputs)
    return slots


def _has_constant(rule: Rule, mask: Sequence[bool]) -> bool:
    if isinstance(rule, Linear):
        return rule.offset or any(rule.is_linear_in(k) for k, flag in enumerate(mask) if not flag)
    return isinstance(rule, Nonlinear)


def _replay_scan(
    equation: Equation, operands: list[Array], mask: Sequence[bool], one: Any, states: Nodes, stage: Stage
) -> Sequence[Array]:
    scan = Scan.of(equation)
    mask_consts, mask_carry, mask_slices = scan.split(scan.open_inputs(mask))
    consts, carries, slices = scan.split(operands)
    given = mask[scan.num_consts :]
    carries = [
        _tapped(jnp.asarray(x), one) if later and not now else x
        for x, later, now in zip(carries, mask_carry, given, strict=False)
    ]

    def step(carry: list[Array], scanned: tuple[list[Array], Nodes]) -> tuple[list[Array], list[Array]]:
        slices, states = scanned
        flags = (*mask_consts, *mask_carry, *mask_slices)
        arguments = (*consts, *carry, *slices)
        body = scan.body.specialize([None if flag else x for x, flag in zip(arguments, flags, strict=True)])
        is_open = body.open_slots()
        inputs = [x for x, flag in zip(arguments, flags, strict=True) if flag]
        outputs = replay(body, inputs, one, states, stage)
        untouched = [slot in is_open or flag for slot, flag in zip(body.outputs, scan.open_outputs(mask), strict=True)]
        outputs = [
            x if keep else body.constants[slot] for x, keep, slot in zip(outputs, untouched, body.outputs, strict=True)
        ]
        return outputs[: scan.num_carry], outputs[scan.num_carry :]

    carries, stacked = jax.lax.scan(step, carries, (slices, dict(states)), **scan.options)
    return [*carries, *stacked]
