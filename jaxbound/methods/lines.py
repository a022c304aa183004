"""Lower bounds as a function of what is free in the lines that they are made of.

Rows have lines in *sets*: each set serves as many rows, consecutive ones. The rows of the spec always have some. Those
that go backwards from an intermediate value, to bound it, have the strategy's, or free ones too. Every choice of lines
gives bounds, so bounds by different choices may be intersected.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxbound import relax
from jaxbound.methods.backward import unit_rows
from jaxbound.methods.chunks import Chunks
from jaxbound.methods.crown import backward_bounds, is_exact, tighten_by_crown
from jaxbound.methods.interval import Propagation, propagate
from jaxbound.methods.locality import shared_rows
from jaxbound.methods.problem import Problem, is_float, narrowed
from jaxbound.methods.replay import Nodes
from jaxbound.methods.rows import fixed_program, graft, lower_rows, lower_rows_by_lines
from jaxbound.methods.shared import Sharing
from jaxbound.program import Program
from jaxbound.rules.relaxation import Freedom
from jaxbound.sets import Array, Interval, is_set, tightest

# Label of a node -> what its lines were given, with the sets of lines as leading axis. Lines for the rows of an
# intermediate value have the label of what meets it in front, "label/label".
Freedoms = Mapping[str, Freedom]
# How many rows there are -> how many sets of lines they have.
LineStrategy = Callable[[int], int]


# Label of an intermediate value, as in `Propagation.layers` -> its bounds.
Boxes = Mapping[str, Interval]


def single_lines(rows: int) -> int:
    """Every row has lines of its own: a strategy for the `lines` and `intermediate` of `jaxbound.alpha_crown`."""
    return rows


def shared_lines(rows: int) -> int:
    """All rows have the same lines: a strategy for the `lines` and `intermediate` of `jaxbound.alpha_crown`.

    Looser than `single_lines`; the lines take as many times less memory as there are rows.
    """
    del rows
    return 1


def sets_of_lines(strategy: LineStrategy, rows: int) -> int:
    """How many sets of lines some rows have.

    Raises:
      ValueError: they cannot be dealt out evenly.
    """
    sets = strategy(rows)
    if sets < 1 or rows % sets:
        raise ValueError(f"a strategy must give {rows} rows a number of sets of lines that divides it, got {sets}")
    return sets


class Layer(NamedTuple):
    """An intermediate value whose bounds have free lines.

    Attributes:
      label: in `Propagation.layers`, of what meets it.
      sets: how many sets of lines its rows have, those for the lower bounds first.
      sharing: which of its units share a row.
    """

    label: str
    sets: int
    sharing: Sharing | None


def free_layers(problem: Problem, propagation: Propagation, strategy: LineStrategy | None) -> dict[int, Layer]:
    """The intermediate values that have free lines, by slot; without a strategy none has."""
    found: dict[int, Layer] = {}
    names = list(propagation.layers)
    if strategy is None:
        return found
    for node in propagation.nodes.values():
        operands = zip(node.equation.inputs, node.operands, strict=True)
        slots = [slot for slot, x in operands if is_set(x) and is_float(x.lower)]
        for label, slot in zip(names[names.index(node.label) :], slots, strict=False):
            cone, sets = problem.cone(slot)
            if slot in found or is_exact(cone, sets) or not cone.among(propagation.nodes):
                continue
            size = propagation.layers[label].lower.size
            count = sets_of_lines(strategy, 2 * size)
            sharing = shared_rows(cone, sets, cone.among(propagation.relaxations)) if count == 1 else None
            found[slot] = Layer(label, count, sharing)
    return found


@dataclasses.dataclass(frozen=True)
class Lines:
    """Rows of a spec, whose lower bounds are a function of what is free.

    Attributes:
      problem, propagation: what is bounded, and the walk with the strategy's lines.
      relu: the strategy.
      spec: the rows [S, *out], for each output.
      sets: how many sets of lines they have.
      layers: slot -> the intermediate value there; none where their bounds stay those of the walk.
      parts: in which chunks the rows of intermediate values go backwards.
      lower: (program, relaxations, sets, spec) -> the lower bounds of some rows by given lines.
    """

    problem: Problem
    propagation: Propagation
    relu: relax.ReluStrategy
    spec: Sequence[Array]
    sets: int
    layers: Mapping[int, Layer]
    parts: Chunks
    lower: Callable[..., Array] = lower_rows

    def fixed(self) -> "Lines":
        """The same, to be differentiated with respect to what is free only."""
        problem, propagation = self.problem, self.propagation
        fixed = jax.lax.stop_gradient
        program, nodes = fixed_program(problem.program), {k: node.fixed() for k, node in propagation.nodes.items()}
        problem = dataclasses.replace(problem, program=program, sets=fixed(problem.sets))
        relaxations, boxes = fixed((propagation.relaxations, propagation.layers))
        propagation = dataclasses.replace(propagation, nodes=nodes, relaxations=relaxations, layers=boxes)
        changed = {"problem": problem, "propagation": propagation, "spec": fixed(list(self.spec))}
        return dataclasses.replace(self, **changed, lower=lower_rows_by_lines)

    def start(self) -> Freedoms:
        """Where the strategy's lines are."""
        nodes = self.propagation.nodes
        each = {slot: node.freedom(self.relu) for slot, node in nodes.items()}

        def copied(slot: int, sets: int) -> Freedom:
            return jax.tree.map(lambda x: jnp.broadcast_to(x, (sets, *x.shape)), each[slot])

        free = {node.label: copied(slot, self.sets) for slot, node in nodes.items()}
        for slot, layer in self.layers.items():
            inside = self.problem.program.cone([slot]).among(nodes)
            free |= {f"{layer.label}/{node.label}": copied(key, layer.sets) for key, node in inside.items()}
        return free

    def by_strategy(self) -> tuple[Array, Boxes]:
        """What `bounds` gives for the strategy's lines."""
        problem, propagation = self.problem, self.propagation
        bounds = lower_rows(problem.program, propagation.relaxations, problem.sets, self.spec)
        return bounds, self._boxes(propagation)

    def bounds(self, free: Freedoms, best: Boxes | None = None) -> tuple[Array, Boxes]:
        """Lower bounds [S], and the bounds of intermediate values that have free lines.

        Args:
          free: as `start` is.
          best: such bounds by other lines, to intersect with. The derivative leaves them out, so that lines by which a
            unit has just missed its best bound go on being moved.
        """
        problem, count = self.problem, self.spec[0].shape[0]
        walk = self._walk(free, best or {}) if self.layers else self.propagation
        own = {node.label: free[node.label] for node in walk.nodes.values()}

        def of_set(free: Freedoms, spec: list[Array]) -> Array:
            return self.lower(problem.program, _relaxations(problem.program, walk, self.relu, free), problem.sets, spec)

        bounds = jax.vmap(of_set)(own, [x.reshape(self.sets, -1, *x.shape[1:]) for x in self.spec])
        return bounds.reshape(count), self._boxes(walk)

    def _boxes(self, walk: Propagation) -> Boxes:
        return {layer.label: walk.layers[layer.label] for layer in self.layers.values()}

    def _walk(self, free: Freedoms, best: Boxes) -> Propagation:
        """The walk with free lines for the bounds of intermediate values, never looser than the strategy's."""
        by_strategy = tighten_by_crown(self.problem, parts=self.parts, combine=tightest, rows=shared_rows)

        def tighten(slot: int, box: Interval, so_far: Propagation) -> Interval:
            layer = self.layers.get(slot)
            if layer is None:
                return by_strategy(slot, box, so_far)
            box = tightest(box, self._backward(slot, layer, so_far, free))
            alone = tightest(self.propagation.layers[layer.label], box)
            return narrowed(box, Interval(*map(graft, tightest(best.get(layer.label, alone), alone), alone)))

        return propagate(self.problem.program, self.problem.sets, self.relu, tighten)

    def _backward(self, slot: int, layer: Layer, so_far: Propagation, free: Freedoms) -> Interval:
        """The bounds of an intermediate value by its lines."""
        cone, sets = self.problem.cone(slot)
        inside = cone.among(so_far.nodes)
        own = {node.label: free[f"{layer.label}/{node.label}"] for node in inside.values()}
        like = self.propagation.layers[layer.label]
        if layer.sets == 1:
            lines = _relaxations(cone, so_far, self.relu, jax.tree.map(lambda x: x[0], own))
            return backward_bounds(cone, lines, sets, like=like, sharing=layer.sharing, parts=self.parts)

        def of_row(unit: Array, free: Freedoms) -> Array:
            return self.lower(cone, _relaxations(cone, so_far, self.relu, free), sets, [unit[None]])[0]

        each = 2 * like.lower.size // layer.sets
        lines = jax.tree.map(lambda x: jnp.repeat(x, each, axis=0), own)
        return unit_rows(jax.vmap(of_row), like.lower, self.parts, given=(lines,))


def _relaxations(program: Program, walk: Propagation, relu: relax.ReluStrategy, free: Freedoms) -> Nodes:
    """Relaxations of all that is nonlinear in a program, with free lines where there can be some."""
    lines = {slot: node.lines(relu, free[node.label]) for slot, node in program.among(walk.nodes).items()}
    return program.among(walk.relaxations) | lines
