"""The two halves of a backward bound: the lines that `vjp` chooses, and their values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxbound
from jaxbound import relax
from jaxbound.bounds import lower_value
from jaxbound.methods.interval import propagate
from jaxbound.methods.problem import prepare
from jaxbound.methods.replay import constant_slots
from jaxbound.methods.rows import choose_lines, evaluate, graft, takes_lower
from tests import soundness

pytestmark = pytest.mark.usefixtures("double")

W = soundness.weights(4, 4)
FUNCTIONS = {
    "conv": lambda x: lax.conv_general_dilated(
        jnp.tanh(x).reshape(1, 2, 2, 1),
        jnp.ones((2, 2, 1, 3)),
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    ),
    "affine": lambda x: W @ jnp.tanh(W @ x + 1) - 2,
    "concatenate": lambda x: jnp.concatenate([jnp.ones(2), jnp.exp(x), jnp.full(1, 3.0)]),
    "stack": lambda x: jnp.stack([jnp.exp(x), jnp.full(4, 3.0)]),
    "pad": lambda x: lax.pad(jnp.exp(x), 2.0, [(1, 0, 1)]),
    "select": lambda x: jnp.where(jnp.arange(4) > 1, jnp.sin(x), 5.0),
    "gather_with_fill": lambda x: jnp.sin(x).at[jnp.array([0, 9])].get(mode="fill", fill_value=5.0),
    "scatter": lambda x: jnp.full(6, 2.0).at[jnp.array([0, 3, 4, 5])].set(jnp.exp(x)),
    "scatter_add": lambda x: jnp.full(6, 2.0).at[jnp.array([0, 3, 3, 5])].add(jnp.exp(x)),
    "update": lambda x: lax.dynamic_update_slice(jnp.full(6, 2.0), jnp.exp(x), (1,)),
    "product": lambda x: jnp.exp(x) * jnp.sin(x) + 1,
    "quotient": lambda x: (jnp.sin(x) - 2) / jnp.exp(x),
    "matmul_of_sets": lambda x: (x[:, None] * W + 1) @ (W * x - 2),
    "threshold": lambda x: jnp.maximum(W @ x, 0.3) + jnp.minimum(x, 0.6) + jnp.clip(x, 0.4, 0.5),
    "extremes": lambda x: jnp.max(W @ x) - jnp.min(x + 1) + lax.cummax(W @ x),
    "pool": lambda x: lax.reduce_window(jnp.sin(3 * x), -jnp.inf, lax.max, (2,), (1,), "VALID") - 1,
    "scan": lambda x: lax.scan(lambda c, w: (jnp.tanh(c + w), c * 2 + 1), jnp.ones(4), jnp.stack([x, x]))[1],
    "constant": lambda x: (jnp.exp(x), jnp.full(2, 7.0)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_coefficients_and_evaluation_agree(name):
    """A constant that misses the tap would lose its bias in the first only."""
    box = jaxbound.linf_ball(jnp.array([0.3, 0.8, 0.45, 0.6]), 0.1)
    shapes = jax.tree.leaves(jax.eval_shape(FUNCTIONS[name], box.lower))
    spec = [jnp.array(soundness.weights(3, *shape.shape), float) for shape in shapes]

    @jax.jit
    def both(box):
        problem = prepare(FUNCTIONS[name], (box,), {})
        relaxations = propagate(problem.program, problem.sets, relax.adaptive).relaxations
        coeffs, bias, met = choose_lines(problem.program, relaxations, problem.sets, spec)

        def value(row, coeffs, signs):
            outputs = evaluate(problem.program, relaxations, problem.sets, coeffs=coeffs, signs=signs)
            return sum(jnp.sum(r * out) for r, out in zip(row, outputs, strict=True))

        return lower_value(coeffs, bias, problem.sets), jax.vmap(value)(spec, coeffs, takes_lower(met))

    concretised, evaluated = both(box)
    np.testing.assert_allclose(concretised, evaluated, rtol=1e-12)


@pytest.mark.parametrize("name", sorted(FUNCTIONS.keys() - {"scan", "constant"}))
def test_the_bias_is_the_sum_of_what_enters_where(name):
    box = jaxbound.linf_ball(jnp.array([0.3, 0.8, 0.45, 0.6]), 0.1)
    out = jax.eval_shape(FUNCTIONS[name], box.lower)
    spec = [jnp.array(soundness.weights(3, *out.shape), float)]

    @jax.jit
    def both(box):
        problem = prepare(FUNCTIONS[name], (box,), {})
        program, sets = problem.program, problem.sets
        relaxations = propagate(program, sets, relax.adaptive).relaxations
        shapes = {slot: x.shape for eq in program.equations for slot, x in zip(eq.outputs, eq.shapes, strict=True)}
        local = {slot: shapes[slot] for slot in constant_slots(program)}
        _, parts, _ = choose_lines(program, relaxations, sets, spec, local=local)
        assert all(part.shape == (3, *shapes[slot]) for slot, part in parts.items())
        _, bias, _ = choose_lines(program, relaxations, sets, spec)
        return bias, sum(part.reshape(3, -1).sum(axis=1) for part in parts.values())

    np.testing.assert_allclose(*both(box), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_on_a_point_the_bound_is_the_value(name):
    """Which a bias lost in both halves would not be."""
    fn, x = FUNCTIONS[name], jnp.array([0.3, 0.8, 0.45, 0.6])
    lower, upper = soundness.ends(jax.jit(jaxbound.crown_ibp(fn))(jaxbound.Interval(x, x)))
    np.testing.assert_allclose(lower, soundness.flat(fn(x)), rtol=1e-12)
    np.testing.assert_allclose(upper, soundness.flat(fn(x)), rtol=1e-12)


def test_graft_has_the_value_of_one_and_the_derivatives_of_the_other():
    def fn(x):
        return graft(jnp.sin(x), x**3)

    for x in (0.5, -1.25):
        assert fn(x) == jax.jit(fn)(x) == jnp.sin(x)
        np.testing.assert_allclose(jax.grad(fn)(x), 3 * x**2, rtol=1e-12)
        np.testing.assert_allclose(jax.jvp(fn, (x,), (2.0,))[1], 6 * x**2, rtol=1e-12)
        np.testing.assert_allclose(jax.grad(jax.grad(fn))(x), 6 * x, rtol=1e-12)
    np.testing.assert_allclose(jax.vmap(jax.grad(fn))(jnp.arange(3.0)), 3 * jnp.arange(3.0) ** 2)


def test_the_second_half_costs_nothing_without_a_derivative():
    """XLA drops the evaluation: nothing reads it."""
    box, spec = jaxbound.linf_ball(jnp.array([0.3, 0.8, 0.45, 0.6]), 0.1), jnp.eye(4)

    def flops(fn):
        return jax.jit(fn).lower(box).compile().cost_analysis()["flops"]

    def lines_alone(box):
        return jaxbound.linear_bounds(FUNCTIONS["affine"])(box, spec=spec).concretize(box)

    assert flops(lambda box: jaxbound.crown_ibp(FUNCTIONS["affine"])(box, spec=spec)) <= 1.02 * flops(lines_alone)


def test_stop_gradient_is_no_constant_to_a_bound():
    """The derivative of it is zero, the bound of it is not."""
    box = soundness.box([0.3, -0.4], 0.2)
    for make in soundness.METHODS.values():
        found = jax.jit(make(lambda x: 2 * lax.stop_gradient(x) + jax.nn.relu(x)))(box)
        np.testing.assert_allclose(found.lower, 2 * box.lower + jax.nn.relu(box.lower), rtol=1e-12)


def test_a_small_intercept_is_not_lost_next_to_a_large_one():
    """On a long interval one line's intercept is far larger than the other's, which alone is used."""
    box = jaxbound.Interval(jnp.array([-1e20]), jnp.array([1e20]))
    planes = jaxbound.linear_bounds(lambda x: 2 * jnp.minimum(x, 1), relu=jaxbound.relax.same_slope)(box)
    np.testing.assert_allclose(planes.upper.coeffs[0, 0] + planes.upper.bias[0], 2.0, rtol=1e-12)
