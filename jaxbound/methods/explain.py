"""Where bounds grow: the interval walk as a table for people, a row for each operation."""

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.core import Tracer

from jaxbound import relax
from jaxbound.methods.interval import propagate
from jaxbound.methods.problem import is_valid, prepare, rule_of
from jaxbound.program import LOOPS, Equation, Program
from jaxbound.rules.registry import Linear, Nonlinear
from jaxbound.rules.relaxation import Relaxation, open_elements
from jaxbound.sets import Array, Interval, Set


class Operation(NamedTuple):
    """An operation as interval propagation meets it, in plain numbers.

    Attributes:
      layer: of a nonlinear operation its key in `layer_bounds`, "index operation file.py:line": of two operands, the
        first one's; of a loop, what its operations' keys begin with. "" for what has none: a set, what is linear.
      operation: its name in JAX, such as "dot_general", or that of an activation; "input" for a set.
      source: the user's file and line, with its folder; "" for a set.
      shape: of the result.
      mean_width: upper - lower, the mean over the elements; infinite where one of them is.
      largest_width: the largest of them.
      growth: the mean width over that of the operand, the widest of several; None for a set, and where it is 0 / 0 or
        infinity over infinity.
      unstable: the share of elements, in [0, 1], that no single line describes on their intervals: of a ReLU those
        whose interval crosses the bend. None for what is linear, or has no lines for each element.
      unbounded: how many elements have an end that is not finite, or ends that are crossed; their width is infinite.
    """

    layer: str
    operation: str
    source: str
    shape: tuple[int, ...]
    mean_width: float
    largest_width: float
    growth: float | None
    unstable: float | None
    unbounded: int

    @property
    def place(self) -> str:
        """The operation and the user's file and line."""
        return f"{self.operation} {os.path.basename(self.source)}".rstrip()


