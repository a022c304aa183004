"""Which units may share a backward row, read off a program: on convolutional networks, those that are far enough apart.

Call an element of an array on the way from the inputs to the units *read* by unit i if some path of equations leads
from it to i. Units that read nothing in common may share a row (see `shared`).

Who reads an element is found once, when a function is traced, with every weight taken to be one: a weight that happens
to be zero can only make a unit read less. For each element and each axis of the units' array, the first and the last
coordinate of the units that read it are found; where last - first < spacing at every element, units whose coordinates
differ by multiples of the spacing in each axis read nothing together. One spacing for each axis is so enough to cover
strides, paddings, dilations, residual sums, pools and reshapes alike.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxbound.methods.problem import rule_of, rule_params
from jaxbound.methods.replay import Nodes
from jaxbound.methods.shared import Sharing
from jaxbound.program import LOOPS, Equation, Program
from jaxbound.rules.registry import Coefficient, Enclosed, Nonlinear
from jaxbound.sets import Array, Interval, Set, element

_FEWEST_UNITS = 64  # fewer rows are not worth a look at the structure
_LONGEST_AXIS = 4096  # of units; each coordinate along it costs a pass over the structure
_PLANES_AT_ONCE = 16  # of the units with one coordinate along an axis
# Linear equations that return their operands, and mean nothing outside the trace that they came from.
_UNCHANGED = frozenset("stop_gradient sharding_constraint pvary pcast mesh_cast reshard device_put".split())


# (program, sets, relaxations) -> who shares a row; None for no one.
RowStrategy = Callable[[Program, Sequence[Set], Nodes], Sharing | None]


def shared_rows(program: Program, sets: Sequence[Set], relaxations: Nodes) -> Sharing | None:
    """Units that read nothing in common share a row, as those of a convolution do that are far enough apart.

    A strategy for the `rows` of `jaxbound.crown`. The bounds are those of `single_rows` up to rounding. Where nothing
    is gained or nothing is known, every unit has its own row: behind dense layers, on balls, inside loops, for indices
    that are computed when the program runs, and for fewer than 64 units.
    """
    shapes = program.shapes() | {
        slot: jax.typeof(element(region)) for slot, region in zip(program.inputs, sets, strict=True)
    }
    (output,) = program.outputs
    shape = shapes[output].shape
    if math.prod(shape) < _FEWEST_UNITS or max(shape) > _LONGEST_AXIS or _is_dense(program, shapes):
        return None
    if not all(isinstance(region, Interval) for region in sets):
        return None  # the worst point of a ball for one row is not that of each of its units
    pull = _puller(program, shapes, relaxations)
    if pull is None:
        return None
    with jax.ensure_compile_time_eval():
        hulls = _hulls(pull, shape)
    spacing = tuple(_width(hulls, axis) + 1 for axis in range(len(shape)))
    if spacing == shape:
        return None
    first = {slot: [_compact(x) for x in ends] for slot, (ends, _) in hulls.items()}
    return Sharing(shape, shapes[output].dtype, spacing, first)


def single_rows(program: Program, sets: Sequence[Set], relaxations: Nodes) -> None:
    """Every unit has a row of its own: a strategy for the `rows` of `jaxbound.crown`."""
    del program, sets, relaxations


def _is_dense(program: Program, shapes: Mapping[int, Any]) -> bool:
    """Whether the units come from a product with all elements of an array, which needs no analysis to be seen."""
    is_open, (slot,) = program.open_slots(), program.outputs
    for equation in reversed(program.equations):
        if slot in equation.outputs:
            operands = [k for k, operand in enumerate(equation.inputs) if operand in is_open]
            if len(operands) != 1:
                return False
            slot = equation.inputs[operands[0]]
            if equation.name == "dot_general":
                contracted = equation.params["dimension_numbers"][0][operands[0]]
                sizes = [shapes[slot].shape[axis] for axis in contracted]
                return math.prod(sizes) == math.prod(shapes[slot].shape)
    return False


def _compact(x: np.ndarray) -> np.ndarray:
    """The same with a size of 1 along every axis on which it is constant."""
    for axis in range(x.ndim):
        head = x.take([0], axis)
        x = head if (x == head).all() else x
    return x


Marks = dict[int, Array]
Ends = dict[int, tuple[list[np.ndarray], list[np.ndarray]]]


def _hulls(pull: Callable[[Array], Marks], shape: tuple[int, ...]) -> Ends:
    """First and last coordinate of the units that read each element: for each slot one array for each axis of units."""
    fetch = jax.jit(jax.vmap(pull))
    ends: Ends = {}
    # The two ends of each axis come first: where one element is read by both, all are dense and no others matter.
    _extend(ends, fetch, [(k, at) for k, n in enumerate(shape) for at in {0, n - 1}], shape)
    wide = [_width(ends, k) == n - 1 for k, n in enumerate(shape)]
    _extend(ends, fetch, [(k, at) for k, n in enumerate(shape) if not wide[k] for at in range(1, n - 1)], shape)
    return ends


def _width(ends: Ends, axis: int) -> int:
    return max(int(np.max(last[axis] - first[axis])) for first, last in ends.values())


def _extend(ends: Ends, fetch: Callable[[Array], Marks], planes: Sequence[tuple[int, int]], shape: Any) -> None:
    """Adds what the units of some planes, (axis, coordinate), read."""
    for start in range(0, len(planes), _PLANES_AT_ONCE):
        block = planes[start : start + _PLANES_AT_ONCE]
        marked = np.zeros((_PLANES_AT_ONCE, *shape), bool)
        for row, (axis, at) in zip(marked, block, strict=False):
            np.moveaxis(row, axis, 0)[at] = True
        for slot, marks in fetch(marked).items():
            unread = np.full(marks.shape[1:], max(shape), np.int32)
            nobody = [unread.copy() for _ in shape], [np.full_like(unread, -1) for _ in shape]
            first, last = ends.setdefault(slot, nobody)
            for mark, (axis, at) in zip(np.asarray(marks), block, strict=False):
                first[axis][mark] = np.minimum(first[axis][mark], at)
                last[axis][mark] = np.maximum(last[axis][mark], at)


# The structure of a program: who reads what, one equation at a time.


def _puller(program: Program, shapes: Mapping[int, Any], relaxations: Nodes) -> Any:
    """(marked units) -> slot -> which elements they read; None where that is not known."""
    is_open = program.open_slots()
    steps = []
    for equation in program.equations:
        mask = [slot in is_open for slot in equation.inputs]
        fn = _structure(equation, mask, program.constants, relaxations)
        if fn is None:
            return None
        steps.append((equation, [slot for slot in equation.inputs if slot in is_open], fn))
    (output,) = program.outputs

    def pull(marked: Array) -> Marks:
        marks: Marks = {output: marked}
        for equation, operands, fn in reversed(steps):
            results = []
            for slot, shape in zip(equation.outputs, equation.shapes, strict=True):
                results.append(marks.setdefault(slot, jnp.zeros(shape.shape, bool)).astype(shape.dtype))
            _, transpose = jax.vjp(fn, *(jnp.zeros(shapes[slot].shape, shapes[slot].dtype) for slot in operands))
            for slot, count in zip(operands, transpose(results), strict=True):
                marks[slot] = marks.get(slot, False) | (count != 0)  # of one sign, so that nothing cancels
        return marks

    return pull


def _structure(
    equation: Equation, mask: Sequence[bool], constants: Mapping[int, Any], relaxations: Nodes
) -> Callable[..., list[Array]] | None:
    """The equation as a function of its open operands that is linear with weights of one, up to a sign each."""
    if equation.name in LOOPS:
        return None
    if equation.name in _UNCHANGED:
        return lambda *operands: list(operands)
    rule = rule_of(equation, mask)
    if isinstance(rule, Enclosed):
        return None
    if isinstance(rule, Nonlinear):
        slopes = relaxations[equation.outputs[0]].upper.slopes
        ones = jax.tree.map(lambda slope: functools.partial(jnp.ones, slope.shape, slope.dtype), slopes)
        evaluate = functools.partial(rule.evaluate, **rule_params(equation))
        return lambda *operands: [evaluate(jax.tree.map(lambda one: one(), ones), *operands)]
    known = {}
    for k, (slot, flag) in enumerate(zip(equation.inputs, mask, strict=True)):
        if flag:
            continue
        value = constants[slot]
        if isinstance(rule, Coefficient) or rule.is_linear_in(k):
            kind, fill = jax.typeof(value), float(isinstance(rule, Coefficient))
            known[k] = functools.partial(jnp.full, kind.shape, fill, kind.dtype)
        elif isinstance(value, Tracer):
            return None  # an index or a predicate that is computed when the program runs
        else:
            known[k] = functools.partial(np.asarray, value)

    def apply(*operands: Array) -> list[Array]:
        given = iter(operands)
        return equation.apply(*(next(given) if flag else known[k]() for k, flag in enumerate(mask)))

    return functools.partial(_one_channel, equation, constants) if _mixes_channels(equation, mask) else apply


def _mixes_channels(equation: Equation, mask: Sequence[bool]) -> bool:
    groups = [equation.params.get(name) for name in ("feature_group_count", "batch_group_count")]
    return equation.name == "conv_general_dilated" and mask[0] and groups == [1, 1]


def _one_channel(equation: Equation, constants: Mapping[int, Any], x: Array) -> list[Array]:
    """A convolution with weights of one, which need only be done for one channel."""
    numbers, kernel = equation.params["dimension_numbers"], jax.typeof(constants[equation.inputs[1]])
    window = [1 if axis in numbers.rhs_spec[:2] else n for axis, n in enumerate(kernel.shape)]
    (found,) = equation.apply(jnp.sum(x, numbers.lhs_spec[1], keepdims=True), jnp.ones(window, kernel.dtype))
    return [jnp.broadcast_to(found, equation.shapes[0].shape)]
