"""What a primitive is: the kinds of rules, their lookup, and the error for what has none."""

import dataclasses
import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxbound.rules.relaxation import Relaxation
from jaxbound.sets import Array, Interval


class UnsupportedError(TypeError):
    """A function contains something that jaxbound cannot bound. Says what, where in the user's code, what to do."""


class Floats(NamedTuple):
    """Whether all operands that depend on a set, and all results, are floating point numbers."""

    operands: bool = True
    results: bool = True


ALL_FLOATS = Floats()


@dataclasses.dataclass(frozen=True)
class Linear:
    """Jointly linear in the operands that may be sets; everything else is derived.

    Attributes:
      operands: positions that may depend on a set; None for all. A constant in one of them is part of the bias.
      signs: +1 where the function grows with an operand, -1 where it falls; one for all, or one for each operand.
      carries: every result is a constant plus a multiple of one element, and no element is read twice: the image of
        an l_p ball under it is again one.
      offset: the constant part of the result is more, or less, than what its constant operands say: a gather fills in
        a parameter, a select leaves out what may be NaN.
      moves: results are elements of the operands as they are, so these may be booleans and integers too.
    """

    operands: tuple[int, ...] | None = None
    signs: tuple[int, ...] = (1,)
    carries: bool = False
    offset: bool = False
    moves: bool = False

    def accepts(self, mask: Sequence[bool]) -> bool:
        """Whether exactly the marked operands may be sets."""
        return _among(self.operands, mask)

    def suits(self, floats: Floats) -> bool:
        """Whether operands and results of these types are in its reach."""
        return self.moves or all(floats)

    def is_linear_in(self, position: int) -> bool:
        """Whether an operand is one of those that may be sets."""
        return self.operands is None or position in self.operands

    def sign(self, position: int) -> int:
        """The sign of an operand."""
        return self.signs[min(position, len(self.signs) - 1)]


@dataclasses.dataclass(frozen=True)
class Coefficient:
    """Linear in exactly one operand that is a set, with the other operand (a constant) as coefficients.

    Attributes:
      operands: positions that may be the set.
      carries: as for `Linear`: an elementwise scaling.
      apply: computes the same as the primitive, called with its parameters; None for the primitive itself.
      apply_to_transpose: the same, in the form whose transpose with respect to operand 0 is fast; not differentiated.
      peak: (x, y, **params) -> the largest, rather than the sum, of the nonnegative products that make each result;
        None if unknown. It takes l_1 balls through the operation exactly.
    """

    operands: tuple[int, ...] = (0, 1)
    carries: bool = False
    apply: Callable[..., Array] | None = None
    apply_to_transpose: Callable[..., Array] | None = None
    peak: Callable[..., Array | None] | None = None

    def accepts(self, mask: Sequence[bool]) -> bool:
        """Whether exactly the marked operands may be sets."""
        return sum(mask) == 1 and list(mask).index(True) in self.operands

    def suits(self, floats: Floats) -> bool:
        """Whether operands and results of these types are in its reach."""
        return all(floats)


def elementwise(slopes: Sequence[Array], *operands: Array, **_: Any) -> Array:
    """How most rules read the slopes of an `Affine`: sum_i slopes[i] * operands[i], 0 where there are none."""
    if not slopes:
        return 0.0
    return functools.reduce(operator.add, (s * x for s, x in zip(slopes, operands, strict=True)))


def by_sign(slopes: Sequence[Array]) -> tuple[Sequence[Array], Sequence[Array]]:
    """How most rules split slopes into those through which the result grows with the operands, and falls."""
    return tuple(jnp.maximum(s, 0) for s in slopes), tuple(jnp.minimum(s, 0) for s in slopes)


