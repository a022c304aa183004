import jax.numpy as jnp
import pytest
from jax import lax

import jaxbound
from jaxbound.rules import registry
from jaxbound.rules.curves import convex
from jaxbound.rules.registry import (
    Coefficient,
    Enclosed,
    Floats,
    Linear,
    Nonlinear,
    lookup,
    refuse,
    register,
    registered,
)
from jaxbound.rules.smooth import decreasing
from tests import soundness


@pytest.fixture
def scratch(monkeypatch):
    """A registry that a test may add to."""
    monkeypatch.setattr(registry, "_RULES", dict(registry._RULES))
    monkeypatch.setattr(registry, "_REASONS", dict(registry._REASONS))


def test_a_primitive_declared_twice_leaves_the_registry_as_it_was(scratch):
    before, rule = registered(), lookup("add", [True, False])
    for declare in (lambda: register("add", Linear((0,))), lambda: refuse("brand_new add", "no reason")):
        with pytest.raises(ValueError, match="'add' has a rule already"):
            declare()
    with pytest.raises(ValueError, match="'cholesky' has a rule already"):
        register("cholesky", Linear())
    with pytest.raises(jaxbound.UnsupportedError, match="factorising"):
        lookup("cholesky", [True])
    assert registered() == before and lookup("add", [True, False]) is rule


def test_every_name_is_in_order_and_once():
    assert list(registered()) == sorted(set(registered()))
    assert {"add", "dot_general", "max", "tanh"} <= set(registered())


def test_one_registration_serves_every_method(scratch, double):
    def fn(x):
        return soundness.weights(4, 4) @ lax.bessel_i0e(4 + jnp.tanh(x))

    box = soundness.boxes(4)[0]
    for make in soundness.METHODS.values():
        with pytest.raises(jaxbound.UnsupportedError, match="cannot bound 'bessel_i0e'"):
            make(fn)(box)
    register("bessel_i0e", decreasing(lax.bessel_i0e, convex))
    soundness.check(fn, box)


def test_the_first_rule_that_accepts_is_used(scratch):
    first, second = Coefficient((0,)), Linear()
    register("new", first, second)
    assert lookup("new", [True, False]) is first
    assert lookup("new", [False, True]) is second and lookup("new", [True, True]) is second


@pytest.mark.parametrize(
    "rule, accepted, refused",
    [
        (Linear(), [(1, 0), (0, 1), (1, 1)], []),
        (Linear((0, 2)), [(1, 0, 0), (0, 0, 1), (1, 0, 1)], [(0, 1, 0), (1, 1, 0)]),
        (Coefficient(), [(1, 0), (0, 1)], [(1, 1)]),
        (Coefficient((0,)), [(1, 0)], [(0, 1), (1, 1)]),
        (Nonlinear(min, min), [(1,), (1, 1)], []),
        (Nonlinear(min, min, (1,)), [(0, 1, 0)], [(1, 0, 0), (1, 1, 0)]),
    ],
)
def test_which_operands_may_be_sets(rule, accepted, refused, scratch):
    register("new", rule)
    for mask in accepted:
        assert lookup("new", [bool(flag) for flag in mask]) is rule
    for mask in refused:
        with pytest.raises(jaxbound.UnsupportedError, match="only constants can stand there"):
            lookup("new", [bool(flag) for flag in mask])


def test_which_types_a_rule_is_for(scratch):
    moves, adds, bends, decides = Linear(moves=True), Linear(), Nonlinear(min, min), Enclosed(min)
    register("moves", moves)
    register("decides", adds, bends, decides)
    from_integers, to_integers, of_integers = Floats(operands=False), Floats(results=False), Floats(False, False)
    assert lookup("moves", [True], floats=of_integers) is moves
    assert lookup("decides", [True]) is adds
    assert lookup("decides", [True], floats=from_integers) is bends
    assert lookup("decides", [True], floats=to_integers) is decides
    register("floats_only", Coefficient(), bends)
    with pytest.raises(jaxbound.UnsupportedError, match="'floats_only' at model.py:7: there is no rule for integers"):
        lookup("floats_only", [True], "model.py:7", of_integers)


def test_signs_of_the_operands():
    assert [Linear().sign(k) for k in range(3)] == [1, 1, 1]
    assert [Linear(signs=(1, -1)).sign(k) for k in range(2)] == [1, -1]
    assert Linear((0, 2)).is_linear_in(2) and not Linear((0, 2)).is_linear_in(1) and Linear().is_linear_in(7)


def test_errors_say_what_where_and_what_to_do(scratch):
    register("new", Linear((0,)))
    refuse("old older", "it is old.")
    with pytest.raises(jaxbound.UnsupportedError, match=r"'new' at model.py:7: operand 1, 2 depends on a set"):
        lookup("new", [True, True, True], "model.py:7")
    for name in ("old", "older"):
        with pytest.raises(
            jaxbound.UnsupportedError, match=rf"'{name}' at model.py:7 by any .* it is old\. .*jaxbound\.atomic"
        ):
            lookup(name, [True], "model.py:7")
    with pytest.raises(jaxbound.UnsupportedError, match=r"cannot bound 'unknown' by any method: jaxbound has no"):
        lookup("unknown", [True])
    assert issubclass(jaxbound.UnsupportedError, TypeError)
