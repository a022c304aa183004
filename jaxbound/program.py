"""Functions as flat programs: lists of first-order equations over numbered slots.

`Program.specialize` evaluates what does not depend on a set and does away with branches, `cone` cuts out what an output
depends on, `walk` interprets. `jaxbound.tracing` makes programs.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
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
      types, shapes: shape and dtype of every input and of every output.
      apply: the operation itself, values -> list of values.
      source: the user's file and line, "file.py:12".
    """

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    params: Mapping[str, Any]
    types: tuple[jax.ShapeDtypeStruct, ...]
    shapes: tuple[jax.ShapeDtypeStruct, ...]
    apply: Callable[..., list[Value]]
    source: str

    def open_outputs(self, mask: Sequence[bool]) -> Sequence[bool]:
        """Which results depend on the operands marked in the mask."""
        if self.name in LOOPS and any(mask):
            return LOOPS[self.name].of(self).open_outputs(mask)
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
        return _completed(self.body, mask, range(self.num_consts, self.num_consts + self.num_carry))

    def open_outputs(self, mask: Sequence[bool]) -> tuple[bool, ...]:
        """Which results depend on the operands marked in the mask."""
        full = self.open_inputs(mask)
        marked = self.body.open_slots(full)
        slices = (slot in marked for slot in self.body.outputs[self.num_carry :])
        return (*full[self.num_consts :][: self.num_carry], *slices)


def _completed(body: "Program", mask: Sequence[bool], carries: range) -> tuple[bool, ...]:
    """The mask of a loop's inputs, completed by the carries that come to depend on a set in a later step."""
    flags = list(mask)
    for _ in range(len(carries) + 1):
        marked = body.open_slots(flags)
        for slot, k in zip(body.outputs, carries, strict=False):
            flags[k] |= slot in marked
    return tuple(flags)


@dataclasses.dataclass(frozen=True)
class While:
    """The parts of a while equation: operands are the predicate's constants, the body's, then initial carries.

    Attributes:
      num_predicate, num_body: how many constants of each.
      predicate: (its constants, carries) -> one boolean.
      body: (its constants, carries) -> carries.
    """

    num_predicate: int
    num_body: int
    predicate: "Program"
    body: "Program"

    @classmethod
    def of(cls, equation: Equation) -> "While":
        """The parts of a while equation."""
        return cls(*equation.params["counts"], *equation.params["programs"])

    def split(self, operands: Sequence[Value]) -> tuple[list[Value], list[Value], list[Value]]:
        """The predicate's constants, the body's, carries."""
        first, second = self.num_predicate, self.num_predicate + self.num_body
        return list(operands[:first]), list(operands[first:second]), list(operands[second:])

    def open_inputs(self, mask: Sequence[bool]) -> tuple[bool, ...]:
        """The mask, completed by the carries that come to depend on a set; all do if the number of steps does."""
        tests, consts, carries = self.split(mask)
        full = _completed(self.body, (*consts, *carries), range(len(consts), len(consts) + len(carries)))
        carries = full[self.num_body :]
        depends = self.predicate.outputs[0] in self.predicate.open_slots((*tests, *carries))
        return (*tests, *consts, *((True,) * len(carries) if depends else carries))

    def open_outputs(self, mask: Sequence[bool]) -> tuple[bool, ...]:
        """Which results depend on the operands marked in the mask."""
        return self.open_inputs(mask)[self.num_predicate + self.num_body :]

    def steps(self, operands: Sequence[Value | None]) -> int | None:
        """How often the body runs, if that follows from the operands that are known (the others are None)."""
        flags = self.open_inputs([x is None for x in operands])
        tests, consts, carries = self.split([None if flag else x for x, flag in zip(operands, flags, strict=True)])
        if self.predicate.outputs[0] in self.predicate.open_slots((*flags[: len(tests)], *flags[-len(carries) :])):
            return None

        def goes_on(state: tuple[Value, list[Value]]) -> Value:
            return self.predicate.known_outputs([*tests, *state[1]])[0]

        def step(state: tuple[Value, list[Value]]) -> tuple[Value, list[Value]]:
            count, carries = state
            results = self.body.known_outputs([*consts, *carries])
            return count + 1, [None if x is None else y for x, y in zip(carries, results, strict=True)]

        with jax.ensure_compile_time_eval():  # the values are known, though what surrounds this is being traced
            return int(jax.lax.while_loop(goes_on, step, (0, carries))[0])


LOOPS: Mapping[str, Any] = {"scan": Scan, "while": While}


