"""What every method starts from and ends with: a function and sets become a program, numbers become valid bounds."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxbound.methods.composites import recognized
from jaxbound.methods.patterns import with_leaky_relus
from jaxbound.program import Equation, Program
from jaxbound.rules.activations import named
from jaxbound.rules.discrete import where_known
from jaxbound.rules.registry import Floats, Rule, UnsupportedError, lookup
from jaxbound.sameness import same_program
from jaxbound.sets import Array, Ball, Interval, Set, SupportSet, element, is_set
from jaxbound.support import checked_support
from jaxbound.tracing import flatten, trace

_RULE = "jaxbound_rule"


@dataclasses.dataclass(frozen=True)
class Problem:
    """A function with sets among its arguments.

    Attributes:
      program: what depends on the sets; its inputs are the sets' arrays.
      sets: one for each input of the program.
      output: shapes of the function's output, a pytree.
      arguments: tree of all arguments, with sets as leaves.
      positions: which leaves of the arguments are sets.
      single: whether the function has one positional argument only.
    """

    program: Program
    sets: list[Set]
    output: Any
    arguments: Any
    positions: tuple[int, ...]
    single: bool

    def like_arguments(self, arrays: Sequence[Array]) -> Any:
        """Arranges one array per set as the arguments are, None elsewhere."""
        leaves = [None] * self.arguments.num_leaves
        for position, array in zip(self.positions, arrays, strict=True):
            leaves[position] = array
        args, _ = jax.tree.unflatten(self.arguments, leaves)
        return args[0] if self.single else args

    def cone(self, slot: int) -> tuple[Program, list[Set]]:
        """What leads to a value, and the sets that it depends on."""
        cone, sets = self.program.cone([slot]), dict(zip(self.program.inputs, self.sets, strict=True))
        return cone, [sets[k] for k in cone.inputs]

    def rows(self, spec: Any) -> list[Array]:
        """The spec as one array [S, *out] for each output leaf.

        Raises:
          ValueError: its structure or a shape does not fit the function's output.
        """
        leaves, tree = jax.tree.flatten(spec)
        shapes, expected = jax.tree.flatten(self.output)
        if tree != expected:
            raise ValueError(f"spec must have the structure of the function's output, {expected}; it has {tree}")
        for leaf, shape in zip(leaves, shapes, strict=True):
            if jnp.shape(leaf)[1:] != shape.shape or jnp.ndim(leaf) != len(shape.shape) + 1:
                raise ValueError(
                    f"spec must have the shape [S, *output] = [S, {', '.join(map(str, shape.shape))}], got "
                    f"{list(jnp.shape(leaf))}: a row for each functional of the output of ONE example. If the "
                    f"function maps a batch, wrap it by jaxbound.per_example and batch the bounds by jax.vmap."
                )
        return [jnp.asarray(leaf, shape.dtype) for leaf, shape in zip(leaves, shapes, strict=True)]


def prepare(fn: Callable, args: tuple, kwargs: Mapping[str, Any]) -> Problem:
    """Traces fn with respect to the sets among its arguments; everything else is a constant.

    Raises:
      ValueError: there is no set, or one is invalid.
      TypeError: a set of integers, or an output that is not a pytree of float arrays.
    """
    leaves, arguments = jax.tree.flatten((args, dict(kwargs)), is_leaf=is_set)
    positions = tuple(k for k, leaf in enumerate(leaves) if is_set(leaf))
    if not positions:
        raise ValueError(
            "no argument is a set: pass an Interval, a Ball or a SupportSet (jaxbound.linf_ball(x, eps)) for the input"
        )
    sets = [_validated(leaves[k]) for k in positions]

    def of_sets(*inputs: Array) -> Any:
        filled = list(leaves)
        for position, value in zip(positions, inputs, strict=True):
            filled[position] = value
        args, kwargs = jax.tree.unflatten(arguments, filled)
        return fn(*args, **kwargs)

    inputs = [element(s) for s in sets]
    try:
        program, output = trace(of_sets, inputs, _recognize)
    except Exception as error:
        shapes = ", ".join(str(jnp.shape(x)) for x in inputs)
        error.add_note(
            f"jaxbound traced the function on ONE example, with sets of shape {shapes}. If it expects a leading batch "
            f"axis, wrap it: jaxbound.per_example(fn)."
        )
        raise
    for shape in jax.tree.leaves(output):
        if not jnp.issubdtype(shape.dtype, jnp.floating):
            raise TypeError(f"the function must return a pytree of float arrays to be bounded, got {shape.dtype}")
    program = recognized(program, _recognize).specialize([None] * len(inputs))
    program = with_leaky_relus(program, _RULE)
    single = len(args) == 1 and not kwargs
    return Problem(program, sets, output, arguments, positions, single)


def _validated(region: Set) -> Set:
    """Raises on what is known to be invalid; what is only known at run time becomes NaN, its bounds infinite."""
    if isinstance(region, SupportSet):
        return dataclasses.replace(checked_support(region), box=_validated(region.box))
    if isinstance(region, Ball) and not region.p >= 1:
        raise ValueError(f"the p of an l_p ball must be at least 1, got {region.p}")
    if isinstance(region, Ball) and jnp.shape(region.radius) not in ((), region.shape):
        raise ValueError(
            f"center and radius of a ball must have one shape, got {region.shape} and {jnp.shape(region.radius)}"
        )
    box = region if isinstance(region, Interval) else Interval(region.center, region.center + region.radius)
    lower, upper = jnp.asarray(box.lower), jnp.asarray(box.upper)
    if not (jnp.issubdtype(lower.dtype, jnp.floating) and jnp.issubdtype(upper.dtype, jnp.floating)):
        raise TypeError(f"a set must hold floats, got {lower.dtype}: integers (labels, indices) can only be constants")
    if lower.shape != upper.shape:
        raise ValueError(f"lower and upper of a set must have one shape, got {lower.shape} and {upper.shape}")
    lower, upper = (end.astype(jnp.result_type(lower, upper)) for end in (lower, upper))
    if not any(isinstance(end, Tracer) for end in (lower, upper)):
        _refuse_invalid(np.asarray(lower), np.asarray(upper), region)
    valid = lower <= upper
    if isinstance(region, Ball):
        return dataclasses.replace(
            region, radius=jnp.where(valid, jnp.broadcast_to(region.radius, lower.shape), jnp.nan)
        )
    return Interval(jnp.where(valid, lower, jnp.nan), jnp.where(valid, upper, jnp.nan))


def _refuse_invalid(lower: np.ndarray, upper: np.ndarray, region: Set) -> None:
    if np.isnan(lower).any() or np.isnan(upper).any():
        raise ValueError("a set has NaN in it; it would bound nothing")
    crossed = int((lower > upper).sum())
    if crossed:
        kind = "lower > upper" if isinstance(region, Interval) else "a negative radius"
        raise ValueError(f"a set is empty: it has {kind} at {crossed} of its {lower.size} elements")


def _recognize(name: str, inner: Any, operands: Sequence[jax.ShapeDtypeStruct]) -> Mapping[str, Any] | None:
    """The rule of a named activation whose program is the reference's."""
    known = named(name)
    if known is None:
        return None
    try:
        template = jax.make_jaxpr(known.reference)(*operands)
    except TypeError:  # a call of this name with other operands is not the one we know
        return None
    if not all(map(is_float, template.out_avals)):
        return None
    return {_RULE: known.rule} if same_program(flatten(inner), flatten(template)) else None


