"""Backward rows that several units share.

A row e_i goes backwards to find the lines and the worst input of unit i alone. Call an element of an array on the way
*read* by unit i if some path of equations leads from it to i; everywhere else the row's coefficient is zero.

Theorem. If no element of any array on the way is read by two of the units i in G, the backward pass of the one row
sum_G e_i computes the passes of all of them: between nonlinear equations it is linear, at a nonlinear equation it is a
sum over elements of functions that vanish at zero, and so every coefficient is that of the one unit that reads the
element. The lines chosen at an element, and the worst value of an input from a box, are then that unit's. Its bound is
the sum of <coeffs, worst input> and of all constants over the elements that it reads.
"""

import dataclasses
import functools
import math
import string
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbound.bounds import worst_input
from jaxbound.methods.chunks import Chunks
from jaxbound.methods.problem import valid_lower
from jaxbound.methods.replay import Nodes, constant_slots
from jaxbound.methods.rows import choose_lines, evaluate, fixed_program, graft, summed_to, takes_lower
from jaxbound.program import Program
from jaxbound.sets import Array, Interval

Offset = Mapping[int, Array]  # of a row, by axis of the units
BySlot = dict[int, Array]


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

    @property
    def common(self) -> dict[int, int]:
        """The axes along which units share rows, with their spacing."""
        return {axis: self.spacing[axis] for axis, count in enumerate(self.counts) if count > 1}

    @property
    def single(self) -> dict[int, int]:
        """The other axes, along which every unit has its own row, as along channels."""
        return {axis: self.spacing[axis] for axis, count in enumerate(self.counts) if count == 1}

    def offset(self, block: Array, row: Array) -> Offset:
        """Where a row's units are: the block says it along the common axes, the row of a block along the others."""
        common = jnp.unravel_index(block, tuple(self.common.values()))
        single = jnp.unravel_index(row, tuple(self.single.values())) if self.single else ()
        return dict(zip((*self.common, *self.single), (*common, *single), strict=True))

    def row(self, offset: Offset) -> Array:
        """The row of all units at `offset` plus multiples of the spacing: [*shape]."""
        row = jnp.ones((), self.dtype)
        for axis, (n, step) in enumerate(zip(self.shape, self.spacing, strict=True)):
            row = row[..., None] * (jnp.arange(n) % step == offset[axis]).astype(self.dtype)
        return row

    def holding(self, units: Array) -> Array:
        """Which rows have one of some marked units, [*shape] -> [offsets on common axes, on single ones]."""
        edges = [(0, count * step - n) for n, step, count in zip(self.shape, self.spacing, self.counts, strict=True)]
        blocks = jnp.pad(units, edges).reshape(
            [n for pair in zip(self.counts, self.spacing, strict=True) for n in pair]
        )
        found = jnp.any(blocks, axis=tuple(range(0, blocks.ndim, 2)))
        return jnp.transpose(found, (*self.common, *self.single)).ravel()

    def pick(self, offset: Offset, values: Array) -> Array:
        """The elements of an array [*shape] at the units of a row: [*counts], zeros where there is no unit."""
        for axis, (count, step) in enumerate(zip(self.counts, self.spacing, strict=True)):
            edges = [(0, 0, 0)] * values.ndim
            edges[axis] = (0, count * step - values.shape[axis], 0)
            blocks = jax.lax.pad(values, jnp.zeros((), values.dtype), edges)
            blocks = blocks.reshape(*values.shape[:axis], count, step, *values.shape[axis + 1 :])
            values = jax.lax.dynamic_index_in_dim(blocks, offset[axis], axis + 1, keepdims=False)
        return values

    def merge(self, values: Array) -> Array:
        """Puts what all rows found in its place: [offsets on common axes, on single ones, *counts] -> [*shape]."""
        order = [*self.common, *self.single]
        blocks = values.reshape(*self.common.values(), *self.single.values(), *self.counts)
        rank = len(order)
        blocks = jnp.transpose(blocks, [axis for k in range(rank) for axis in (rank + k, order.index(k))])
        whole = blocks.reshape([count * step for count, step in zip(self.counts, self.spacing, strict=True)])
        return whole[tuple(map(slice, self.shape))]

    def local_shape(self, slot: int) -> tuple[int, ...]:
        """The shape of an array that tells a slot's elements apart where different units of a row may read them."""
        several = [self.first[slot][axis].shape for axis in self.common]
        return np.broadcast_shapes((1,) * self.first[slot][0].ndim, *several)

    def summed(self, slot: int, values: Array) -> Array:
        """Sums over the elements that need not be told apart: [*shape of the slot] -> [*local_shape]."""
        return summed_to(self.local_shape(slot), values)

    def collect(self, offset: Offset, parts: BySlot) -> Array:
        """Sums over the elements that each unit of a row reads: [..., *local_shape] for each slot -> [..., *counts].

        It is the same matrix product for all rows whose offsets along the common axes are the same.
        """
        by_readers: dict[Any, Array] = {}
        shapes = {}
        for slot, part in parts.items():
            firsts = [self.first[slot][axis] for axis in self.common]
            rank, key = self.first[slot][0].ndim, tuple((x.shape, x.tobytes()) for x in firsts)
            flat = part.reshape(*part.shape[: part.ndim - rank], -1)
            by_readers[key] = by_readers[key] + flat if key in by_readers else flat
            shapes[key] = firsts
        matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
        sums = functools.reduce(
            jnp.add, (matmul(x, self._readers(offset, shapes[key])) for key, x in by_readers.items())
        )
        return sums.reshape(*sums.shape[:-1], *self.counts)

    def _readers(self, offset: Offset, firsts: Sequence[np.ndarray]) -> Array:
        """Which unit of a row reads which element: [prod(local_shape), prod(counts)] of zeros and ones."""
        names = iter(string.ascii_letters)
        axes = [next(names) for _ in firsts[0].shape]
        operands, labels, units = [], [], []
        for (axis, step), first in zip(self.common.items(), firsts, strict=True):
            unit = (first + (offset[axis] - first) % step) // step  # the only one of a row that can read the element
            kept = [k for k, n in enumerate(first.shape) if n > 1]
            count = self.counts[axis]
            hot = jax.nn.one_hot(unit, count, dtype=self.dtype)
            operands.append(hot.reshape([first.shape[k] for k in kept] + [count]))
            units.append(next(names))
            labels.append("".join(axes[k] for k in kept) + units[-1])
        local = [name for name in axes if any(name in label for label in labels)]
        readers = jnp.einsum(f"{','.join(labels)}->{''.join(local + units)}", *operands)
        return readers.reshape(-1, math.prod(readers.shape[len(local) :]))


