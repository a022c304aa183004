"""Interval bound propagation, and the walk that records one relaxation per nonlinear equation."""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxbound.methods.control import constant_lines, enclose, propagate_loop
from jaxbound.methods.images import image, image_box, images
from jaxbound.methods.nodes import Node
from jaxbound.methods.problem import Problem, is_float, prepare, rule_of, rule_params, valid_interval
from jaxbound.methods.rows import lower_rows
from jaxbound.program import LOOPS, Equation, Program, walk
from jaxbound.rules.discrete import as_box
from jaxbound.rules.registry import Coefficient, Enclosed, Linear, Nonlinear
from jaxbound.sets import (
    Array,
    Ball,
    Interval,
    Set,
    SupportSet,
    bounding_box,
    dual_exponent,
    element,
    is_set,
    midpoint,
    radius,
    root,
    tightest,
)


@dataclasses.dataclass(frozen=True)
class Propagation:
    """What the interval walk leaves behind.

    Attributes:
      values: slot -> Interval, or Ball or SupportSet while it is still one, or array where nothing depends on a set.
      relaxations: first result's slot -> Relaxation; for a scan a mapping of stacked ones, for what is known by
        intervals alone a mapping from each result's slot to constant lines. Without `relu` none of the first kind.
      layers: label -> the Interval that a nonlinear equation met.
      labels: first result's slot -> the label in `layers` of its (first) operand; of a loop what its labels begin with.
      cuts: the slots of all nonlinear results.
      nodes: result's slot -> Node, for what is neither linear nor a loop.
    """

    values: Mapping[int, Any]
    relaxations: Mapping[int, Any]
    layers: Mapping[str, Interval]
    labels: Mapping[int, str]
    cuts: Sequence[int] = ()
    nodes: Mapping[int, Node] = dataclasses.field(default_factory=dict)

    def boxes(self, slots: Sequence[int]) -> list[Interval]:
        """The values of some slots as Intervals."""
        return [as_box(self.values[slot]) for slot in slots]


# (slot, its interval bounds, the walk so far, without values) -> bounds that are at least as good.
Tighten = Callable[[int, Interval, Propagation], Interval]


def propagate(program: Program, sets: Sequence[Set], relu: Any = None, tighten: Tighten | None = None) -> Propagation:
    """Walks a program over sets.

    Args:
      program: a specialised program.
      sets: one for each input.
      relu: the strategy for ReLUs; None records no relaxations.
      tighten: improves the interval of every operand of a nonlinear equation before it is used.
    """
    relaxations: dict[int, Any] = {}
    layers = _Layers({}, {})
    tightened: dict[int, Interval] = {}
    cuts: list[int] = []
    nodes: dict[int, Node] = {}
    so_far = Propagation({}, relaxations, layers.boxes, layers.labels, cuts, nodes)

    def improved(slot: int, value: Any) -> Any:
        if tighten is None or not is_set(value) or not is_float(bounding_box(value).lower):
            return value
        if slot not in tightened:
            box = bounding_box(value)
            better = tighten(slot, box, so_far)  # computed in the precision of the sets, which may be another
            tightened[slot] = Interval(better.lower.astype(box.lower.dtype), better.upper.astype(box.upper.dtype))
        return tightened[slot]

    def handler(equation: Equation, operands: list[Any], mask: tuple[bool, ...]) -> Sequence[Any]:
        if equation.name in LOOPS:
            cuts.extend(equation.outputs)
            operands = [improved(slot, x) for slot, x in zip(equation.inputs, operands, strict=True)]
            loop = propagate_loop(equation, operands, mask, functools.partial(propagate, relu=relu))
            relaxations[equation.outputs[0]] = loop.relaxations
            layers.enter(equation, loop.layers)
            return loop.results
        rule = rule_of(equation, mask)
        if not isinstance(rule, Nonlinear | Enclosed):
            return linear_image(rule, equation, operands, mask)
        cuts.extend(equation.outputs)
        operands = [
            bounding_box(improved(slot, x)) if flag else x
            for slot, x, flag in zip(equation.inputs, operands, mask, strict=True)
        ]
        label = layers.meet(equation, [x for x, flag in zip(operands, mask, strict=True) if flag and is_float(x.lower)])
        if isinstance(rule, Enclosed):
            results = enclose(rule, equation, operands)
            relaxations[equation.outputs[0]] = constant_lines(equation, results)
            return results
        result = rule.interval(*operands, **rule_params(equation))
        (slot,) = equation.outputs
        nodes[slot] = Node(rule, equation, operands, result, label)
        if relu is not None:
            relaxations[slot] = nodes[slot].lines(relu)
        return [result]

    return dataclasses.replace(so_far, values=walk(program, sets, handler))