@dataclasses.dataclass(frozen=True)
class Program:
    """A flat function.

    Attributes:
      equations: in order of evaluation.
      constants: slot -> value, for literals and whatever was computed before.
      inputs: slots of the arguments that are still open.
      outputs: slots of the results.
      copies: slot of a constant -> the equation that made it by copying a smaller one along new axes.
      infinite: slots of constants made of a number that is written as infinite, as masks for a softmax are.
    """

    equations: tuple[Equation, ...]
    constants: Mapping[int, Value]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    copies: Mapping[int, Equation] = dataclasses.field(default_factory=dict)
    infinite: frozenset[int] = frozenset()

    def specialize(self, values: Sequence[Value | None]) -> "Program":
        """Fixes the inputs whose value is not None and evaluates every equation that needs only those."""
        known = dict(self.constants)
        known |= {slot: value for slot, value in zip(self.inputs, values, strict=True) if value is not None}
        rest, copies, pending = [], dict(self.copies), collections.deque(self.equations)
        infinite = set(self.infinite) | {slot for slot, value in self.constants.items() if _is_infinite(value)}
        while pending:
            equation = pending.popleft()
            if all(slot in known for slot in equation.inputs):
                results = _evaluated(equation, [known[slot] for slot in equation.inputs])
                known |= dict(zip(equation.outputs, results, strict=True))
                if equation.name == "broadcast_in_dim":
                    copies[equation.outputs[0]] = equation
                if infinite.intersection(equation.inputs):
                    infinite.update(equation.outputs)
            elif equation.name == "cond":
                equations, constants = _without_branches(equation, known.get(equation.inputs[0]))
                pending.extendleft(reversed(equations))
                known |= constants
            else:
                rest.append(_counted(equation, known) if equation.name == "while" else equation)
        still_open = tuple(slot for slot in self.inputs if slot not in known)
        return Program(tuple(rest), known, still_open, self.outputs, copies, frozenset(infinite))

    def known_outputs(self, values: Sequence[Value | None]) -> list[Value | None]:
        """The results that follow from the inputs whose value is not None; None for the others."""
        known = self.specialize(values).constants
        return [known.get(slot) for slot in self.outputs]

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
        return dataclasses.replace(self, equations=tuple(reversed(kept)), inputs=inputs, outputs=outputs)

    def among(self, results: Mapping[int, Any]) -> dict[int, Any]:
        """What is known of its equations, by the slots of their first results."""
        firsts = (equation.outputs[0] for equation in self.equations)
        return {slot: results[slot] for slot in firsts if slot in results}

    def shapes(self) -> dict[int, jax.ShapeDtypeStruct]:
        """Shapes and types of its equations' results, by slot."""
        return {slot: shape for eq in self.equations for slot, shape in zip(eq.outputs, eq.shapes, strict=True)}

    def open_slots(self, mask: Sequence[bool] | None = None) -> frozenset[int]:
        """The slots that depend on the inputs (on those marked in the mask)."""
        flags = mask or [True] * len(self.inputs)
        marked = {slot for slot, flag in zip(self.inputs, flags, strict=True) if flag}
        for equation in self.equations:
            flags = equation.open_outputs([slot in marked for slot in equation.inputs])
            marked |= {slot for slot, flag in zip(equation.outputs, flags, strict=True) if flag}
        return frozenset(marked)


# Branches and loops, as they are once what is known of them is known.


def _is_concrete(value: Value | None) -> bool:
    return value is not None and not isinstance(value, Tracer)


def _is_infinite(value: Value) -> bool:
    is_number = _is_concrete(value) and np.ndim(value) == 0
    return is_number and jnp.issubdtype(getattr(value, "dtype", type(value)), jnp.floating) and bool(np.isinf(value))


def _fits(number: Value, dtype: Any) -> bool:
    """Whether an integer type holds a number; how others are converted differs between compilers."""
    return bool(jnp.iinfo(dtype).min < number < jnp.iinfo(dtype).max)


def _evaluated(equation: Equation, operands: Sequence[Value]) -> list[Value]:
    """The results of an equation; a number that is only converted stays known while the program is traced."""
    if equation.name == "convert_element_type" and _is_concrete(operands[0]) and np.ndim(operands[0]) == 0:
        dtype = equation.shapes[0].dtype
        if not jnp.issubdtype(dtype, jnp.integer) or _fits(operands[0], dtype):
            return [np.asarray(operands[0], dtype)]
    return equation.apply(*operands)


def _without_branches(equation: Equation, index: Value) -> tuple[list[Equation], dict[int, Value]]:
    """The equations of the branch that a `cond` takes; of all, and a selection, where that is not known by now.

    Returns:
      The equations, whose results are those of the `cond`, and the values of the branches' constants.
    """
    branches: Sequence[Program] = equation.params["programs"]
    if _is_concrete(index):
        branches = branches[int(index) :][:1]
    equations: list[Equation] = []
    constants: dict[int, Value] = {}
    found = []
    for branch in branches:
        outer = dict(zip(branch.inputs, equation.inputs[1:], strict=True))
        for each in branch.equations:
            equations.append(dataclasses.replace(each, inputs=tuple(outer.get(slot, slot) for slot in each.inputs)))
        constants |= branch.constants
        found.append([outer.get(slot, slot) for slot in branch.outputs])
    for slot, shape, *cases in zip(equation.outputs, equation.shapes, *found, strict=True):
        if len(cases) == 1:
            parts, types = {"name": "copy", "apply": lambda x: [x]}, (shape,)
        else:
            parts, types = {"name": "select_n", "apply": lambda *x: [jax.lax.select_n(*x)]}, ()
            cases, types = [equation.inputs[0], *cases], (equation.types[0], *[shape] * len(cases))
        equations.append(
            dataclasses.replace(
                equation, inputs=tuple(cases), outputs=(slot,), types=types, shapes=(shape,), params={}, **parts
            )
        )
    return equations, constants


def _counted(equation: Equation, known: Mapping[int, Value]) -> Equation:
    """A `while` as a loop of a fixed number of steps, if that is known by now."""
    loop = While.of(equation)
    values = [known.get(slot) for slot in equation.inputs]
    values = [x if _is_concrete(x) else None for x in values]
    tests, rest = values[: loop.num_predicate], slice(loop.num_predicate, None)
    steps = None if any(x is None for x in tests) else loop.steps(values)
    if steps is None:
        return equation
    options = {"length": steps, "reverse": False, "unroll": 1}
    return dataclasses.replace(
        equation,
        name="scan",
        inputs=equation.inputs[rest],
        types=equation.types[rest],
        params={"counts": (loop.num_body, len(equation.outputs)), "body": loop.body, **options},
        apply=lambda *operands: equation.apply(*tests, *operands),
    )


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
