"""Branches, and loops whose number of steps is not part of the program."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxbound
from jaxbound.methods import control
from jaxbound.tracing import trace
from tests import soundness

W = soundness.weights(4, 4)
METHODS = {"ibp": jaxbound.ibp, "crown_ibp": jaxbound.crown_ibp}
ALL_METHODS = {**METHODS, "crown": jaxbound.crown, "lbp": jaxbound.lbp}

# Branches.

BRANCHES = {
    "cond": lambda x: lax.cond(x[0] > 0, lambda y: jnp.sin(y) + 2, lambda y: W @ y, x),
    "switch": lambda x: lax.switch(jnp.argmax(x), [jnp.sin, jnp.cos, lambda y: 2 * y, lambda y: y], x),
    "constants_and_operands": lambda x: lax.cond(x[1] < 0.3, lambda y: (y[::-1], 1.0), lambda y: (y, y[0]), x),
    "integers": lambda x: lax.cond(x[0] > 0, lambda: jnp.argmax(x), lambda: jnp.zeros((), int)).astype(float),
    "nested": lambda x: lax.cond(
        x[0] > 0, lambda y: lax.cond(y[1] > 0, jnp.sin, jnp.cos, y), lambda y: jax.nn.relu(W @ y), x
    ),
    "in_a_loop": lambda x: lax.fori_loop(
        0,
        3,
        lambda i, c: lax.cond(i % 2 == 0, jnp.tanh, lambda y: W @ y / 2, c) + lax.cond(c[0] > 0, lambda: c, lambda: -c),
        x,
    ),
}


@pytest.mark.parametrize("name", BRANCHES)
def test_branches_are_sound(name, double):
    methods = ALL_METHODS if name == "cond" else METHODS
    soundness.check(BRANCHES[name], *soundness.boxes(4)[:3], methods=methods)


def names(program):
    return [equation.name for equation in program.specialize([None] * len(program.inputs)).equations]


def branching(predicate):
    return lambda x: lax.cond(predicate, jnp.sin, lambda y: W @ y, x)


def test_only_the_branch_that_a_known_predicate_takes_is_left():
    x = jnp.ones(4)
    assert names(trace(branching(jnp.sum(x) > 0), (x,))[0]) == ["sin", "copy"]
    assert "dot_general" in names(trace(branching(jnp.sum(x) < 0), (x,))[0])


def assert_same(found, expected):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12), found, expected)


def test_a_predicate_known_at_run_time_selects_the_bounds_of_its_branch(double):
    box = soundness.boxes(4)[0]
    found = jax.jit(lambda p, b: [method(branching(p))(b) for method in METHODS.values()])
    expected = jax.jit(lambda fn, b: [method(fn)(b) for method in METHODS.values()], static_argnums=0)
    assert_same(found(True, box), expected(jnp.sin, box))
    assert_same(found(False, box), expected(lambda x: W @ x, box))


# Loops.


def halve_until(limit):
    """Its number of steps depends on the set."""
    return lambda x: lax.while_loop(lambda c: jnp.max(jnp.abs(c)) > limit, lambda c: 0.5 * c, x)


LOOPS = {
    "counter": lambda x: lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, jnp.tanh(W @ c[1])), (0, x))[1],
    "no_step": lambda x: lax.while_loop(lambda c: c[0] < 0, lambda c: (c[0] + 1, jnp.tanh(W @ c[1])), (0, x))[1],
    "halve": halve_until(0.3),
    "grow": lambda x: lax.while_loop(lambda c: c[0] < 2.0, lambda c: c + 1 + jnp.abs(c), x),
    "steps": lambda x: lax.fori_loop(0, jnp.argmax(x), lambda i, c: jnp.tanh(W @ c) + i, x),
    "contract": lambda x: lax.while_loop(lambda c: c[0] ** 2 > 1e-3, lambda c: 0.5 * jnp.tanh(c), x),
    "within_a_scan": lambda x: lax.scan(
        lambda c, y: (lax.while_loop(lambda v: jnp.sum(v * v) > y * y + 1, lambda v: v / 2, c), c[0]), x, x
    ),
}


@pytest.mark.parametrize("name", LOOPS)
def test_loops_are_sound(name, double):
    methods = ALL_METHODS if name in ("counter", "halve") else METHODS
    soundness.check(LOOPS[name], *soundness.boxes(4)[:3], methods=methods)


def of_steps(steps, x):
    return lax.fori_loop(0, steps, lambda i, c: jnp.tanh(W @ c + i), x)


def test_a_loop_whose_steps_are_known_when_it_is_traced_is_a_scan(double):
    box = soundness.boxes(4)[0]
    assert names(trace(functools.partial(of_steps, jnp.array(3)), (box.lower,))[0]) == ["scan"]

    def counted(x):
        return lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, jnp.tanh(W @ c[1] + c[0])), (0, x))[1]

    for method in METHODS.values():
        assert_same(jax.jit(method(counted))(box), jax.jit(method(functools.partial(of_steps, 3)))(box))


def test_a_number_of_steps_known_at_run_time(double):
    box = soundness.boxes(4)[0]
    found, linear = jax.jit(jaxbound.ibp(of_steps)), jax.jit(jaxbound.crown_ibp(of_steps))
    for steps in (0, 4):
        expected = jax.jit(jaxbound.ibp(functools.partial(of_steps, steps)))(box)
        assert_same(found(steps, box), expected)
        assert_same(linear(steps, box), expected)


def test_results_of_a_loop_that_depend_on_no_set_are_constants(double):
    def fn(steps, x):
        step = lambda c: (c[0] + 1, 2 * c[1], jnp.tanh(W @ c[2]))  # noqa: E731
        count, power, y = lax.while_loop(lambda c: c[0] < steps, step, (0, jnp.ones(()), x))
        return y + power * x + count

    box = soundness.boxes(4)[0]
    for method in ALL_METHODS.values():
        lower, upper = jax.jit(method(fn))(3, box)
        # y lies between -1 and 1.
        assert (lower >= 8 * box.lower + 2 - 1e-9).all() and (upper <= 8 * box.upper + 4 + 1e-9).all()
        middle = fn(3, jaxbound.midpoint(box))
        assert (lower <= middle).all() and (middle <= upper).all()


def test_a_loop_that_does_not_settle_has_no_bounds(monkeypatch):
    monkeypatch.setattr(control, "_MOST_STEPS", 20)
    box = jaxbound.Interval(jnp.array([1.0]), jnp.array([2.0]))

    def newton(x):
        return lax.while_loop(lambda c: jnp.abs(c[0] * c[0] - x[0]) > 1e-6, lambda c: c - (c * c - x) / 4, x)

    for method in (jaxbound.ibp, jaxbound.crown_ibp):
        lower, upper = method(newton)(box)
        assert (lower == -jnp.inf).all() and (upper == jnp.inf).all()
        with_integers = method(
            lambda x: lax.while_loop(lambda c: c[1] > 0, lambda c: (c[0] + 1, c[1]), (0, x[0]))[0] * 1.0
        )
        assert with_integers(box) == (-(2.0**31), 2.0**31)


def test_a_step_back_into_the_state_ends_the_loop():
    # The predicate stays open for ever, but all later values lie between 0 and the first.
    lower, upper = jaxbound.ibp(halve_until(0.0))(jaxbound.Interval(jnp.array([0.0]), jnp.array([1.0])))
    assert (lower, upper) == (0, 1)


def test_batches_of_sets():
    boxes = soundness.box(np.linspace(-1, 1, 12).reshape(3, 4), 0.2)
    for fn in (BRANCHES["cond"], LOOPS["halve"]):
        bound = jaxbound.crown_ibp(fn)
        one = jax.jit(bound)
        expected = [one(jax.tree.map(lambda end, k=k: end[k], boxes)) for k in range(3)]
        np.testing.assert_allclose(jax.jit(jax.vmap(bound))(boxes), np.swapaxes(expected, 0, 1), rtol=1e-5, atol=1e-6)
