"""The forward walk: affine functions of the inputs that enclose every array."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxbound
from jaxbound import relax
from jaxbound.methods.affine import advance, enclosure, identity
from jaxbound.methods.interval import propagate
from jaxbound.methods.problem import prepare
from tests import soundness
from tests.methods.test_replay import FUNCTIONS

pytestmark = pytest.mark.usefixtures("double")

W = soundness.weights(4, 4).astype(float)
BOX = ([0.3, 0.8, 0.45, 0.6], [0.1, 0.2, 0.05, 0.0])


def pairs_of(fn, *args, relu=relax.adaptive):
    """Pairs of the outputs of a function (arrays where they are constants), and the interval each spans."""
    problem = prepare(fn, args, {})
    relaxations = propagate(problem.program, problem.sets, relu).relaxations
    values = advance(problem.program, identity(problem.sets), relaxations)
    open_outputs = [slot for slot in problem.program.outputs if slot in problem.program.open_slots()]
    return [(values[slot], enclosure(values[slot], problem.sets)) for slot in open_outputs]


def heights(coeffs, bias, x):
    """The value of affine functions at the input x [N]."""
    return jnp.tensordot(x, coeffs, 1) + bias


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_output_lies_between_its_functions(name):
    fn, box = FUNCTIONS[name], soundness.box(*BOX)
    xs = jax.vmap(lambda unit: soundness.point(box, unit))(jnp.array(soundness.units(box, 300)))
    found = jax.jit(lambda box: pairs_of(fn, box))(box)
    values = jax.jit(jax.vmap(fn))(xs)
    for value, (pair, interval) in zip(jax.tree.leaves(values), found, strict=False):
        assert pair.coeffs.lower.shape == pair.coeffs.upper.shape == (4, *value.shape[1:])
        low, high = (
            jax.vmap(lambda x, c=c, b=b: heights(c, b, x))(xs) for c, b in zip(pair.coeffs, pair.bias, strict=True)
        )
        slack = 1e-12 * (1 + jnp.abs(value))
        assert (low <= value + slack).all() and (value <= high + slack).all()
        assert (interval.lower <= low + slack).all() and (high <= interval.upper + slack).all()
        assert (interval.lower >= low.min(0) - 1e-12).all(), "the corners are among the points"


def test_a_linear_function_is_its_own_pair():
    """Twice: the two functions are one up to the first nonlinear operation."""

    def fn(x):
        return (2 - (W @ x)[::-1] * 2).reshape(2, 2)

    ((pair, _),) = pairs_of(fn, soundness.box(*BOX))
    assert pair.coeffs.lower is pair.coeffs.upper and pair.bias.lower is pair.bias.upper
    np.testing.assert_allclose(pair.coeffs.lower, -2 * W[::-1].T.reshape(4, 2, 2), rtol=1e-12)
    np.testing.assert_allclose(pair.bias.lower, np.full((2, 2), 2.0))


def test_negative_coefficients_swap_the_functions():
    """-exp(x) + 1 and its lines, by hand."""
    ((up, _),), ((down, _),) = (
        pairs_of(fn, soundness.box([0.5], 0.5)) for fn in (jnp.exp, lambda x: 1 - 3 * jnp.exp(x))
    )
    for first, second in ((up.coeffs, down.coeffs), (up.bias, down.bias)):
        shift = 1 if first is up.bias else 0
        np.testing.assert_allclose(second.lower, shift - 3 * first.upper, rtol=1e-12)
        np.testing.assert_allclose(second.upper, shift - 3 * first.lower, rtol=1e-12)


def test_inputs_of_several_sets_keep_their_own_rows():
    def fn(a, b):
        return 2 * a + jnp.sum(b) * 3 + 1

    ((pair, interval),) = pairs_of(fn, soundness.box([0.0, 1.0], 0.5), jaxbound.l2_ball(jnp.ones((2, 2)), 0.5))
    np.testing.assert_allclose(pair.coeffs.lower[:2], 2 * np.eye(2))
    np.testing.assert_allclose(pair.coeffs.lower[2:], np.full((4, 2), 3.0))
    np.testing.assert_allclose(interval.upper, [2 * 0.5 + 12 + 3 * 0.5 * 2 + 1, 2 * 1.5 + 12 + 3 * 0.5 * 2 + 1])


@pytest.mark.slow(reason="compiles two long programs")
def test_a_loop_is_its_unrolled_program():
    """With the same intervals inside; carries that start as constants, constant and scanned operands."""
    weights = jnp.stack([W, W.T / 2, W - 1])

    def step(carry, scanned):
        x, total = carry
        w, y = scanned
        x = jax.nn.relu(w @ x + 0.1) - y
        return (x, total * 0.5 + jnp.sin(y)), jnp.tanh(x) + total

    def looped(x):
        return lax.scan(step, (x, jnp.ones(4)), (weights, jnp.stack([x, 2 * x, -x])), reverse=True)

    def unrolled(x):
        carry, ys = (x, jnp.ones(4)), []
        for w, y in reversed(list(zip(weights, (x, 2 * x, -x), strict=True))):
            carry, out = step(carry, (w, y))
            ys.append(out)
        return carry, jnp.stack(ys[::-1])

    first, second = (jax.jit(lambda box, fn=fn: pairs_of(fn, box))(soundness.box(*BOX)) for fn in (looped, unrolled))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), first, second)


def test_precision_is_that_of_the_function(precision):
    ((pair, _),) = pairs_of(lambda x: jnp.tanh(x.astype("float32") @ jnp.ones((4, 2), "float32")), soundness.box(*BOX))
    assert {leaf.dtype for leaf in jax.tree.leaves(pair)} == {jnp.dtype("float32")}
