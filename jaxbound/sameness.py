"""When two programs, or two steps of them, do the same."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from jaxbound.program import Equation, Program, Value


def same_program(first: Program, second: Program) -> bool:
    """Whether two programs are the same but for the numbering of their slots."""
    if len(first.equations) != len(second.equations) or len(first.inputs) != len(second.inputs):
        return False
    renamed: dict[int, int] = dict(zip(second.inputs, first.inputs, strict=True))

    def matches(mine: int, theirs: int) -> bool:
        if mine in first.constants and theirs in second.constants:
            return same_value(first.constants[mine], second.constants[theirs])
        return renamed.get(theirs) == mine

    for a, b in zip(first.equations, second.equations, strict=True):
        if not (same_step(a, b) and all(map(matches, a.inputs, b.inputs))):
            return False
        renamed |= dict(zip(b.outputs, a.outputs, strict=True))
    return all(map(matches, first.outputs, second.outputs))


def same_step(a: Equation, b: Equation) -> bool:
    """Whether two equations do the same to their operands.

    Their shapes count: a scalar and an array are added without a broadcast, and give what two arrays would.
    """
    return _kinds(a.types) == _kinds(b.types) and a.shapes == b.shapes and _form(a) == _form(b)


def same_value(a: Value, b: Value) -> bool:
    """Whether two constants are known to be the same."""
    if any(isinstance(x, Tracer) for x in (a, b)):
        return a is b
    a, b = np.asarray(a), np.asarray(b)
    return a.shape == b.shape and bool(np.all((a == b) | ((a != a) & (b != b))))


def same_name(a: Equation, b: Equation) -> bool:
    """Whether two equations do the same kind of thing, whatever the shapes."""
    return len(a.inputs) == len(b.inputs) and _form(a)[0] == _form(b)[0]


def _kinds(types: Sequence[jax.ShapeDtypeStruct]) -> list[tuple[Any, ...]]:
    return [(kind.shape, kind.dtype) for kind in types]


def _form(equation: Equation) -> tuple[str, dict[str, str]]:
    """An equation's name and parameters; those of operations that have several names are the same."""
    name, params = equation.name, equation.params
    if name in ("expand_dims", "squeeze") or (name == "reshape" and params.get("dimensions") is None):
        return "reshape", {}  # the result's shape tells all
    if name == "integer_pow" and params.get("y") == 2:
        return "square", {}
    return name, {key: str(_plain(value)) for key, value in params.items()}


def _plain(value: Any) -> Any:
    """Numbers as Python has them: `jax.vmap` leaves NumPy's among axes."""
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    return value.item() if isinstance(value, np.integer) else value