class _Layers(NamedTuple):
    """What nonlinear equations have met so far, and the labels by a first result's slot."""

    boxes: dict[str, Interval]
    labels: dict[int, str]

    def meet(self, equation: Equation, boxes: Sequence[Interval]) -> str:
        """Enters an equation's operands and returns the label of the first: "index operation file.py:line"."""
        label = self._next(equation)
        if boxes:
            self.labels[equation.outputs[0]] = label
        for box in boxes:
            self.boxes[self._next(equation)] = box
        return label

    def enter(self, loop: Equation, layers: Mapping[str, Interval]) -> None:
        """Enters what a loop's equations have met."""
        if layers:
            self.labels[loop.outputs[0]] = prefix = self._next(loop)
            self.boxes.update({f"{prefix}/{name}": box for name, box in layers.items()})

    def _next(self, equation: Equation) -> str:
        return f"{len(self.boxes):03d} {equation.name} {os.path.basename(equation.source)}".rstrip()


# Intervals through linear equations.


def linear_image(
    rule: Linear | Coefficient, equation: Equation, operands: list[Any], mask: Sequence[bool]
) -> Sequence[Set]:
    """The results of a linear equation: W+ lower + W- upper and its mirror image, W+ + W- = W split by signs.

    For Intervals this is what is computed even if their ends are not ordered.
    """
    if isinstance(rule, Linear):
        return _linear(rule, equation, operands, mask)
    return [_coefficient(rule, equation, operands, mask)]


def _linear(rule: Linear, equation: Equation, operands: list[Any], mask: Sequence[bool]) -> Sequence[Set]:
    if sum(mask) == 1 and any(isinstance(x, Ball) for x in operands) and _carries(rule, equation, operands, mask):
        return _carried(rule, equation, operands)
    ends = []
    for end in (0, 1):
        chosen = [
            (x if rule.sign(k) > 0 else x[::-1])[end] if flag else x
            for k, (x, flag) in enumerate(zip(map(_boxed, operands), mask, strict=True))
        ]
        ends.append(equation.apply(*chosen))
    boxes = [Interval(lower, upper) for lower, upper in zip(*ends, strict=True)]
    alone = sum(mask) == 1 and any(isinstance(x, SupportSet) for x in operands)
    return images(equation, operands, boxes) if alone else boxes


def _carries(rule: Linear | Coefficient, equation: Equation, operands: list[Any], mask: Sequence[bool]) -> bool:
    """Whether no element of the set is read twice: a scalar among arrays is, by each of theirs."""
    scalar = jnp.shape(element(operands[mask.index(True)])) == ()
    return rule.carries and not (scalar and any(kind.shape for kind in equation.shapes))


def _boxed(x: Any) -> Any:
    return bounding_box(x) if is_set(x) else x


def _carried(rule: Linear, equation: Equation, operands: list[Any]) -> Sequence[Ball]:
    """A ball stays one: the operation on its centre, and on its radius with the other terms left out."""
    ((k, ball),) = ((k, x) for k, x in enumerate(operands) if isinstance(x, Ball))
    others = [jnp.zeros_like(x) if i != k and rule.is_linear_in(i) else x for i, x in enumerate(operands)]
    centers = equation.apply(*operands[:k], ball.center, *operands[k + 1 :])
    radii = equation.apply(*others[:k], ball.radius, *others[k + 1 :])
    clips: list[Any] = [None] * len(centers)
    if ball.clip is not None:
        mask = [i == k for i in range(len(operands))]
        clips = list(_linear(rule, equation, [*operands[:k], ball.clip, *operands[k + 1 :]], mask))
    return [Ball(c, jnp.abs(r), ball.p, clip) for c, r, clip in zip(centers, radii, clips, strict=True)]


def _coefficient(rule: Coefficient, equation: Equation, operands: list[Any], mask: Sequence[bool]) -> Set:
    k = mask.index(True)
    x, weight = operands[k], operands[1 - k]

    def apply(value: Array, weight: Array) -> Array:
        pair = (value, weight) if k == 0 else (weight, value)
        return rule.apply(*pair, **equation.params) if rule.apply else equation.apply(*pair)[0]

    def through_box(box: Interval) -> Interval:
        if rule.carries:  # end by end, or a small one would be lost next to a large one
            first, last = (apply(end, weight) for end in box)
            return Interval(jnp.where(weight < 0, last, first), jnp.where(weight < 0, first, last))
        center, width = apply(midpoint(box), weight), apply(radius(box), jnp.abs(weight))
        return Interval(center - width, center + width)

    if isinstance(x, Interval):
        return through_box(x)
    if isinstance(x, SupportSet):
        through = image if rule.carries else image_box
        return through(x, lambda value: apply(value, weight), through_box(x.box))
    if _carries(rule, equation, operands, mask):
        clip = None if x.clip is None else through_box(x.clip)
        return Ball(apply(x.center, weight), apply(x.radius, jnp.abs(weight)), x.p, clip)
    if rule.carries:
        return through_box(bounding_box(x))
    if x.p == 1:
        pair = (x.radius, jnp.abs(weight))
        reach = rule.peak(*(pair if k == 0 else pair[::-1]), **equation.params) if rule.peak else None
    else:
        q = dual_exponent(x.p)
        size = jnp.abs(weight).astype(jnp.result_type(weight, x.radius))  # else the power rounds to the lower precision
        reach = root(apply(x.radius**q, size**q), q)
    if reach is None:
        return through_box(bounding_box(x))
    center = apply(x.center, weight)
    ball = Interval(center - reach, center + reach)
    return ball if x.clip is None else tightest(ball, through_box(bounding_box(x)))


