"""Activations written out by a selection: `jnp.where(x > 0, x, slope * x)` is a leaky ReLU, whole."""

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxbound.program import Equation, Program
from jaxbound.rules.activations import named

# Which case of `select_n` a comparison with zero leads to where x is positive.
_POSITIVE = {"gt": 1, "ge": 1, "lt": 0, "le": 0}


def with_leaky_relus(program: Program, rule_key: str) -> Program:
    """Replaces selections between x and a multiple of x (or zero) by the sign of x.

    Bounded in parts, such a selection has lines around both cases, which know nothing of its predicate.

    Args:
      program: a specialised program.
      rule_key: under which parameter an equation carries a rule of its own.
    """
    makers = {slot: equation for equation in program.equations for slot in equation.outputs}
    equations = tuple(
        _leaky_relu(program, equation, makers=makers, rule_key=rule_key) for equation in program.equations
    )
    return dataclasses.replace(program, equations=equations)


def _leaky_relu(program: Program, equation: Equation, *, makers: Mapping[int, Equation], rule_key: str) -> Equation:
    """The equation itself if it is no such selection."""
    if equation.name != "select_n" or len(equation.inputs) != 3 or not _is_float(equation):
        return equation
    which, *cases = equation.inputs
    test = makers.get(which)
    if test is None or test.name not in _POSITIVE or not _is_zero(program, test.inputs[1]):
        return equation
    x, k = test.inputs[0], _POSITIVE[test.name]
    if cases[k] != x or test.shapes[0].shape != equation.shapes[0].shape:
        return equation
    slope = _factor(program, cases[1 - k], x, makers=makers)
    known = named("leaky_relu")
    if slope is None or known is None:
        return equation
    return dataclasses.replace(
        equation,
        name="leaky_relu",
        inputs=(x, slope),
        types=(equation.shapes[0], equation.shapes[0]),
        params={rule_key: known.rule},
        apply=lambda x, slope: [jnp.where(x > 0, x, slope * x)],
    )


def _is_float(equation: Equation) -> bool:
    return jnp.issubdtype(equation.shapes[0].dtype, jnp.floating)


def _factor(program: Program, slot: int, x: int, *, makers: Mapping[int, Equation]) -> int | None:
    """The slot of a constant that, times x, is the given slot; zero is a factor of itself."""
    if _is_zero(program, slot):
        return slot
    maker = makers.get(slot)
    if maker is None or maker.name != "mul" or x not in maker.inputs:
        return None
    other = maker.inputs[1 - maker.inputs.index(x)]
    return other if other in program.constants else None


def _is_zero(program: Program, slot: int) -> bool:
    """Whether a slot is known to hold zeros, or copies of one."""
    copied = program.copies.get(slot)
    value = program.constants.get(slot if copied is None else copied.inputs[0])
    return value is not None and not isinstance(value, Tracer) and not np.any(np.asarray(value))