def shared_bounds(
    program: Program,
    relaxations: Nodes,
    sets: Sequence[Interval],
    *,
    sharing: Sharing,
    parts: Chunks,
    needed: Array | None = None,
) -> Interval:
    """Bounds of all units of a program's one output over boxes by shared rows; differentiable.

    Rows go backwards in blocks with the same offset along the common axes, for the lower and for the upper bounds; one
    by one where only those are looked for that hold units which are `needed` (others may be unbounded, and there is no
    derivative in reverse mode).
    """
    single = math.prod(sharing.single.values())
    size, chunked = parts.blocks(single, copies=2) if needed is None else (1, parts.of(2))
    pieces = -(-single // size)

    def of_piece(index: Array) -> Array:
        rows = jnp.minimum(index % pieces * size + jnp.arange(size), single - 1)  # the last one again to fill a piece
        return _lower_block(program, relaxations, sets, index // pieces, rows, sharing=sharing)

    index = jnp.arange(sharing.rows // single * pieces)
    if needed is None:
        values = chunked.map(jax.vmap(of_piece), index)
    else:
        values = chunked.map_some(jax.vmap(of_piece), index, sharing.holding(needed))
    values = jnp.moveaxis(values, 1, 0).reshape(2, sharing.rows // single, pieces * size, -1)[:, :, :single]
    return Interval(sharing.merge(values[0]), -sharing.merge(values[1]))


def _lower_block(
    program: Program, relaxations: Nodes, sets: Sequence[Interval], block: Array, rows: Array, *, sharing: Sharing
) -> Array:
    """Lower bounds [2, S, *counts] of the units of some rows [S] of a block, and of the negative units."""
    fixed = jax.lax.stop_gradient
    boxes = fixed(list(sets))
    spec = jax.vmap(lambda row: sharing.row(sharing.offset(block, row)))(rows)
    coeffs, parts, met = _choose_both(fixed_program(program), fixed(relaxations), boxes, spec, sharing=sharing)

    def lowest(slot: int, box: Interval, c: Array) -> Array:
        return sharing.summed(slot, c * worst_input(c, box))

    for slot, box, c in zip(program.inputs, boxes, coeffs, strict=True):
        parts[slot] = jax.vmap(jax.vmap(functools.partial(lowest, slot, box)))(c)
    value = sharing.collect(sharing.offset(block, rows[0]), parts)

    def evaluated(row: Array, coeffs: Sequence[Array], signs: Nodes) -> Array:
        (output,) = evaluate(program, relaxations, sets, coeffs=coeffs, signs=signs)
        return sharing.pick(sharing.offset(block, row), output)

    found = jax.vmap(jax.vmap(evaluated), in_axes=(None, 0, 0))(rows, coeffs, takes_lower(met))
    return valid_lower(graft(value, jnp.stack([found[0], -found[1]])))


def _choose_both(
    program: Program, relaxations: Nodes, boxes: Sequence[Interval], spec: Array, *, sharing: Sharing
) -> tuple[list[Array], BySlot, Nodes]:
    """`choose_lines` for rows [S, *shape] and for their negatives, [2, S, ...], with the bias where it enters.

    Up to the last nonlinear results a row and its negative have the same coefficients but for their sign.
    """
    tail = program.cone(program.outputs, relaxations)
    head = program.cone(tail.inputs)
    shapes = program.shapes() | {slot: jax.typeof(box.lower) for slot, box in zip(program.inputs, boxes, strict=True)}
    anywhere = [Interval(x, x) for x in (jnp.zeros(shapes[k].shape, shapes[k].dtype) for k in tail.inputs)]

    def local(part: Program) -> dict[int, tuple[int, ...]]:
        return {slot: sharing.local_shape(slot) for slot in constant_slots(part)}

    rows, last, _ = choose_lines(tail, {}, anywhere, [spec], local=local(tail))
    rows, last = jax.tree.map(lambda x: jnp.concatenate([x, -x]), (rows, last))
    regions = dict(zip(program.inputs, boxes, strict=True))
    coeffs, bias, met = choose_lines(head, relaxations, [regions[k] for k in head.inputs], rows, local=local(head))
    by_slot = dict(zip(head.inputs, coeffs, strict=True))
    both = {slot: last.get(slot, 0) + bias.get(slot, 0) for slot in {**last, **bias}}  # a skip is in both parts
    found = [by_slot[slot] for slot in program.inputs], both, met
    return jax.tree.map(lambda x: x.reshape(2, -1, *x.shape[1:]), found)
