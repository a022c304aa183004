"""Recognises functions that arrive as several primitives: a part of a program that is a reference's program.

Nothing is described by patterns. Where a rare primitive occurs, the references that have it are traced for the shapes
and axes found around it, and compared with what leads to the results that follow it. What is not recognised stays a
chain of primitives: sound, and looser.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxbound.program import Equation, Program
from jaxbound.rules.composites import COMPOSITES, Composite, Sum, in_front, mapped
from jaxbound.sameness import same_name, same_step, same_value
from jaxbound.tracing import Recognizer, trace

_AFTER = 3  # how many steps may lead from a key primitive to the result
_BEFORE = 12  # and how many from the sum that tells the axes
_FORM = {"broadcast_in_dim", "convert_element_type", "expand_dims", "reshape", "squeeze", "transpose"}


def recognized(program: Program, calls: Recognizer) -> Program:
    """The same function, with calls that have rules of their own wherever a composite was written out.

    Args:
      program: not specialised, so that its constants are those of its source.
      calls: lets these calls stay whole.
    """
    equations = tuple(_inside(equation, calls) for equation in program.equations)
    finder = _Finder(dataclasses.replace(program, equations=equations), calls)
    found = {slot: made for slot, keys in finder.ends().items() if (made := finder.standing(slot, keys)) is not None}
    if not found:
        return finder.program
    replaced = [e for given in equations for e in found.get(given.outputs[0], (given,))]
    constants = {**program.constants, **finder.constants}
    result = dataclasses.replace(program, equations=tuple(replaced), constants=constants)
    return dataclasses.replace(result.cone(program.outputs), inputs=program.inputs)


def _inside(equation: Equation, calls: Recognizer) -> Equation:
    """The same for the programs that an equation holds, such as a loop's body."""

    def within(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(within, value)) if any(isinstance(part, Program) for part in value) else value
        return recognized(value, calls) if isinstance(value, Program) else value

    return dataclasses.replace(equation, params={name: within(value) for name, value in equation.params.items()})


def _makers(program: Program) -> dict[int, Equation]:
    return {slot: equation for equation in program.equations for slot in equation.outputs}


def _content(slot: int, makers: Mapping[int, Equation]) -> int:
    """What a slot is another layout or type of."""
    while slot in makers and makers[slot].name in _FORM:
        slot = makers[slot].inputs[0]
    return slot


def _traced(fn: Callable, operands: Sequence[Any], over: Sum | None, calls: Recognizer) -> Program | None:
    try:
        return trace(fn if over is None else mapped(fn, over), operands, calls)[0]
    except (TypeError, ValueError, IndexError):  # there is no such function of these shapes
        return None


def _operands(composite: Composite, result: jax.ShapeDtypeStruct, over: Sum | None) -> tuple[Any, ...]:
    """The shapes of x and of the other operands, from that of the result."""
    shape = result.shape if composite.keeps_shape or over is None else over.shape
    shapes = {"eps": (), "scale": (*(1 for _ in shape[:-1]), *shape[-1:])}
    if over is not None and over.mapped is not None:
        shapes["scale"] = shapes["scale"][1:]
        shape = (*shape[1 : 1 + over.mapped], shape[0], *shape[1 + over.mapped :])
    every = (shape, *(shapes[name] for name in composite.operands))
    return tuple(jax.ShapeDtypeStruct(each, result.dtype) for each in every)


@functools.cache
def _example(composite: Composite, calls: Recognizer, dtype: Any) -> Program | None:
    """The reference for small columns: rows may be one call that has a rule, and need other shapes to be divided."""
    over = Sum((0,), (3, 4)) if composite.reduces else None
    operands = _operands(composite, jax.ShapeDtypeStruct((3, 4), dtype), over)
    return _traced(composite.reference, operands, over, calls)


def _mapped_sums(over: Sum) -> Iterator[Sum]:
    """What a sum may be under `jax.vmap`: one of x as it is, or with the mapped axis in front."""
    for axis in range(len(over.shape)):
        if axis not in over.axes:
            order = [axis, *(k for k in range(len(over.shape)) if k != axis)]
            axes = tuple(order.index(k) for k in over.axes)
            yield Sum(axes, tuple(over.shape[k] for k in order), axis)
        if 0 not in over.axes:
            yield over._replace(mapped=axis)


