"""Functions as flat programs: the only reader of jaxpr internals and of what differs between JAX releases.

`trace` turns a function into a `Program`, a list of first-order equations over numbered slots with every call inlined
(loops and recognised activations stay whole). `Program.specialize` evaluates what does not depend on a set, `cone`
cuts out what an output depends on, `walk` interprets.
"""

import dataclasses
import itertools
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jax.extend import core

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


Recognizer = Callable[[str, "Program", Sequence[jax.ShapeDtypeStruct]], Mapping[str, Any] | None]


def trace(fn: Callable, args: Sequence[Value], recognize: Recognizer | None = None) -> tuple[Program, Any]:
    """The program of a function of arrays, and the shapes of its output.

    Args:
      fn: a function of `len(args)` arrays.
      args: arrays (their values do not matter).
      recognize: decides which named calls stay whole. Given a call's name, its inner program and the shapes of its
        operands, it returns what becomes the equation's `params`, or None to inline the call.
    """
    closed, shape = jax.make_jaxpr(fn, return_shape=True)(*args)
    return flatten(closed, recognize), shape


def flatten(closed: core.ClosedJaxpr, recognize: Recognizer | None = None) -> Program:
    """Inlines a closed jaxpr into a Program."""
    return _Inliner(recognize).run(closed)


def same_program(first: Program, second: Program) -> bool:
    """Whether two programs are the same but for the numbering of their slots."""
    if len(first.equations) != len(second.equations) or len(first.inputs) != len(second.inputs):
        return False
    renamed: dict[int, int] = dict(zip(second.inputs, first.inputs, strict=True))

    def matches(mine: int, theirs: int) -> bool:
        if mine in first.constants and theirs in second.constants:
            return _same_value(first.constants[mine], second.constants[theirs])
        return renamed.get(theirs) == mine

    for a, b in zip(first.equations, second.equations, strict=True):
        same = a.name == b.name and len(a.inputs) == len(b.inputs) and a.shapes == b.shapes
        same = same and _comparable(a.params) == _comparable(b.params)
        if not (same and all(map(matches, a.inputs, b.inputs))):
            return False
        renamed |= dict(zip(b.outputs, a.outputs, strict=True))
    return all(map(matches, first.outputs, second.outputs))


def _same_value(a: Value, b: Value) -> bool:
    if any(isinstance(x, Tracer) for x in (a, b)):
        return a is b
    return np.shape(a) == np.shape(b) and bool(np.all(np.asarray(a) == np.asarray(b)))


def _comparable(params: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in params.items()}


# Where each call primitive keeps the program that it calls.
_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "checkpoint": "jaxpr",
    "remat": "jaxpr",
    "remat2": "jaxpr",
    "custom_vmap_call": "call",
}


