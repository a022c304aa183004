"""Linear bounds of rows: choose lines by replaying a program backwards, then evaluate them forwards.

Choose. With every nonlinear equation replaced by one of its two lines the program is affine, and JAX's own `vjp` of it,
taken with the rows of a spec, is the CROWN recursion: positive cotangents go through the lower line, negative ones
through the upper line. The cotangent of the tap is the bias; every nonlinear result gets a zero `delta` added, whose
cotangent tells which line each row took.

Evaluate. By the envelope theorem each row's bound is also the value of the program at the row's worst input with the
chosen lines in place: an ordinary forward pass. `graft` takes the value from the first and the derivative from the
second, which is exact to first order and much cheaper than differentiating the recursion.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxbound.bounds import lower_value, worst_input
from jaxbound.methods.problem import rule_of, valid_lower
from jaxbound.methods.replay import Nodes, Stage, Tap, reading, replay, replayed
from jaxbound.program import Program
from jaxbound.rules.registry import Nonlinear
from jaxbound.rules.relaxation import Relaxation
from jaxbound.sets import Array, Set, element
from jaxbound.tracing import mesh_axes


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
    coeffs, bias, met = choose_lines(fixed_program(program), fixed(relaxations), fixed(list(sets)), fixed(list(spec)))
    value = lower_value(coeffs, bias, fixed(list(sets)))

    def evaluated(row: Sequence[Array], coeffs: Sequence[Array], signs: Nodes) -> Array:
        outputs = evaluate(program, relaxations, sets, coeffs=coeffs, signs=signs)
        return sum(jnp.sum(r * out) for r, out in zip(row, outputs, strict=True))

    return valid_lower(graft(value, jax.vmap(evaluated)(spec, coeffs, takes_lower(met))))


def lower_rows_by_lines(program: Program, relaxations: Nodes, sets: Sequence[Set], spec: Sequence[Array]) -> Array:
    """What `lower_rows` gives, with a derivative by the lines only, and not by those inside loops: one pass less.

    The derivative of a bound by a line is that of the line's value at the row's worst input, times the coefficient that
    meets the node: both are known once lines are chosen and evaluated. All else must not be differentiated.
    """
    fixed = jax.lax.stop_gradient(relaxations)
    coeffs, bias, met = choose_lines(program, fixed, sets, spec)

    def share(coeffs: Sequence[Array], met: Nodes) -> Array:
        states = _paired(fixed, takes_lower(met))
        worst, one = _worst(coeffs, sets)
        values, is_open, total = replayed(program, worst, one, states, _EVALUATE), program.open_slots(), one * 0
        for equation in program.equations:
            slot, mask = equation.outputs[0], [slot in is_open for slot in equation.inputs]
            relaxation = relaxations.get(slot)
            if isinstance(relaxation, Relaxation) and isinstance(rule := rule_of(equation, mask), Nonlinear):
                apply, operands = reading(rule, equation, [values[k] for k in equation.inputs], mask)
                total += jnp.sum(met[slot] * _chosen(apply, operands, (relaxation, states[slot][1]), one))
        return total

    return valid_lower(graft(lower_value(coeffs, bias, list(sets)), jax.vmap(share)(coeffs, met)))


def _worst(coeffs: Sequence[Array], sets: Sequence[Set]) -> tuple[list[Array], Array]:
    """A row's worst input, and the tap."""
    worst = [worst_input(c, s) for c, s in zip(coeffs, sets, strict=True)]
    return worst, jnp.ones((), jnp.result_type(*worst))


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
    return graft(*primals), tangents[1].astype(primals[0].dtype)


def choose_lines(
    program: Program,
    relaxations: Nodes,
    sets: Sequence[Set],
    spec: Sequence[Array],
    *,
    local: Mapping[int, tuple[int, ...]] | None = None,
) -> tuple[list[Array], Any, Nodes]:
    """Coefficients [S, *x.shape] per set, bias [S], and those that met each nonlinear result, [S, ...] each.

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
    return jax.vmap(lambda row: pullback(row))(rows)


def takes_lower(met: Nodes) -> Nodes:
    """Which line each row took, by the coefficients that met the nonlinear results."""
    return jax.tree.map(lambda coeffs: coeffs >= 0, met)


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
    return replay(program, *_worst(coeffs, sets), _paired(relaxations, signs), _EVALUATE)


def _each(relaxations: Nodes, fn: Callable[[Relaxation], Any]) -> dict[int, Any]:
    return {slot: _each(r, fn) if isinstance(r, Mapping) else fn(r) for slot, r in relaxations.items()}


def _paired(relaxations: Nodes, others: Nodes) -> dict[int, Any]:
    return {
        slot: _paired(r, others[slot]) if isinstance(r, Mapping) else (r, others[slot])
        for slot, r in relaxations.items()
    }


# The two stages.


def _relaxed(
    apply: Callable[..., Array], operands: Sequence[Array], state: tuple[Relaxation, Array], one: Array
) -> Array:
    """Upper line forwards; backwards, positive cotangents through the lower and negative ones through the upper."""
    relaxation, delta = state
    share = functools.partial(_product, shape=jnp.shape(one))
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in operands]

    @jax.custom_vjp
    def node(relaxation: Relaxation, one: Array, *operands: Array) -> Array:
        intercept = relaxation.upper.intercept
        return apply(relaxation.upper.slopes, *operands) + one.astype(intercept.dtype) * intercept

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
    apply: Callable[..., Array], operands: Sequence[Array], state: tuple[Relaxation, Array], one: Array
) -> Array:
    """The line that a row took."""
    del one
    (lower, upper), takes_lower = state
    linear = jnp.where(takes_lower, apply(lower.slopes, *operands), apply(upper.slopes, *operands))
    return linear + jnp.where(takes_lower, 0 if lower.intercept is None else lower.intercept, upper.intercept)


@jax.custom_vjp
def _where_met(constant: Array, one: Array) -> Array:
    """constant * one, elementwise; backwards, an infinite constant adds nothing where it meets no coefficient.

    What a mask hides from a softmax is -inf, and no line around the softmax has a slope there: that is no 0 * inf.
    """
    return _finite(constant) * one


_where_met.defvjp(
    lambda constant, one: (_where_met(constant, one), constant),
    lambda constant, ct: (None, jnp.where(ct == 0, 0, ct * constant)),
)


def _finite(x: Array) -> Array:
    return jnp.where(jnp.isinf(x), 0, x)


_CHOOSE = Stage(
    _relaxed,
    lambda rule, mask: rule.apply_to_transpose if mask[0] else None,
    lambda constant, one: _where_met(constant, jnp.broadcast_to(one.astype(constant.dtype), constant.shape)),
)
_EVALUATE = Stage(_chosen, lambda rule, mask: rule.apply, lambda constant, one: _finite(constant) * one)


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