def rule_of(equation: Equation, mask: Sequence[bool]) -> Rule:
    """The rule of an equation with these operands open.

    Raises:
      UnsupportedError: there is none.
    """
    own = equation.params.get(_RULE)
    if own is not None and own.accepts(mask):
        return own
    touched = [*(kind for kind, flag in zip(equation.types, mask, strict=True) if flag), *equation.shapes]
    if any(jnp.issubdtype(kind.dtype, jnp.complexfloating) for kind in touched):
        raise UnsupportedError(
            f"cannot bound {equation.name!r} at {equation.source} by any method: complex numbers have no order, so no "
            f"bounds. Write the function with real numbers (a discrete Fourier transform is two real matrix products)."
        )
    count = len(touched) - len(equation.shapes)
    floats = Floats(all(map(is_float, touched[:count])), all(map(is_float, equation.shapes)))
    return lookup(equation.name, mask, equation.source, floats)


def is_float(x: Any) -> bool:
    """Whether an array, or its shape and type, is of floating point numbers."""
    return jnp.issubdtype(getattr(x, "dtype", None) or jnp.result_type(x), jnp.floating)


def rule_params(equation: Equation) -> dict[str, Any]:
    """The parameters that an equation's rule is called with."""
    return {name: value for name, value in equation.params.items() if name != _RULE}


def valid_interval(lower: Array, upper: Array) -> Interval:
    """Turns invalid numbers into (-inf, inf): NaN, or lower > upper by more than rounding.

    Ends that cross by rounding alone (both are right to that precision) change places. Integers and booleans have all
    values of their type where they cross.
    """
    valid = is_valid(lower, upper)
    if not is_float(lower):
        return where_known(valid, Interval(lower, upper))
    low, high = jnp.minimum(lower, upper), jnp.maximum(lower, upper)
    return Interval(jnp.where(valid, low, -jnp.inf), jnp.where(valid, high, jnp.inf))


def is_valid(lower: Array, upper: Array) -> Array:
    """Whether lower <= upper, up to rounding if they are floating point numbers."""
    if not is_float(lower):
        return lower <= upper
    slack = 1024 * jnp.finfo(lower.dtype).eps * (1 + jnp.abs(lower) + jnp.abs(upper))
    return lower - upper <= jnp.where(jnp.isfinite(slack), slack, 0)


def narrowed(box: Interval, found: Interval) -> Interval:
    """The interval of an operand once another bound is combined with its own: what a mask hides remains infinite."""
    hidden = (box.lower == box.upper) & jnp.isinf(box.lower)
    return Interval(*(jnp.where(hidden, end, x) for end, x in zip(box, valid_interval(*found), strict=True)))


def valid_lower(lower: Array) -> Array:
    """Turns NaN into -inf, and +inf as well: no bound, but coefficients that have overflowed."""
    return jnp.where(lower < jnp.inf, lower, -jnp.inf)