# Public transforms.


def ibp(fn: Callable) -> Callable:
    """Turns a function into its interval bound propagation: sets in, the interval of every output out.

    Exact for one layer, loose but cheap (two forward passes) for many. With a spec the last linear layers are bounded
    together with it ("elision"), which is tighter.

    Args:
      fn: a JAX function of one example. Any leaf of its arguments may be a set when the bound function is called; all
        others are constants.

    Returns:
      `bound(*args, spec=None, **kwargs)`, a function of the arguments of `fn` that returns
      - without spec: an Interval for each array of fn's output, lower <= fn(x) <= upper;
      - with spec [S, *out] (a pytree like the output): lower bounds [S] of <spec[s], fn(x)>.
      Invalid numbers (NaN, lower > upper) become (-inf, inf).

    Raises:
      UnsupportedError: fn contains something without a rule, or a set where only constants may be.
      ValueError: no argument is a set, a set is invalid, or the spec has a wrong shape.

    Example:
      >>> def model(x):
      ...     return jnp.maximum(jnp.array([[1.0, -1.0], [2.0, 1.0]]) @ x, 0.0)
      >>> jaxbound.ibp(model)(jaxbound.linf_ball(jnp.array([0.5, 0.5]), 0.25))
      Interval(lower=Array([0.  , 0.75], dtype=float32), upper=Array([0.5 , 2.25], dtype=float32))

    References:
      Gowal et al. 2018, arXiv:1810.12715.
    """

    @functools.wraps(fn)
    def bound(*args: Any, spec: Any = None, **kwargs: Any) -> Any:
        problem = prepare(fn, args, kwargs)
        return interval_bounds(problem, propagate(problem.program, problem.sets), spec)

    return bound


def interval_bounds(problem: Problem, propagation: Propagation, spec: Any) -> Any:
    """The Intervals of the outputs, or with a spec the elided lower bounds of its rows."""
    if spec is not None:
        return _elided(problem, propagation, spec)
    boxes = [valid_interval(*box) for box in propagation.boxes(problem.program.outputs)]
    return jax.tree.unflatten(jax.tree.structure(problem.output), boxes)


def _elided(problem: Problem, propagation: Propagation, spec: Any) -> Array:
    """A linear bound run from the spec back to the last nonlinear results, concretised on their intervals."""
    tail, sets = linear_tail(problem, propagation)
    return lower_rows(tail, {}, sets, problem.rows(spec))


def linear_tail(problem: Problem, propagation: Propagation) -> tuple[Program, list[Set]]:
    """The equations after the last nonlinear results, and those results' sets."""
    program = problem.program
    tail = program.cone(program.outputs, propagation.cuts)
    values = [propagation.values[slot] for slot in tail.inputs]
    # A loop may have results that depend on no set.
    tail = tail.specialize([None if is_set(value) else value for value in values])
    return tail, [value for value in values if is_set(value)]


def layer_bounds(fn: Callable) -> Callable:
    """Turns a function into the intervals that its nonlinear operations meet (pre-activation bounds, by IBP).

    Args:
      fn: as for `ibp`.

    Returns:
      `layers(*args, spec=None, **kwargs)`, which returns a dictionary from a label "index operation file.py:line" (the
      user's source) to an Interval, in the order of evaluation; inside a loop stacked over its steps. With a spec
      [S, *out] it returns a pair: the lower bounds [S] that `ibp` has for the spec, and the dictionary, from one walk.

    Example:
      >>> layers = jaxbound.layer_bounds(jax.nn.relu)(jaxbound.linf_ball(jnp.array([0.5]), 0.25))
      >>> [label.split()[1] for label in layers], *layers.values()
      (['max'], Interval(lower=Array([0.25], dtype=float32), upper=Array([0.75], dtype=float32)))

    References:
      Shi et al. 2021, arXiv:2103.17268.
    """

    @functools.wraps(fn)
    def layers(*args: Any, spec: Any = None, **kwargs: Any) -> Any:
        problem = prepare(fn, args, kwargs)
        propagation = propagate(problem.program, problem.sets)
        boxes = dict(propagation.layers)
        return boxes if spec is None else (interval_bounds(problem, propagation, spec), boxes)

    return layers
