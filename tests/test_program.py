import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxbound
from jaxbound.program import Scan, walk
from jaxbound.sameness import same_program
from jaxbound.tracing import trace

X, W = jnp.array([0.5, -1.0, 2.0]), jnp.array([[1.0, 2.0, 0.0], [0.0, -1.0, 1.0], [3.0, 0.0, 1.0]])


def program_of(fn, *args):
    return trace(fn, args or (X,))[0]


def evaluate(program, *inputs):
    """A program's outputs, by a walk that only applies the equations."""
    program = program.specialize([None] * len(program.inputs))
    values = walk(program, inputs, lambda equation, operands, mask: equation.apply(*operands))
    return [values[slot] for slot in program.outputs]


def names(program):
    return [equation.name for equation in program.equations]


def line_of(pattern):
    """file.py:number of the line in this file that matches."""
    lines = pathlib.Path(__file__).read_text(encoding="utf-8").splitlines()
    (number,) = (k for k, line in enumerate(lines, 1) if re.search(pattern, line))
    return f"{__file__}:{number}"


def body(x):
    return jnp.tanh(x) * 2


@jax.custom_jvp
def with_jvp(x):
    return body(x)


with_jvp.defjvp(lambda primals, tangents: (body(*primals), tangents[0] * 0))


@jax.custom_vjp
def with_vjp(x):
    return body(x)


with_vjp.defvjp(lambda x: (body(x), None), lambda residual, ct: (ct * 0,))

CALLS = {
    "jit": jax.jit(body),
    "nested_jit": jax.jit(lambda x: jax.jit(body)(x)),
    "custom_jvp": with_jvp,
    "custom_vjp": with_vjp,
    "checkpoint": jax.checkpoint(body),
    "jit_of_checkpoint": jax.jit(jax.checkpoint(body)),
    "vmap": jax.vmap(jax.jit(body)),
    "vmap_of_custom_vjp": jax.vmap(with_vjp),
    "closure": lambda x: jax.jit(lambda y: jnp.tanh(x) + 0 * y)(x) * 2,
}


@pytest.mark.parametrize("name", CALLS)
def test_calls_are_inlined(name):
    program = program_of(CALLS[name])
    assert set(names(program)) <= {"tanh", "mul", "add"}
    np.testing.assert_allclose(evaluate(program, X)[0], body(X), rtol=1e-6)


def test_a_call_made_twice_is_inlined_twice():
    inner = jax.jit(body)
    program = program_of(lambda x: inner(inner(x)) + inner(-x))
    assert names(program).count("tanh") == 3
    np.testing.assert_allclose(evaluate(program, X)[0], body(body(X)) + body(-X), rtol=1e-6)


