"""The forward walk: every array between two affine functions of the inputs.

The functions are kept as one row of coefficients for each input element, and a bias. A linear equation sends the pair
(L, U) to W+ L + W- U and its mirror image, where W+ and W- are the positive and negative parts of W: that is its
interval rule, which computes the same whatever the order of the ends. So forward mode is the interval walk over rows:
`jax.vmap` of the rule on the coefficients, which see no constants, and the rule itself on the bias. A nonlinear
equation puts the pair into its two lines.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxbound.bounds import lower_value
from jaxbound.methods.control import closed_results
from jaxbound.methods.interval import linear_image
from jaxbound.methods.problem import is_float, rule_of, rule_params
from jaxbound.methods.replay import Nodes
from jaxbound.program import Equation, Program, Scan, walk
from jaxbound.rules.registry import Coefficient, Enclosed, Linear, Nonlinear
from jaxbound.rules.relaxation import Relaxation
from jaxbound.sets import Array, Interval, Set, element


class AffinePair(NamedTuple):
    """Two affine functions of all N input elements, around every element of an array.

    Attributes:
      coeffs: [N, *shape] of the lower and of the upper function.
      bias: [*shape] of each. Unlike other Intervals these are not ordered: only the functions' values on the sets are.
        Where `lower` and `upper` are one object, the two functions are known to be the same.
    """

    coeffs: Interval
    bias: Interval


def identity(sets: Sequence[Set]) -> list[AffinePair]:
    """The inputs as functions of themselves."""
    arrays = [element(s) for s in sets]
    total, start, pairs = sum(x.size for x in arrays), 0, []
    for x in arrays:
        coeffs, bias = jnp.eye(total, x.size, -start, dtype=x.dtype).reshape(total, *x.shape), jnp.zeros_like(x)
        pairs.append(AffinePair(Interval(coeffs, coeffs), Interval(bias, bias)))
        start += x.size
    return pairs


def lowest(rows: Array, bias: Array, sets: Sequence[Set]) -> Array:
    """The lowest values [S] on the sets of affine functions with coefficients [S, N]."""
    coeffs, start = [], 0
    for shape in (element(s).shape for s in sets):
        stop = start + math.prod(shape)
        coeffs.append(rows[:, start:stop].reshape(rows.shape[0], *shape))
        start = stop
    return lower_value(coeffs, bias, list(sets))


def enclosure(pair: AffinePair, sets: Sequence[Set]) -> Interval:
    """The interval of an array between two affine functions."""
    shape = pair.bias.lower.shape

    def end(coeffs: Array, bias: Array) -> Array:
        return lowest(coeffs.reshape(coeffs.shape[0], bias.size).T, bias.ravel(), sets).reshape(shape)

    return Interval(end(pair.coeffs.lower, pair.bias.lower), -end(-pair.coeffs.upper, -pair.bias.upper))


def advance(program: Program, inputs: Sequence[AffinePair], relaxations: Nodes) -> Mapping[int, Any]:
    """Walks a program over pairs.

    Args:
      program: a specialised program.
      inputs: one for each input.
      relaxations: for every nonlinear equation in it.

    Returns:
      The pair of every slot, or its array where it depends on no input.
    """

    def handler(equation: Equation, operands: list[Any], mask: tuple[bool, ...]) -> Sequence[Any]:
        if equation.name == "scan":
            return _scan(equation, operands, mask, relaxations[equation.outputs[0]])
        state, pairs = relaxations.get(equation.outputs[0]), [x for x in operands if isinstance(x, AffinePair)]
        if isinstance(state, Mapping) or not any(map(is_float, equation.shapes)):
            closed = closed_results(equation, operands, mask)
            results = _constants(equation, state or {}, pairs[0].coeffs.lower.shape[0])
            return [closed.get(slot, x) for slot, x in zip(equation.outputs, results, strict=True)]
        rule = rule_of(equation, mask)
        if isinstance(rule, Nonlinear):
            return [_between_lines(rule, equation, pairs, relaxations[equation.outputs[0]])]
        assert not isinstance(rule, Enclosed)  # its state is a mapping
        return _linear(rule, equation, operands, mask)

    return walk(program, inputs, handler)


def _constants(equation: Equation, states: Nodes, count: int) -> list[Any]:
    """Results between constants; integers and booleans, through which no line goes, are nothing but their shape."""
    pairs = []
    for slot, shape in zip(equation.outputs, equation.shapes, strict=True):
        coeffs = jnp.zeros((count, *shape.shape), shape.dtype)
        ends = [side.intercept for side in states[slot]] if slot in states else [coeffs[0], coeffs[0]]
        pairs.append(AffinePair(Interval(coeffs, coeffs), Interval(*ends)))
    return pairs


def _linear(
    rule: Linear | Coefficient, equation: Equation, operands: list[Any], mask: tuple[bool, ...]
) -> Sequence[AffinePair]:
    """The interval rule on the bias, and on every row of coefficients with the constant terms left out."""
    pairs = [x for x, flag in zip(operands, mask, strict=True) if flag]
    # Up to the first nonlinear equation the two functions are one, and half of the work is enough.
    same = all(part.lower is part.upper for pair in pairs for part in pair)

    def image(others: Sequence[Any], parts: Sequence[Any]) -> Sequence[Any]:
        remaining = iter(parts)
        filled = [next(remaining) if flag else x for x, flag in zip(others, mask, strict=True)]
        return equation.apply(*filled) if same else linear_image(rule, equation, filled, mask)

    others = [
        jnp.zeros_like(x) if isinstance(rule, Linear) and not flag and rule.is_linear_in(k) else x
        for k, (x, flag) in enumerate(zip(operands, mask, strict=True))
    ]
    coeffs, bias = ([part.lower if same else part for part in parts] for parts in zip(*pairs, strict=True))
    rows, biases = jax.vmap(functools.partial(image, others))(coeffs), image(operands, bias)
    if isinstance(rule, Linear) and rule.offset:
        zeros = [
            jnp.zeros_like(x.bias.lower) if flag else other
            for x, other, flag in zip(operands, others, mask, strict=True)
        ]
        rows = [jax.tree.map(lambda x, c=c: x - c, row) for row, c in zip(rows, equation.apply(*zeros), strict=True)]
    if same:
        rows, biases = ([Interval(x, x) for x in values] for values in (rows, biases))
    return [AffinePair(*pair) for pair in zip(rows, biases, strict=True)]


def _between_lines(
    rule: Nonlinear, equation: Equation, pairs: Sequence[AffinePair], relaxation: Relaxation
) -> AffinePair:
    """Both lines of a relaxation: positive slopes keep the sides of their operands, negative ones swap them."""
    apply = functools.partial(rule.evaluate, **rule_params(equation))
    count = pairs[0].coeffs.lower.shape[0]
    pairs = [pair for pair in pairs if is_float(pair.bias.lower)]

    def image(parts: Sequence[Interval]) -> Interval:
        sides = []
        for k, (slopes, _) in enumerate(relaxation):
            rising, falling = rule.split(slopes)
            sides.append(apply(rising, *(part[k] for part in parts)) + apply(falling, *(part[1 - k] for part in parts)))
        return Interval(*sides)

    # An infinite bias, as masks have it, says nothing where it meets a slope, and is no 0 * inf where it meets none.
    finite = image([Interval(*(jnp.where(jnp.isinf(end), 0, end) for end in pair.bias)) for pair in pairs])
    missing = image([Interval(-_is_infinite(pair.bias.lower), _is_infinite(pair.bias.upper)) for pair in pairs])
    intercepts = (0 if side.intercept is None else side.intercept for side in relaxation)
    lower, upper = (x + c for x, c in zip(finite, intercepts, strict=True))
    bias = Interval(jnp.where(missing.lower < 0, -jnp.inf, lower), jnp.where(missing.upper > 0, jnp.inf, upper))
    if not pairs:
        flat = jnp.zeros((count, *bias.lower.shape), bias.lower.dtype)
        return AffinePair(Interval(flat, flat), bias)
    return AffinePair(jax.vmap(image)([pair.coeffs for pair in pairs]), bias)


def _is_infinite(x: Array) -> Array:
    return jnp.isinf(x).astype(x.dtype)


def _scan(equation: Equation, operands: list[Any], mask: Sequence[bool], relaxations: Nodes) -> Sequence[Any]:
    """A loop steps over pairs as it does over arrays, with the relaxations that the interval walk stacked."""
    scan = Scan.of(equation)
    flags, results_open = scan.open_inputs(mask), scan.open_outputs(mask)
    count = next(x.coeffs.lower.shape[0] for x, flag in zip(operands, mask, strict=True) if flag)
    consts, carries, slices = scan.split([_paired(x, flag, count) for x, flag in zip(operands, flags, strict=True)])

    def step(carry: list[Any], scanned: tuple[list[Any], Nodes]) -> tuple[list[Any], list[Any]]:
        slices, relaxations = scanned
        arguments = (*consts, *carry, *slices)
        body = scan.body.specialize([None if flag else x for x, flag in zip(arguments, flags, strict=True)])
        values = advance(body, [x for x, flag in zip(arguments, flags, strict=True) if flag], relaxations)
        outputs = [_paired(values[slot], flag, count) for slot, flag in zip(body.outputs, results_open, strict=True)]
        return outputs[: scan.num_carry], outputs[scan.num_carry :]

    scanned = ([_exchanged(x) for x in slices], dict(relaxations))
    carries, stacked = jax.lax.scan(step, carries, scanned, **scan.options)
    return [*carries, *map(_exchanged, stacked)]


def _paired(x: Any, is_open: bool, count: int) -> Any:
    """A constant as a pair, where a loop needs one."""
    if isinstance(x, AffinePair) or not is_open:
        return x
    x = jnp.asarray(x)
    coeffs = jnp.zeros((count, *x.shape), x.dtype)
    return AffinePair(Interval(coeffs, coeffs), Interval(x, x))


def _exchanged(x: Any) -> Any:
    """Puts a loop's steps before the rows, or the rows before the steps."""
    if not isinstance(x, AffinePair):
        return x
    return AffinePair(Interval(*(jnp.swapaxes(end, 0, 1) for end in x.coeffs)), x.bias)
