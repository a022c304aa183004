"""Functions become programs: the only reader of jaxpr internals and of what differs between JAX releases.

`trace` inlines every call; loops and recognised activations stay whole.
"""

import dataclasses
import itertools
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.extend import core

from jaxbound.program import Equation, Program, Value

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
    return _Inliner(recognize, itertools.count()).run(closed)


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


# Of two operands that are the same: no product of two independent factors, and what only NaN is.
_OF_ITSELF: Mapping[str, tuple[str, Callable]] = {
    "mul": ("square", lambda x: [x * x]),
    "ne": ("is_nan", lambda x: [x != x]),
}


class _Inliner:
    """Builds one Program; holds the slot counter while it does."""

    def __init__(self, recognize: Recognizer | None, slots: Iterator[int]):
        self.recognize = recognize
        self.slots = slots
        self.equations: list[Equation] = []
        self.constants: dict[int, Value] = {}
        self.converted: dict[tuple[Any, ...], Sequence[int]] = {}  # (slot, *params) -> results: equal ones are one

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
        if name == "call_hi_primitive":
            return self.expanded(eqn.params["_prim"], inputs, source)
        if name in _OF_ITSELF and inputs[0] == inputs[1]:
            name, fn = _OF_ITSELF[name]
            return self.append(eqn, inputs[:1], source, name=name, params={}, fn=fn)
        if name == "broadcast_in_dim" and eqn.invars[0].aval.size == eqn.outvars[0].aval.size:  # copies nothing
            name = "expand_dims"
        params = eqn.params
        if name == "convert_element_type":
            key = inputs[0], *params.values()
            if key not in self.converted:
                self.converted[key] = self.append(eqn, inputs, source, name=name, params=params, fn=_binder(eqn))
            return self.converted[key]
        if name in _PARTS:
            params = {**params, **_PARTS[name](eqn, self.part)}
        return self.append(eqn, inputs, source, name=name, params=params, fn=_binder(eqn))

    def expanded(self, primitive: Any, inputs: list[int], source: str) -> Sequence[int]:
        """A primitive that says by other ones what it does, as some of JAX 0.12 do; all of it is of its own line."""

        def expand(*operands: Value) -> Any:
            return primitive.expand(*jax.tree.unflatten(primitive.in_tree, operands))

        first = len(self.equations)
        outputs = self.inline(jax.make_jaxpr(expand)(*primitive.in_avals_flat), inputs, source)
        self.equations[first:] = [dataclasses.replace(equation, source=source) for equation in self.equations[first:]]
        return outputs

    def part(self, closed: core.ClosedJaxpr) -> Program:
        """A branch or a loop's body, with slots of its own."""
        return _Inliner(self.recognize, self.slots).run(closed)

    def recognized(self, name: str | None, inner: Any, operands: Sequence[Any]) -> Mapping[str, Any] | None:
        if self.recognize is None or name is None:
            return None
        return self.recognize(name, inner, [_shape(x.aval) for x in operands])

    def append(self, eqn: Any, inputs: Any, source: str, *, name: str, params: Any, fn: Callable) -> Sequence[int]:
        outputs = tuple(next(self.slots) for _ in eqn.outvars)
        types, shapes = (tuple(_shape(x.aval) for x in group) for group in (eqn.invars[: len(inputs)], eqn.outvars))
        self.equations.append(Equation(name, tuple(inputs), outputs, params, types, shapes, fn, source))
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


# The programs inside an equation, and how its operands are divided among them.
_PARTS: Mapping[str, Callable[[Any, Callable[[Any], Program]], Mapping[str, Any]]] = {
    "scan": lambda eqn, part: {"body": part(eqn.params["jaxpr"]), "counts": _scan_counts(eqn)},
    "cond": lambda eqn, part: {"programs": [part(branch) for branch in eqn.params["branches"]]},
    "while": lambda eqn, part: {
        "programs": [part(eqn.params[name]) for name in ("cond_jaxpr", "body_jaxpr")],
        "counts": [eqn.params[name] for name in ("cond_nconsts", "body_nconsts")],
    },
}


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
