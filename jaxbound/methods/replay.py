"""Linear bounds by replaying a program with its relaxations in place: choose lines, then evaluate them.

Choose. With every nonlinear equation replaced by one of its two lines the program is affine, and JAX's own `vjp` of it,
taken with the rows of a spec, is the CROWN recursion: positive cotangents go through the lower line, negative ones
through the upper line. Every constant on the way is multiplied by a scalar tap `one`, whose cotangent collects the
bias; every nonlinear result gets a zero `delta` added, whose cotangent tells which line each row took.

Evaluate. By the envelope theorem each row's bound is also the value of the program at the row's worst input with the
chosen lines in place: an ordinary forward pass. `graft` takes the value from the first and the derivative from the
second, which is exact to first order and much cheaper than differentiating the recursion.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxbound.bounds import lower_value, worst_input
from jaxbound.methods.control import closed_results
from jaxbound.methods.problem import is_float, rule_of, rule_params, valid_lower
from jaxbound.program import Equation, Program, Scan, walk
from jaxbound.rules.registry import Coefficient, Linear, Nonlinear, Rule
from jaxbound.rules.relaxation import Relaxation
from jaxbound.sets import Array, Set, element
from jaxbound.tracing import mesh_axes

# Per nonlinear equation, by its first result's slot: a relaxation; for a scan such a mapping stacked over its steps;
# for what is known by intervals alone a mapping of its results' constant lines, by their slots.
Nodes = Mapping[int, Any]
# What constants are multiplied by: one. A scalar, or for each slot where a constant enters an array that broadcasts.
Tap = Array | Mapping[int, Array]


class Stage(NamedTuple):
    """What stands in for the equations of a program.

    Attributes:
      nonlinear: (apply, state, one, operands) -> result, where `apply(slopes, *operands)` is the rule's reading of the
        slopes of one line and the state is what the stage knows of the equation.
      form: (rule, which_operands_are_open) -> the function that computes the operation, None for the primitive itself.
    """

    nonlinear: Callable[[Callable[..., Array], Any, Array, Sequence[Array]], Array]
    form: Callable[[Coefficient, Sequence[bool]], Callable[..., Array] | None]


def lower_rows(program: Program, relaxations: Nodes, sets: Sequence[Set], spec: Sequence[Array]) -> Array:
    """Lower bounds of the rows of a spec over the sets, differentiable.

    Args:
      program: a specialised program.
      relaxations: for every nonlinear equation in it.
      sets: one for each input.
      spec: [S, *out] for each output.

    Returns:
      [S].
    """
    fixed = jax.lax.stop_gradient
    coeffs, bias, signs = choose_lines(fixed_program(program), fixed(relaxations), fixed(list(sets)), fixed(list(spec)))
    value = lower_value(coeffs, bias, fixed(list(sets)))

    def evaluated(row: Sequence[Array], coeffs: Sequence[Array], signs: Nodes) -> Array:
        outputs = evaluate(program, relaxations, sets, coeffs=coeffs, signs=signs)
        return sum(jnp.sum(r * out) for r, out in zip(row, outputs, strict=True))

    return valid_lower(graft(value, jax.vmap(evaluated)(spec, coeffs, signs)))


def fixed_program(program: Program) -> Program:
    """The program with constants that are not differentiated."""
    constants = {slot: jax.lax.stop_gradient(value) for slot, value in program.constants.items()}
    return dataclasses.replace(program, constants=constants)


@jax.custom_jvp
def graft(value: Array, other: Array) -> Array:
    """The value of the first argument with the derivative of the second."""
    del other
    return value


@graft.defjvp
def _graft_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    return graft(*primals), tangents[1]


def choose_lines(
    program: Program,
    relaxations: Nodes,
    sets: Sequence[Set],
    spec: Sequence[Array],
    *,
    local: Mapping[int, tuple[int, ...]] | None = None,
) -> tuple[list[Array], Any, Nodes]:
    """Coefficients [S, *x.shape] per set, bias [S], and which line each row took, [S, ...] per nonlinear result.

    With `local`, a shape for each of `constant_slots`, the bias is not summed over everything but comes as it enters
    there: slot -> [S, *shape], summed over the axes along which the shape has a size of one.
    """
    everything = [leaf for leaf in jax.tree.leaves((program.constants, relaxations, sets)) if mesh_axes(leaf)]
    inputs = [varying(jnp.zeros_like(element(s)), everything) for s in sets]
    one = varying(jnp.ones((), jnp.result_type(*spec)), everything)
    tap = one if local is None else {slot: jnp.broadcast_to(one, shape) for slot, shape in local.items()}
    deltas = _each(relaxations, lambda r: varying(jnp.zeros_like(r.upper.intercept), everything))

    def affine(inputs: list[Array], tap: Tap, deltas: Nodes) -> list[Array]:
        return replay(program, inputs, tap, _paired(relaxations, deltas), _CHOOSE)

    outputs, pullback = jax.vjp(affine, inputs, tap, deltas)
    rows = [varying(row, out) for row, out in zip(spec, outputs, strict=True)]
    coeffs, bias, signs = jax.vmap(lambda row: pullback(row))(rows)
    return coeffs, bias, jax.tree.map(lambda ct: ct >= 0, signs)


def varying(x: Array, others: Any) -> Array:
    """The same, of a type that varies over every axis of a mesh (inside `shard_map`) that one of the others does."""
    for leaf in jax.tree.leaves(others):
        if mesh_axes(leaf) - mesh_axes(x):
            x = jnp.where(False, jnp.ravel(leaf)[0].astype(x.dtype), x)
    return x


def evaluate(
    program: Program, relaxations: Nodes, sets: Sequence[Set], *, coeffs: Sequence[Array], signs: Nodes
) -> list[Array]:
    """The outputs at one row's worst input, with the lines that it chose."""
    worst = [worst_input(c, s) for c, s in zip(coeffs, sets, strict=True)]
    return replay(program, worst, jnp.ones((), jnp.result_type(*worst)), _paired(relaxations, signs), _EVALUATE)


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