class _Inliner:
    """Builds one Program; holds the slot counter while it does."""

    def __init__(self, recognize: Recognizer | None):
        self.recognize = recognize
        self.slots = itertools.count()
        self.equations: list[Equation] = []
        self.constants: dict[int, Value] = {}

    def run(self, closed: core.ClosedJaxpr) -> Program:
        inputs = tuple(next(self.slots) for _ in _open(closed).invars)
        outputs = self.inline(closed, inputs, "")
        return Program(tuple(self.equations), self.constants, inputs, tuple(outputs))

    def constant(self, value: Value) -> int:
        slot = next(self.slots)
        self.constants[slot] = value
        return slot

    def inline(self, closed: Any, inputs: Sequence[int], caller: str) -> list[int]:
        jaxpr = _open(closed)
        slots: dict[Any, int] = dict(zip(jaxpr.invars, inputs, strict=True))
        slots |= {var: self.constant(value) for var, value in zip(jaxpr.constvars, _consts(closed), strict=True)}

        def read(atom: Any) -> int:
            return self.constant(atom.val) if isinstance(atom, core.Literal) else slots[atom]

        for eqn in jaxpr.eqns:
            operands = [read(atom) for atom in eqn.invars]
            slots |= dict(zip(eqn.outvars, self.step(eqn, operands, caller), strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def step(self, eqn: Any, inputs: list[int], caller: str) -> Sequence[int]:
        name, source = eqn.primitive.name, user_line(eqn) or caller
        if name in _CALLS:
            inner = eqn.params[_CALLS[name]]
            params = self.recognized(eqn.params.get("name"), inner, eqn.invars)
            if params is None:
                return self.inline(inner, inputs, source)
            return self.append(eqn, inputs, source, name=eqn.params["name"], params=params, fn=core.jaxpr_as_fun(inner))
        if name == "mul" and inputs[0] == inputs[1]:  # no product of two independent factors
            return self.append(eqn, inputs[:1], source, name="square", params={}, fn=lambda x: [x * x])
        if name == "broadcast_in_dim" and eqn.invars[0].aval.size == eqn.outvars[0].aval.size:  # copies nothing
            name = "expand_dims"
        params = eqn.params
        if name == "scan":
            params = {**params, "body": flatten(params["jaxpr"], self.recognize), "counts": _scan_counts(eqn)}
        return self.append(eqn, inputs, source, name=name, params=params, fn=_binder(eqn))

    def recognized(self, name: str | None, inner: Any, operands: Sequence[Any]) -> Mapping[str, Any] | None:
        if self.recognize is None or name is None:
            return None
        return self.recognize(name, inner, [_shape(x.aval) for x in operands])

    def append(self, eqn: Any, inputs: Any, source: str, *, name: str, params: Any, fn: Callable) -> Sequence[int]:
        outputs = tuple(next(self.slots) for _ in eqn.outvars)
        shapes = tuple(_shape(var.aval) for var in eqn.outvars)
        self.equations.append(Equation(name, tuple(inputs), outputs, params, shapes, fn, source))
        return outputs


def _binder(eqn: Any) -> Callable[..., list[Value]]:
    params = eqn.primitive.get_bind_params(eqn.params)
    functions, params = params if isinstance(params, tuple) else ((), params)  # a pair before JAX 0.9.2

    def apply(*operands: Value) -> list[Value]:
        results = eqn.primitive.bind(*functions, *operands, **params)
        return list(results) if eqn.primitive.multiple_results else [results]

    return apply


def _scan_counts(eqn: Any) -> tuple[int, int]:
    """How many constants and carries a scan has, by ranks: releases of JAX keep the counts in different places."""
    inner = eqn.params["jaxpr"]
    carries = sum(len(x.aval.shape) == len(y.shape) for x, y in zip(eqn.outvars, inner.out_avals, strict=True))
    scanned = sum(len(x.aval.shape) > len(y.shape) for x, y in zip(eqn.invars, inner.in_avals, strict=True))
    return len(eqn.invars) - carries - scanned, carries


def _shape(aval: Any) -> jax.ShapeDtypeStruct:
    weak = getattr(aval, "weak_type", False)
    return jax.ShapeDtypeStruct(getattr(aval, "shape", ()), getattr(aval, "dtype", None), weak_type=weak)


def _open(jaxpr: Any) -> Any:
    return getattr(jaxpr, "jaxpr", jaxpr)


def _consts(jaxpr: Any) -> Sequence[Value]:
    return getattr(jaxpr, "consts", ())


def mesh_axes(value: Value) -> frozenset[str]:
    """The axes of a mesh over which a value varies, inside `jax.shard_map`."""
    kind = jax.typeof(value)
    manual = getattr(kind, "manual_axis_type", None)  # since JAX 0.10
    return getattr(kind, "vma", frozenset()) if manual is None else manual.varying


def user_line(eqn: Any) -> str:
    """The innermost line of the user's own code behind an equation, "file.py:12", or "" if there is none."""
    traceback = eqn.source_info.traceback
    libraries = _library_folders()
    for frame in traceback.frames if traceback else ():
        if not frame.file_name.startswith(libraries):
            return f"{frame.file_name}:{frame.line_num}"
    return ""


def _library_folders() -> tuple[str, ...]:
    modules = [sys.modules.get(name) for name in ("jax", "jaxlib", "flax", "jaxbound", "contextlib", "functools")]
    files = [module.__file__ for module in modules if module is not None and module.__file__]
    return tuple(os.path.dirname(file) + os.sep if file.endswith("__init__.py") else file for file in files)
