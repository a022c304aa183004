"""Which units may share a backward row, read off a program: on convolutional networks, those that are far enough apart.

A row e_i goes backwards to find the lines and the worst input of unit i alone. Call an element of an array on the way
*read* by unit i if some path of equations leads from it to i; everywhere else the row's coefficient is zero.

Theorem. If no element of any array on the way is read by two of the units i in G, the backward pass of the one row
sum_G e_i computes the passes of all of them: between nonlinear equations it is linear, at a nonlinear equation it is a
sum over elements of functions that vanish at zero, and so every coefficient is that of the one unit that reads the
element. The lines chosen at an element, and the worst value of an input from a box, are then that unit's. Its bound is
the sum of <coeffs, worst input> and of all constants over the elements that it reads.

Who reads an element is found once, when a function is traced, with every weight taken to be one: a weight that happens
to be zero can only make a unit read less. For each element and each axis of the units' array, the first and the last
coordinate of the units that read it are found; where last - first < spacing at every element, units whose coordinates
differ by multiples of the spacing in each axis read nothing together. One spacing for each axis is so enough to cover
strides, paddings, dilations, residual sums, pools and reshapes alike.
"""

import dataclasses
import functools
import math
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxbound.bounds import worst_input
from jaxbound.methods.chunks import Chunks
from jaxbound.methods.problem import rule_of, rule_params, valid_lower
from jaxbound.methods.replay import Nodes, choose_lines, constant_slots, evaluate, fixed_program, graft, summed_to
from jaxbound.program import LOOPS, Equation, Program
from jaxbound.rules.registry import Coefficient, Enclosed, Nonlinear
from jaxbound.sets import Array, Interval, Set, element

_FEWEST_UNITS = 64  # fewer rows are not worth a look at the structure
_LONGEST_AXIS = 4096  # of units; each coordinate along it costs a pass over the structure
_PLANES_AT_ONCE = 16  # of the units with one coordinate along an axis
# Linear equations that return their operands, and mean nothing outside the trace that they came from.
_UNCHANGED = frozenset("stop_gradient sharding_constraint pvary pcast mesh_cast reshard device_put".split())