class _Finder:
    """Looks for composites in one program; holds what is traced meanwhile."""

    def __init__(self, program: Program, calls: Recognizer):
        self.program, self.calls = program, calls
        self.makers = _makers(program)
        self.constants: dict[int, Any] = {}
        self.free = 1 + max([0, *self.makers, *program.inputs, *program.constants])
        self.reference = functools.cache(self._reference)

    def ends(self) -> dict[int, set[str]]:
        """Results that a few steps lead to from key primitives, with the names of those."""
        keys = {composite.key for composite in COMPOSITES}
        near: dict[int, dict[str, int]] = {}  # slot -> key primitive before it -> how many steps ago
        for equation in self.program.equations:
            steps = {equation.name: 0} if equation.name in keys else {}
            for slot in equation.inputs:
                steps |= {key: 1 + n for key, n in near.get(slot, {}).items() if n < _AFTER and key not in steps}
            near |= dict.fromkeys(equation.outputs, steps)
        return {slot: set(steps) for slot, steps in near.items() if steps}

    def standing(self, end: int, keys: set[str]) -> list[Equation] | None:
        """What stands for the equation that makes a slot, if that is the result of a composite."""
        sums = self._sums(end)
        for composite in COMPOSITES:
            if composite.key not in keys or not self._resembles(end, composite):
                continue
            for over in sums if composite.reduces else [None]:
                operands = _operands(composite, self.makers[end].shapes[0], over)
                inputs = self._match(end, self.reference(composite, operands, over), same_step)
                numbers = zip(("", *composite.operands), inputs or (), strict=False)
                if inputs and all(slot in self.program.constants for name, slot in numbers if name == "eps"):
                    standing = composite.standing if over is None else in_front(composite.standing, over)
                    return self._spliced(end, inputs, trace(standing, operands, self.calls)[0])
        return None

    def _resembles(self, end: int, composite: Composite) -> bool:
        """Whether the primitives are the reference's, but for layout and types. Only then it is traced for those."""
        return self._match(end, _example(composite, self.calls, jnp.result_type(float)), same_name) is not None

    def _sums(self, end: int) -> list[Sum]:
        """The two kinds of sums that are nearest before a slot, as they stand and as `jax.vmap` may have made them."""
        found: dict[Sum, None] = {}
        level = [end]
        for _ in range(_BEFORE):
            makers = [self.makers[slot] for slot in dict.fromkeys(level) if slot in self.makers]
            for equation in makers:
                before = self.makers.get(equation.inputs[0]) if equation.name == "reduce_sum" else None
                if before is not None:
                    axes = tuple(int(axis) for axis in equation.params["axes"])
                    found[Sum(axes, before.shapes[before.outputs.index(equation.inputs[0])].shape)] = None
            level = [slot for equation in makers for slot in equation.inputs]
        plain = list(found)[:2]
        return plain + list(dict.fromkeys(made for over in plain for made in _mapped_sums(over)))

    def _reference(self, composite: Composite, operands: Sequence[Any], over: Sum | None) -> Program | None:
        return _traced(composite.reference, operands, over, self.calls)

    def _match(self, end: int, reference: Program | None, alike: Callable[..., bool]) -> list[int] | None:
        """The slots that are a reference's inputs where its result is `end`; constants differ only if names do not."""
        if reference is None:
            return None
        known, makers = self.program.constants, _makers(reference)
        found: dict[int, int] = {}

        def same(mine: int, theirs: int) -> bool:
            if alike is same_name:
                mine, theirs = _content(mine, self.makers), _content(theirs, makers)
            if theirs in found:
                return found[theirs] == mine
            found[theirs] = mine
            if theirs in reference.inputs:
                return True
            a, b = self.makers.get(mine), makers.get(theirs)
            if b is None:
                return mine in known and (alike is same_name or same_value(known[mine], reference.constants[theirs]))
            return a is not None and alike(a, b) and all(map(same, a.inputs, b.inputs))

        whole = same(end, reference.outputs[0]) and all(slot in found for slot in reference.inputs)
        return [found[slot] for slot in reference.inputs] if whole else None

    def _spliced(self, end: int, inputs: Sequence[int], standing: Program) -> list[Equation]:
        """The equations of what stands for a composite, between its inputs and its result."""
        slots = dict(zip((*standing.inputs, *standing.outputs), (*inputs, end), strict=True))

        def renamed(theirs: Sequence[int]) -> tuple[int, ...]:
            for slot in theirs:
                if slot not in slots:
                    slots[slot] = self.free
                    self.free += 1
            return tuple(slots[slot] for slot in theirs)

        source = self.makers[end].source
        equations = [
            dataclasses.replace(e, inputs=renamed(e.inputs), outputs=renamed(e.outputs), source=source)
            for e in standing.equations
        ]
        self.constants |= {slots[slot]: value for slot, value in standing.constants.items() if slot in slots}
        return equations