@dataclasses.dataclass(frozen=True)
class Nonlinear:
    """Anything else: an interval function and a relaxation.

    Attributes:
      interval: (*operands, **params) -> Interval, where operands that depend on a set are Intervals.
      relax: (*operands, relu, free=None, **params) -> Relaxation with one slope for each operand that is a set of
        floats; `free` is a `Freedom` to use instead of the rule's own choice of lines.
      operands: positions that may be sets; None for all.
      evaluate: (slopes, *set_operands, **params) -> the linear part of one side of the relaxation.
      freedom: (*operands, **params) -> the shape of both sides of `free`, or a `Freedom` of two shapes; None for that
        of the result.
      split: slopes -> two such, which sum to them: the nonnegative and the nonpositive part, in any form that
        `evaluate` reads.
    """

    interval: Callable[..., Interval]
    relax: Callable[..., Relaxation]
    operands: tuple[int, ...] | None = None
    evaluate: Callable[..., Array] = elementwise
    freedom: Callable[..., Any] | None = None
    split: Callable[[Any], tuple[Any, Any]] = by_sign

    def accepts(self, mask: Sequence[bool]) -> bool:
        """Whether exactly the marked operands may be sets."""
        return _among(self.operands, mask)

    def suits(self, floats: Floats) -> bool:
        """Whether operands and results of these types are in its reach."""
        return floats.results


@dataclasses.dataclass(frozen=True)
class Enclosed:
    """Known by intervals alone: to linear bounds every result is a constant between two ends.

    The kind for decisions and all that hangs on them: operands and results may be booleans and integers that depend on
    a set. Their Interval says that any value between both ends may occur; [False, True] is an open decision.

    Attributes:
      interval: (*operands, **params) -> Interval, or a list of them where there are several results. Operands that
        depend on a set are Intervals with ordered ends; what is unknown reaches from end to end of its type.
      operands: positions that may be sets; None for all.
    """

    interval: Callable[..., Interval | list[Interval]]
    operands: tuple[int, ...] | None = None

    def accepts(self, mask: Sequence[bool]) -> bool:
        """Whether exactly the marked operands may be sets."""
        return _among(self.operands, mask)

    def suits(self, floats: Floats) -> bool:
        """Whether operands and results of these types are in its reach."""
        del floats
        return True


def _among(operands: tuple[int, ...] | None, mask: Sequence[bool]) -> bool:
    """Whether all marked positions are among the operands."""
    return operands is None or all(k in operands for k, is_set in enumerate(mask) if is_set)


Rule = Linear | Coefficient | Nonlinear | Enclosed

_RULES: dict[str, tuple[Rule, ...]] = {}
_REASONS: dict[str, str] = {}


def register(name: str, *rules: Rule) -> None:
    """Declares a primitive: the first rule that accepts which operands are sets is used.

    Raises:
      ValueError: the primitive is declared already.
    """
    if name in _RULES or name in _REASONS:
        raise ValueError(f"primitive {name!r} has a rule already")
    _RULES[name] = rules


def refuse(names: str, reason: str) -> None:
    """Gives the primitives (separated by blanks) a better reason for having no rule."""
    known = [name for name in names.split() if name in _RULES or name in _REASONS]
    if known:
        raise ValueError(f"primitive {known[0]!r} has a rule already")
    _REASONS.update(dict.fromkeys(names.split(), reason))


def registered() -> tuple[str, ...]:
    """Names of all primitives that have a rule."""
    return tuple(sorted(_RULES))


def refused() -> dict[str, str]:
    """Primitives that are known to have no rule, and why."""
    return dict(sorted(_REASONS.items()))


def lookup(name: str, mask: Sequence[bool], source: str = "", floats: Floats = ALL_FLOATS) -> Rule:
    """The rule of a primitive for the given operands.

    Raises:
      UnsupportedError: there is none.
    """
    candidates = _RULES.get(name, ())
    fitting = [rule for rule in candidates if rule.accepts(mask)]
    for rule in fitting:
        if rule.suits(floats):
            return rule
    place = f" at {source}" if source else ""
    if fitting:
        raise UnsupportedError(
            f"{name!r}{place}: there is no rule for integers or booleans that depend on a set of inputs. Keep such "
            f"values floating point, or compute it from arguments that are not sets."
        )
    if candidates:
        allowed = {k for rule in candidates for k in (rule.operands or ())}
        wrong = [k for k, is_set in enumerate(mask) if is_set and k not in allowed] or list(range(len(mask)))
        raise UnsupportedError(
            f"{name!r}{place}: operand {', '.join(map(str, wrong))} depends on a set of inputs, but only constants can "
            f"stand there (an index, a bound or a padding). Compute it from arguments that are not sets."
        )
    reason = _REASONS.get(name, "jaxbound has no rule for this primitive.")
    raise UnsupportedError(
        f"cannot bound {name!r}{place} by any method: {reason} To give the function around it a rule of its own, wrap "
        f"that function with jaxbound.atomic(fn, rule)."
    )