def _each(relaxations: Nodes, fn: Callable[[Relaxation], Any]) -> dict[int, Any]:
    return {slot: _each(r, fn) if isinstance(r, Mapping) else fn(r) for slot, r in relaxations.items()}


def _paired(relaxations: Nodes, others: Nodes) -> dict[int, Any]:
    return {
        slot: _paired(r, others[slot]) if isinstance(r, Mapping) else (r, others[slot])
        for slot, r in relaxations.items()
    }


# The two stages.


def _relaxed(
    apply: Callable[..., Array], state: tuple[Relaxation, Array], one: Array, operands: Sequence[Array]
) -> Array:
    """Upper line forwards; backwards, positive cotangents through the lower and negative ones through the upper."""
    relaxation, delta = state
    share = functools.partial(_product, shape=jnp.shape(one))
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in operands]

    @jax.custom_vjp
    def node(relaxation: Relaxation, one: Array, *operands: Array) -> Array:
        return apply(relaxation.upper.slopes, *operands) + one * relaxation.upper.intercept

    def forward(relaxation: Relaxation, one: Array, *operands: Array) -> tuple[Array, Relaxation]:
        return node(relaxation, one, *operands), relaxation

    def backward(relaxation: Relaxation, ct: Array) -> tuple[Any, ...]:
        lower, upper = relaxation
        origin = [varying(jnp.zeros(shape.shape, shape.dtype), ct) for shape in shapes]
        positive, negative = jnp.maximum(ct, 0), jnp.minimum(ct, 0)
        down, up = (), ()
        if origin:
            down = jax.vjp(functools.partial(apply, lower.slopes), *origin)[1](positive)
            up = jax.vjp(functools.partial(apply, upper.slopes), *origin)[1](negative)
        bias = share(upper.intercept, negative)
        if lower.intercept is not None:
            # Not by the difference of both: next to a large intercept that is not used it would lose a small one.
            bias = bias + share(lower.intercept, positive)
        return None, bias.astype(one.dtype), *(a + b for a, b in zip(down, up, strict=True))

    node.defvjp(forward, backward)
    return node(relaxation, one, *operands) + delta


