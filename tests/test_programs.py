"""Random programs keep inside their bounds, and between them they reach every primitive that has a rule."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import pytest
from hypothesis import strategies as st

import jaxbound
from jaxbound.methods.problem import prepare
from jaxbound.rules.registry import registered
from tests import cases, programs, soundness

# Names that primitives have in other releases of JAX, and what appears inside `jax.shard_map` only.
ELSEWHERE = {"copy_p", "le_to", "log2", "lt_to", "mesh_cast", "one_minus_square", "pcast", "pvary", "scatter_add"}


@hypothesis.settings(derandomize=True, deadline=None, max_examples=5, database=None)
@hypothesis.given(st.data())
def test_values_lie_inside_the_bounds(data):
    program = programs.generate(lambda n: data.draw(st.integers(0, n - 1)), longest=3)
    hypothesis.note(str(program))
    with jax.enable_x64(True):
        subject = soundness.Subject(program)
        for box in soundness.boxes(programs.SIZE)[:4]:
            subject.check((box,), count=50, finite=False)


def test_a_wrong_bound_is_found(double):
    """By the harness itself: these bounds leave out a part of the box."""

    def wrong(fn):
        def bound(box):
            return jaxbound.ibp(fn)(jaxbound.Interval(box.lower + jnp.array([0.1, 0, 0, 0]), box.upper))

        return bound

    choices = iter([1, 1, sorted(programs.MIXING).index("dense"), 0, 0, sorted(programs.ELEMENTWISE).index("tanh")])
    program, box = programs.generate(lambda n: next(choices), longest=2), soundness.boxes(programs.SIZE)[0]
    assert str(program) == "v1 = dense:0(0,); v2 = tanh(1,)"
    soundness.Subject(program, {"right": jaxbound.ibp}).check((box,), count=20)
    with pytest.raises(AssertionError, match=r"wrong: output \d takes .* outside \["):
        soundness.Subject(program, {"wrong": wrong}).check((box,), count=20)


def steps():
    """Every step that a program can have, as a function of one vector."""
    yield from programs.ELEMENTWISE.items()
    for name, fn in programs.MIXING.items():
        yield from ((f"{name}:{k}", functools.partial(fn, k=k)) for k in range(3))
    yield from ((name, lambda x, fn=fn: fn(x, x[::-1])) for name, fn in programs.PAIRS.items())


def primitives(program):
    """The names of a program's equations, loops' bodies included."""
    for equation in program.equations:
        yield equation.name
        yield from primitives(equation.params["body"]) if equation.name == "scan" else ()


def test_every_step_takes_a_vector_to_a_vector():
    box = soundness.boxes(programs.SIZE)[0]
    for name, fn in steps():
        output = prepare(fn, (box,), {}).output
        assert (output.shape, output.dtype) == (box.lower.shape, box.lower.dtype), name


def test_every_primitive_that_has_a_rule_is_tested():
    alone = cases.RULES.values()
    box, functions = soundness.boxes(programs.SIZE)[0], [*(fn for _, fn in steps()), *alone]
    reached = {name for fn in functions for name in primitives(prepare(fn, (box,), {}).program)}
    assert not set(registered()) - reached - ELSEWHERE