class Explanation(NamedTuple):
    """A function's operations in the order of evaluation; its text is their table.

    Attributes:
      nodes: the sets, then what depends on them.
    """

    nodes: tuple[Operation, ...]

    @property
    def steepest(self) -> Operation | None:
        """The operation whose result is wider than its operand by the largest factor; None where nothing is known."""
        grown = [(node.growth, node) for node in self.nodes if node.growth is not None]
        return max(grown, key=lambda pair: pair[0], default=(0.0, None))[1]

    @property
    def overflow(self) -> Operation | None:
        """The first operation with infinite bounds, or None."""
        return next((node for node in self.nodes if node.unbounded), None)

    def __str__(self) -> str:
        """The table, and below it where the width grows most and where it becomes infinite."""
        head = ("layer", "operation", "shape", "mean width", "largest", "growth", "unstable", "unbounded", "source")
        lines = [head, *map(_cells, self.nodes)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        aligned = [
            "  ".join(
                cell.rjust(width) if 3 <= k < 8 else cell.ljust(width)
                for k, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        ]
        return "\n".join([*aligned, *self._remarks()])

    def _remarks(self) -> Iterator[str]:
        if (node := self.steepest) is not None:
            yield f"The mean width grows most at {node.place}: {node.growth:.4g} times."
        if (node := self.overflow) is not None:
            size = math.prod(node.shape)
            yield f"Bounds are infinite from {node.place} on: there for {node.unbounded} of {size} elements."


def explain(fn: Callable) -> Callable:
    """Turns a function into a table of how wide interval bounds are after each of its operations.

    For bounds that explode: it tells which line of the code widens them most, how many ReLUs are unstable, and where
    numbers stop being finite. What only moves elements, or adds a constant to them (a reshape, a bias), keeps all
    widths and has no row; a loop (`jax.lax.scan`) has a row for each of its results.

    Args:
      fn: a JAX function of one example, as for `ibp`.

    Returns:
      `table(*args, **kwargs)`, a function of the arguments of `fn` that returns an `Explanation`: `print` shows it,
      `nodes` are its rows. It has numbers, so it cannot be called under `jax.jit` or `jax.vmap`.

    Raises:
      UnsupportedError, ValueError: as for `ibp`.
      TypeError: by the returned function, for sets that are traced.

    Example:
      >>> weights = jnp.array([[3.0, -5.0], [2.0, 6.0]])
      >>> found = jaxbound.explain(lambda x: jax.nn.relu(weights @ x))(jaxbound.linf_ball(jnp.array([0.5, 0.5]), 0.25))
      >>> [(node.operation, node.mean_width, node.growth, node.unstable) for node in found.nodes[1:]]
      [('dot_general', 4.0, 8.0, None), ('max', 2.5, 0.625, 0.5)]
      >>> found.steepest.operation
      'dot_general'
    """

    @functools.wraps(fn)
    def table(*args: Any, **kwargs: Any) -> Explanation:
        problem = prepare(fn, args, kwargs)
        if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((problem.sets, problem.program.constants))):
            raise TypeError(
                "explain shows numbers, of which there are none inside jax.jit, jax.vmap or jax.grad: call it outside, "
                "with the set of one example"
            )
        return Explanation(tuple(_nodes(problem.program, _walked(problem.program, problem.sets))))

    return table


class _Widths(NamedTuple):
    """What is shown of an array's widths."""

    shape: tuple[int, ...]
    mean: float
    largest: float
    unbounded: int

    @classmethod
    def of(cls, box: Interval, valid: Array) -> "_Widths":
        """In double precision, where no difference and no sum of finite float32 numbers overflows."""
        lower, upper = (np.asarray(end, np.float64) for end in box)
        with np.errstate(invalid="ignore"):
            widths = np.where(valid, np.maximum(upper - lower, 0), np.inf)
        mean = float(widths.mean()) if widths.size else 0.0
        return cls(widths.shape, mean, float(widths.max(initial=0)), int(np.isinf(widths).sum()))


class _Walk(NamedTuple):
    """The interval walk: widths by slot, relaxations and the labels of `layer_bounds` by a first result's slot."""

    widths: Mapping[int, _Widths]
    relaxations: Mapping[int, Any]
    labels: Mapping[int, str]


def _walked(program: Program, sets: Sequence[Set]) -> _Walk:
    # Compiled as a whole, with its arrays as arguments: operation by operation it takes several times longer.
    arrays = {slot: value for slot, value in program.constants.items() if getattr(value, "ndim", 0)}

    labels: dict[int, str] = {}

    @jax.jit
    def walk(sets: Sequence[Set], arrays: Mapping[int, Array]) -> Any:
        closed = dataclasses.replace(program, constants={**program.constants, **arrays})
        found = propagate(closed, sets, relax.adaptive)
        slots = [slot for slot in found.values if slot in program.open_slots()]
        boxes = dict(zip(slots, found.boxes(slots), strict=True))
        labels.update(found.labels)  # text, known as soon as the walk is traced
        return {slot: (box, is_valid(*box)) for slot, box in boxes.items()}, found.relaxations

    boxes, relaxations = walk(sets, arrays)
    return _Walk({slot: _Widths.of(*pair) for slot, pair in boxes.items()}, relaxations, labels)


def _nodes(program: Program, found: _Walk) -> Iterator[Operation]:
    is_open = program.open_slots()
    for slot in program.inputs:
        shape, mean, largest, unbounded = found.widths[slot]
        yield Operation("", "input", "", shape, mean, largest, None, None, unbounded)
    for equation in program.equations:
        mask = [slot in is_open for slot in equation.inputs]
        if not any(mask):
            continue
        rule = None if equation.name in LOOPS else rule_of(equation, mask)
        if isinstance(rule, Linear) and rule.carries and sum(mask) == 1:
            continue
        layer = found.labels.get(equation.outputs[0], "")
        before = max(found.widths[slot].mean for slot, flag in zip(equation.inputs, mask, strict=True) if flag)
        unstable = _unstable(found, equation) if rule is None or isinstance(rule, Nonlinear) else None
        for slot in (slot for slot in equation.outputs if slot in is_open):
            shape, mean, largest, unbounded = found.widths[slot]
            growth, name = _ratio(mean, before), equation.name
            yield Operation(layer, name, equation.source, shape, mean, largest, growth, unstable, unbounded)


def _ratio(after: float, before: float) -> float | None:
    if before == 0:
        return None if after == 0 else math.inf
    return None if math.isinf(before) else after / before


def _unstable(found: _Walk, equation: Equation) -> float | None:
    """The share of elements whose two lines differ, in a loop over all of its operations."""
    lines = jax.tree.leaves(found.relaxations[equation.outputs[0]], is_leaf=lambda leaf: isinstance(leaf, Relaxation))
    marks = [open_elements(relaxation) for relaxation in lines]
    if not marks or any(mark is None for mark in marks):
        return None
    return float(np.mean(np.concatenate([np.ravel(mark) for mark in marks if mark is not None])))


def _cells(node: Operation) -> tuple[str, ...]:
    return (
        node.layer.partition(" ")[0],
        node.operation,
        str(list(node.shape)),
        f"{node.mean_width:.4g}",
        f"{node.largest_width:.4g}",
        "-" if node.growth is None else f"{node.growth:.4g}",
        "-" if node.unstable is None else f"{node.unstable:.1%}",
        str(node.unbounded),
        os.path.basename(node.source),
    )