@dataclasses.dataclass(frozen=True)
class Sharing:
    """How the units of an array share rows: those whose coordinates differ by multiples of a spacing share one.

    Attributes:
      shape, dtype: of the array of units.
      spacing: for each of its axes.
      first: slot -> for each axis of the units the first coordinate that reads an element: an array like the slot's,
        with a size of 1 along axes where it does not change.
    """

    shape: tuple[int, ...]
    dtype: Any
    spacing: tuple[int, ...]
    first: Mapping[int, Sequence[np.ndarray]]

    @property
    def counts(self) -> tuple[int, ...]:
        """How many units share a row, along each axis."""
        return tuple(-(-n // step) for n, step in zip(self.shape, self.spacing, strict=True))

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return math.prod(self.spacing)

    def row(self, offset: Sequence[Array]) -> Array:
        """The row of all units at `offset` (one number for each axis) plus multiples of the spacing: [*shape]."""
        row = jnp.ones((), self.dtype)
        for n, step, at in zip(self.shape, self.spacing, offset, strict=True):
            row = row[..., None] * (jnp.arange(n) % step == at).astype(self.dtype)
        return row

    def pick(self, offset: Sequence[Array], values: Array) -> Array:
        """The elements of an array [*shape] at the units of a row: [*counts], zeros where there is no unit."""
        for axis, (count, step, at) in enumerate(zip(self.counts, self.spacing, offset, strict=True)):
            edges = [(0, 0, 0)] * values.ndim
            edges[axis] = (0, count * step - values.shape[axis], 0)
            blocks = jax.lax.pad(values, jnp.zeros((), values.dtype), edges)
            blocks = blocks.reshape(*values.shape[:axis], count, step, *values.shape[axis + 1 :])
            values = jax.lax.dynamic_index_in_dim(blocks, at, axis + 1, keepdims=False)
        return values

    def merge(self, values: Array) -> Array:
        """Puts what all rows found, [rows, *counts], in its place: [*shape]."""
        rank = len(self.shape)
        blocks = values.reshape(*self.spacing, *self.counts)
        blocks = jnp.transpose(blocks, [axis for k in range(rank) for axis in (rank + k, k)])
        whole = blocks.reshape([count * step for count, step in zip(self.counts, self.spacing, strict=True)])
        return whole[tuple(map(slice, self.shape))]

    def local_shape(self, slot: int) -> tuple[int, ...]:
        """The shape of an array that tells a slot's elements apart where different units of a row may read them."""
        several = [first for first, count in zip(self.first[slot], self.counts, strict=True) if count > 1]
        return np.broadcast_shapes((1,) * self.first[slot][0].ndim, *(first.shape for first in several))

    def collect(self, offset: Sequence[Array], slot: int, values: Array) -> Array:
        """Sums over the elements that each unit of a row reads: [*local_shape] -> [*counts]."""
        axes, units = string.ascii_lowercase[: values.ndim], string.ascii_uppercase[: len(self.counts)]
        operands, labels = [values], [axes]
        for k, (first, count, step) in enumerate(zip(self.first[slot], self.counts, self.spacing, strict=True)):
            if count > 1:
                reader = first + (offset[k] - first) % step  # the only unit of the row that can read the element
                kept = [axis for axis, n in enumerate(first.shape) if n > 1]
                hot = jax.nn.one_hot(reader // step, count, dtype=values.dtype)
                operands.append(hot.reshape([first.shape[axis] for axis in kept] + [count]))
                labels.append("".join(axes[axis] for axis in kept) + units[k])
        result = "".join(unit for unit, count in zip(units, self.counts, strict=True) if count > 1)
        sums = jnp.einsum(f"{','.join(labels)}->{result}", *operands, precision=jax.lax.Precision.HIGHEST)
        return sums.reshape(self.counts)


# (program, sets, relaxations) -> who shares a row; None for no one.
RowStrategy = Callable[[Program, Sequence[Set], Nodes], Sharing | None]


def shared_rows(program: Program, sets: Sequence[Set], relaxations: Nodes) -> Sharing | None:
    """Units that read nothing in common share a row, as those of a convolution do that are far enough apart.

    A strategy for the `rows` of `jaxbound.crown`. The bounds are those of `single_rows` up to rounding. Where nothing
    is gained or nothing is known, every unit has its own row: behind dense layers, on balls, inside loops, for indices
    that are computed when the program runs, and for fewer than 64 units.
    """
    shapes = {slot: shape for eq in program.equations for slot, shape in zip(eq.outputs, eq.shapes, strict=True)}
    shapes |= {slot: jax.typeof(element(region)) for slot, region in zip(program.inputs, sets, strict=True)}
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


def shared_bounds(
    program: Program, relaxations: Nodes, sets: Sequence[Set], *, sharing: Sharing, parts: Chunks
) -> Interval:
    """Bounds of all units of a program's one output over boxes by shared rows; differentiable."""
    bound = functools.partial(_lower_shared, program, relaxations, sets, sharing=sharing)
    values = parts.map(lambda index: bound(index=index), jnp.arange(2 * sharing.rows))
    return Interval(sharing.merge(values[: sharing.rows]), -sharing.merge(values[sharing.rows :]))


def _lower_shared(
    program: Program, relaxations: Nodes, sets: Sequence[Set], *, sharing: Sharing, index: Array
) -> Array:
    """Lower bounds [S, *counts] of the units of some rows [S], from `sharing.rows` on those of the negative units."""
    fixed = jax.lax.stop_gradient
    sign = jnp.where(index < sharing.rows, 1, -1).astype(sharing.dtype)
    offsets = jnp.unravel_index(index % sharing.rows, sharing.spacing)
    spec = jax.vmap(lambda sign, offset: sign * sharing.row(offset))(sign, offsets)
    local = {slot: sharing.local_shape(slot) for slot in constant_slots(program)}
    boxes = fixed(list(sets))
    coeffs, bias, signs = choose_lines(fixed_program(program), fixed(relaxations), boxes, [spec], local=local)

    def value(offset: Sequence[Array], coeffs: Sequence[Array], bias: Mapping[int, Array]) -> Array:
        parts = dict(bias)
        for slot, c, box in zip(program.inputs, coeffs, boxes, strict=True):
            parts[slot] = summed_to(sharing.local_shape(slot), c * worst_input(c, box))
        return sum(sharing.collect(offset, slot, part) for slot, part in parts.items())

    def evaluated(offset: Sequence[Array], sign: Array, coeffs: Sequence[Array], signs: Nodes) -> Array:
        (output,) = evaluate(program, relaxations, sets, coeffs=coeffs, signs=signs)
        return sign * sharing.pick(offset, output)

    derivative = jax.vmap(evaluated)(offsets, sign, coeffs, signs)
    return valid_lower(graft(jax.vmap(value)(offsets, coeffs, bias), derivative))


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