def test_pytrees_and_constants_among_the_outputs():
    program, shape = trace(lambda x: {"a": x, "b": (jnp.ones(2), x.sum())}, (X,))
    assert jax.tree.map(lambda leaf: leaf.shape, shape) == {"a": (3,), "b": ((2,), ())}
    for found, expected in zip(evaluate(program, X), (X, jnp.ones(2), X.sum()), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_loop_stays_one_equation_with_a_flat_body():
    def step(carry, w):
        carry = jax.jit(body)(carry * w)
        return carry, carry + X

    def fn(x):
        return lax.scan(step, x, W, reverse=True)

    program = program_of(fn)
    assert names(program) == ["scan"]
    scan = Scan.of(program.equations[0])
    assert (scan.num_carry, len(scan.body.inputs)) == (1, scan.num_consts + 2)
    assert set(names(scan.body)) == {"mul", "tanh", "add"} and scan.options["reverse"]
    for found, expected in zip(evaluate(program, X), fn(X), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_recognised_calls_stay_whole():
    def recognize(name, inner, operands):
        return {"kept": operands[0].shape} if name == "body" else None

    def fn(x):
        return jax.jit(lambda y: jax.jit(body)(y) + 1)(x)

    program, _ = trace(fn, (X,), recognize)
    assert names(program) == ["body", "add"] and program.equations[0].params == {"kept": (3,)}
    np.testing.assert_allclose(evaluate(program, X)[0], fn(X), rtol=1e-6)


def test_copies_that_read_nothing_twice_are_told_from_broadcasts():
    assert names(program_of(lambda x: x[:, None])) == ["expand_dims"]
    assert names(program_of(lambda x: jnp.broadcast_to(x[:, None], (3, 2))))[-1] == "broadcast_in_dim"


def test_a_product_with_itself_is_a_square():
    assert names(program_of(lambda x: x * x)) == ["square"]
    assert names(program_of(lambda x: x * (x + 1))) == ["add", "mul"]


def test_specialize_computes_what_needs_no_open_input():
    program = program_of(lambda x, w: x @ jnp.tanh(w) + jnp.sum(w), X, W)
    rest = program.specialize([None, W])
    assert names(rest) == ["dot_general", "add"] and rest.inputs == program.inputs[:1]
    np.testing.assert_allclose(evaluate(rest, X)[0], X @ jnp.tanh(W) + W.sum(), rtol=1e-6)
    done = program.specialize([X, W])
    assert not done.equations
    np.testing.assert_allclose(done.constants[done.outputs[0]], X @ jnp.tanh(W) + W.sum(), rtol=1e-6)


def test_cone_keeps_what_the_outputs_need():
    program = program_of(lambda x, y: (jnp.sin(x) + y, jnp.cos(jnp.sin(y))), X, X)
    assert names(program) == ["sin", "add", "sin", "cos"]
    second = program.cone(program.outputs[1:])
    assert names(second) == ["sin", "cos"] and second.inputs == program.inputs[1:]
    cut = program.cone(program.outputs[1:], program.equations[2].outputs)
    assert names(cut) == ["cos"] and cut.inputs == program.equations[2].outputs
    np.testing.assert_allclose(evaluate(cut, X)[0], jnp.cos(X), rtol=1e-6)


def test_open_slots_depend_on_the_marked_inputs():
    program = program_of(lambda x, y: (jnp.sin(x), jnp.cos(y), x + y), X, X)
    for mask, expected in (((1, 0), [True, False, True]), ((0, 1), [False, True, True]), ((0, 0), [False] * 3)):
        marked = program.open_slots([bool(flag) for flag in mask])
        assert [slot in marked for slot in program.outputs] == expected
    assert set(program.outputs) <= program.open_slots()


def test_a_carry_is_open_once_a_later_step_makes_it_so():
    """c takes a in the first step, b takes c in the second."""

    def step(_, state):
        a, _, c, d = state
        return a * 1, c + 1, a + 1, d + 1

    program = program_of(lambda *state: lax.fori_loop(0, 5, step, state), 1.0, 2.0, 3.0, 4.0)
    assert "scan" in names(program)

    def dependent(*mask):
        marked = program.open_slots(mask)
        return [slot in marked for slot in program.outputs]

    assert dependent(True, False, False, False) == [True, True, True, False]
    assert dependent(False, False, True, False) == [False, True, True, False]
    assert dependent(False, False, False, True) == [False, False, False, True]


def test_an_equation_knows_the_users_line():
    def helper(x):
        return jax.nn.softplus(x)  # inside the library, called here

    def fn(x):
        x = jax.jit(helper)(x)
        return jnp.linalg.norm(x)  # another line of the library's

    program = program_of(fn)
    sources = {equation.source for equation in program.equations}
    assert sources == {line_of("called here$"), line_of("of the library's$")}
    assert program.equations[0].source == line_of("called here$")


def shifted(amount):
    return lambda x: jnp.tanh(x - amount)


def test_same_program_is_blind_to_numbering_only():
    assert same_program(program_of(shifted(1.0)), program_of(jax.jit(shifted(1.0))))
    assert same_program(program_of(shifted(X)), program_of(shifted(X + 0)))
    different = {
        "constant": (shifted(1.0), shifted(1.5)),
        "array": (shifted(X), shifted(W[0])),
        "order": (lambda x: x - jnp.sin(x), lambda x: jnp.sin(x) - x),
        "operation": (jnp.sin, jnp.cos),
        "output": (lambda x: (x, jnp.sin(x)), lambda x: (jnp.sin(x), x)),
        "length": (jnp.sin, lambda x: jnp.sin(jnp.sin(x))),
        "parameter": (lambda x: lax.cumsum(x), lambda x: lax.cumsum(x, reverse=True)),
    }
    for name, (first, second) in different.items():
        assert not same_program(program_of(first), program_of(second)), name


@pytest.mark.parametrize("number", [300.0, -1.0, 7.5, 255.0, 3e9])
@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.int32])
def test_constants_are_converted_as_the_compiler_does(number, dtype):
    converted = jax.jit(lambda x, c: x * c.astype(dtype).astype(jnp.float32))
    one, c = jnp.ones(1, jnp.float32), jnp.float32(number)
    found = jaxbound.ibp(converted)(jaxbound.Interval(one, one), c)
    np.testing.assert_array_equal(found, [converted(one, c)] * 2)
