"""Which units are bounded by backward passes: not those whose lines are decided by intervals already."""

from collections.abc import Callable

from jaxbound import relax
from jaxbound.methods.nodes import Node
from jaxbound.methods.problem import rule_of, rule_params
from jaxbound.program import LOOPS, Equation, Program
from jaxbound.rules.registry import Coefficient, Linear, Nonlinear
from jaxbound.rules.relaxation import open_elements
from jaxbound.sets import Array, Interval

# (program, slot, its interval bounds, strategy for ReLUs) -> which of its elements; None for all.
UnitStrategy = Callable[[Program, int, Interval, relax.ReluStrategy], Array | None]


def every_unit(program: Program, slot: int, box: Interval, relu: relax.ReluStrategy) -> None:
    """Every neuron gets bounds by backward passes: a strategy for the `units` of `jaxbound.crown`."""
    del program, slot, box, relu


def unstable_units(program: Program, slot: int, box: Interval, relu: relax.ReluStrategy) -> Array | None:
    """Neurons of which intervals do not know already that they are stable, as ReLUs are on one side of the bend.

    A strategy for the `units` of `jaxbound.crown`. The lines of a stable unit are its function, whatever its bounds, so
    bounds by lines are those of `every_unit`; where an interval is the tighter of both, it may be a little wider. How
    many rows go backwards is decided when the program runs, so there is no derivative in reverse mode; in a batch
    (`jax.vmap`) the example with the most of them decides.
    """
    is_open, found = program.open_slots(), None
    for equation in program.equations:
        if slot not in equation.inputs or _is_linear(equation, is_open):
            continue
        unstable = _unstable(equation, slot, box, relu, program)
        if unstable is None:
            return None
        found = unstable if found is None else found | unstable
    return found


def _is_linear(equation: Equation, is_open: frozenset[int]) -> bool:
    if equation.name in LOOPS:
        return False
    return isinstance(rule_of(equation, [slot in is_open for slot in equation.inputs]), Linear | Coefficient)


def _unstable(equation: Equation, slot: int, box: Interval, relu: relax.ReluStrategy, program: Program) -> Array | None:
    """Where an equation's two lines differ, if it takes a slot and constants; None where that is not known."""
    others = [k for k in equation.inputs if k != slot]
    if equation.name in LOOPS or any(k not in program.constants for k in others):
        return None
    rule = rule_of(equation, [k == slot for k in equation.inputs])
    if not isinstance(rule, Nonlinear):
        return None
    operands = [box if k == slot else program.constants[k] for k in equation.inputs]
    result = rule.interval(*operands, **rule_params(equation))
    unstable = open_elements(Node(rule, equation, operands, result, "").lines(relu))
    return unstable if unstable is not None and unstable.shape == box.lower.shape else None
