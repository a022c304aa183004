"""Functions as flat programs: lists of first-order equations over numbered slots.

`Program.specialize` evaluates what does not depend on a set, `cone` cuts out what an output depends on, `walk`
interprets. `jaxbound.tracing` makes programs.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

Value = Any


@dataclasses.dataclass(frozen=True)
class Equation:
    """One step of a program: outputs = primitive(inputs).

    Attributes:
      name: the primitive's name, or the name of a recognised call.
      inputs, outputs: slots.
      params: the primitive's parameters; for a recognised call what the recogniser returned.
      shapes: shape and dtype of every output.
      apply: the operation itself, values -> list of values.
      source: the user's file and line, "file.py:12".
    """

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    params: Mapping[str, Any]
    shapes: tuple[jax.ShapeDtypeStruct, ...]
    apply: Callable[..., list[Value]]
    source: str

    def open_outputs(self, mask: Sequence[bool]) -> Sequence[bool]:
        """Which results depend on the operands marked in the mask."""
        if self.name == "scan" and any(mask):
            return Scan.of(self).open_outputs(mask)
        return [any(mask)] * len(self.outputs)


@dataclasses.dataclass(frozen=True)
class Scan:
    """The parts of a scan equation: operands are constants, then initial carries, then what is scanned over.

    Attributes:
      num_consts, num_carry: how many of each.
      body: (constants, carries, slices) -> (carries, slices).
      options: length, reverse and unroll for `jax.lax.scan`.
    """

    num_consts: int
    num_carry: int
    body: "Program"
    options: Mapping[str, Any]

    @classmethod
    def of(cls, equation: Equation) -> "Scan":
        """The parts of a scan equation."""
        consts, carries = equation.params["counts"]
        options = {name: equation.params[name] for name in ("length", "reverse", "unroll")}
        return cls(consts, carries, equation.params["body"], options)

    def split(self, operands: Sequence[Value]) -> tuple[list[Value], list[Value], list[Value]]:
        """Constants, carries, slices."""
        first, second = self.num_consts, self.num_consts + self.num_carry
        return list(operands[:first]), list(operands[first:second]), list(operands[second:])

    def open_inputs(self, mask: Sequence[bool]) -> tuple[bool, ...]:
        """The mask, completed by the carries that come to depend on a set in a later step."""
        mask = list(mask)
        for _ in range(self.num_carry + 1):
            marked = self.body.open_slots(mask)
            for k in range(self.num_carry):
                mask[self.num_consts + k] |= self.body.outputs[k] in marked
        return tuple(mask)

    def open_outputs(self, mask: Sequence[bool]) -> tuple[bool, ...]:
        """Which results depend on the operands marked in the mask."""
        full = self.open_inputs(mask)
        marked = self.body.open_slots(full)
        slices = (slot in marked for slot in self.body.outputs[self.num_carry :])
        return (*full[self.num_consts :][: self.num_carry], *slices)


@dataclasses.dataclass(frozen=True)
class Program:
    """A flat function.

    Attributes:
      equations: in order of evaluation.
      constants: slot -> value, for literals and whatever was computed before.
      inputs: slots of the arguments that are still open.
      outputs: slots of the results.
      copies: slot of a constant -> the equation that made it by copying a smaller one along new axes.
    """

    equations: tuple[Equation, ...]
    constants: Mapping[int, Value]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    copies: Mapping[int, Equation] = dataclasses.field(default_factory=dict)

    def specialize(self, values: Sequence[Value | None]) -> "Program":
        """Fixes the inputs whose value is not None and evaluates every equation that needs only those."""
        known = dict(self.constants)
        known |= {slot: value for slot, value in zip(self.inputs, values, strict=True) if value is not None}
        rest, copies = [], dict(self.copies)
        for equation in self.equations:
            if all(slot in known for slot in equation.inputs):
                results = equation.apply(*(known[slot] for slot in equation.inputs))
                known |= dict(zip(equation.outputs, results, strict=True))
                if equation.name == "broadcast_in_dim":
                    copies[equation.outputs[0]] = equation
            else:
                rest.append(equation)
        still_open = tuple(slot for slot in self.inputs if slot not in known)
        return Program(tuple(rest), known, still_open, self.outputs, copies)

    def cone(self, outputs: Iterable[int], cut: Iterable[int] = ()) -> "Program":
        """The part that the given outputs depend on; the slots in `cut` become inputs."""
        stops = set(cut) | set(self.inputs)
        outputs = tuple(outputs)
        needed, kept = set(outputs), []
        for equation in reversed(self.equations):
            if any(slot in needed and slot not in stops for slot in equation.outputs):
                kept.append(equation)
                needed |= set(equation.inputs)
        inputs = tuple(slot for slot in sorted(stops) if slot in needed and slot not in self.constants)
        return Program(tuple(reversed(kept)), self.constants, inputs, outputs, self.copies)

    def open_slots(self, mask: Sequence[bool] | None = None) -> frozenset[int]:
        """The slots that depend on the inputs (on those marked in the mask)."""
        flags = mask or [True] * len(self.inputs)
        marked = {slot for slot, flag in zip(self.inputs, flags, strict=True) if flag}
        for equation in self.equations:
            flags = equation.open_outputs([slot in marked for slot in equation.inputs])
            marked |= {slot for slot, flag in zip(equation.outputs, flags, strict=True) if flag}
        return frozenset(marked)


Handler = Callable[[Equation, list[Value], tuple[bool, ...]], Sequence[Value]]


def walk(program: Program, inputs: Sequence[Value], handler: Handler) -> Mapping[int, Value]:
    """Interprets a specialised program: every equation's results are `handler(equation, operands, which_are_open)`.

    Returns:
      The value of every slot; those in `program.open_slots()` depend on the inputs.
    """
    values = dict(program.constants) | dict(zip(program.inputs, inputs, strict=True))
    is_open = program.open_slots()
    for equation in program.equations:
        operands = [values[slot] for slot in equation.inputs]
        mask = tuple(slot in is_open for slot in equation.inputs)
        # What only depends on a loop's constant results is left over from `specialize`.
        results = handler(equation, operands, mask) if any(mask) else equation.apply(*operands)
        values |= dict(zip(equation.outputs, results, strict=True))
    return values


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
    """Whether two equations do the same to their operands."""
    return len(a.inputs) == len(b.inputs) and a.shapes == b.shapes and _form(a) == _form(b)


def same_value(a: Value, b: Value) -> bool:
    """Whether two constants are known to be the same."""
    if any(isinstance(x, Tracer) for x in (a, b)):
        return a is b
    a, b = np.asarray(a), np.asarray(b)
    return a.shape == b.shape and bool(np.all((a == b) | ((a != a) & (b != b))))


def same_name(a: Equation, b: Equation) -> bool:
    """Whether two equations do the same kind of thing, whatever the shapes."""
    names = ["reshape" if name == "broadcast_in_dim" else name for name in (_form(a)[0], _form(b)[0])]
    return len(a.inputs) == len(b.inputs) and names[0] == names[1]


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