def _chosen(
    apply: Callable[..., Array], state: tuple[Relaxation, Array], one: Array, operands: Sequence[Array]
) -> Array:
    """The line that a row took."""
    del one
    (lower, upper), takes_lower = state
    linear = jnp.where(takes_lower, apply(lower.slopes, *operands), apply(upper.slopes, *operands))
    return linear + jnp.where(takes_lower, 0 if lower.intercept is None else lower.intercept, upper.intercept)


_CHOOSE = Stage(_relaxed, lambda rule, mask: rule.apply_to_transpose if mask[0] else None)
_EVALUATE = Stage(_chosen, lambda rule, mask: rule.apply)


# The program itself.


def replay(program: Program, inputs: Sequence[Array], one: Tap, states: Nodes, stage: Stage) -> list[Array]:
    """The outputs of a program at a stage, with the states of its nonlinear equations; linear in inputs and tap."""
    local = isinstance(one, Mapping)

    def at(slot: int) -> Array:
        return one[slot] if isinstance(one, Mapping) else one

    tap = functools.partial(_tap, program, one)

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
            apply = functools.partial(rule.evaluate, **rule_params(equation))
            open_operands = [x for x, flag in zip(operands, mask, strict=True) if flag and is_float(x)]
            return [stage.nonlinear(apply, state, at(equation.outputs[0]), open_operands)]
        if isinstance(rule, Linear) and (rule.offset or local and _has_constant(rule, mask)):
            return _with_offset(equation, operands, mask, at)
        if isinstance(rule, Linear):
            operands = [
                x if flag or not rule.is_linear_in(k) else tap(equation.inputs[k], x)
                for k, (x, flag) in enumerate(zip(operands, mask, strict=True))
            ]
        own = stage.form(rule, mask) if isinstance(rule, Coefficient) else None
        return equation.apply(*operands) if own is None else [own(*operands, **equation.params)]

    values, is_open = walk(program, inputs, handler), program.open_slots()
    return [values[slot] if slot in is_open else tap(slot, values[slot]) for slot in program.outputs]


def _tap(program: Program, one: Array, slot: int, constant: Array) -> Array:
    """A constant of a slot, tapped; if it was copied, before it is, so that its share of the bias is summed first."""
    copied = program.copies.get(slot)
    if copied is None:
        return _tapped(constant, one)
    return copied.apply(_tapped(program.constants[copied.inputs[0]], one))[0]


def _is_constant(equation: Equation, state: Any) -> bool:
    """Whether linear bounds know constants only of the results."""
    return isinstance(state, Mapping) or not any(map(is_float, equation.shapes))


def _with_offset(
    equation: Equation, operands: Sequence[Array], mask: Sequence[bool], at: Callable[[int], Array]
) -> list[Array]:
    """The results of a linear equation, with their constant part tapped."""
    constant = equation.apply(*(jnp.zeros_like(x) if flag else x for x, flag in zip(operands, mask, strict=True)))
    results = zip(equation.outputs, equation.apply(*operands), constant, strict=True)
    return [x + _tapped(c, at(slot) - 1) for slot, x, c in results]


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
    return stage.nonlinear(lambda *_: 0.0, states[slot], at(slot), [])


def _tapped(constant: Array, one: Array) -> Array:
    """constant * one; if that is a scalar, the transpose is one matrix product for all rows."""
    constant = jnp.asarray(constant)
    if not is_float(constant):
        return constant
    if one.ndim:
        return constant * one.astype(constant.dtype)
    return jnp.tensordot(constant, one.astype(constant.dtype), 0, precision=jax.lax.Precision.HIGHEST)


def _product(x: Array, y: Array, shape: tuple[int, ...]) -> Array:
    """The sum of x * y over the axes along which the shape has a size of one, or all of them if it is ().

    That is a matrix product: plain sums of all nodes are fused into one by compilers, late and slow.
    """
    if shape:
        return summed_to(shape, x * y)
    return jnp.dot(x.ravel(), y.ravel(), precision=jax.lax.Precision.HIGHEST)


def summed_to(shape: tuple[int, ...], x: Array) -> Array:
    """The sum over the axes along which the shape has a size of one."""
    return jnp.sum(x, [axis for axis, n in enumerate(shape) if n != x.shape[axis]], keepdims=True)


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
