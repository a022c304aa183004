import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxbound
from tests import soundness

W = soundness.weights(4, 4)

CASES = {
    "by_itself": lambda x: jnp.where(x > 0, x, 0.1 * x),
    "by_another": lambda x: jnp.where(W @ x > 0.3, jnp.sin(x), W.T @ x),
    "constants": lambda x: jnp.where(x > 0.2, 1.0, -2.0),
    "constant_else": lambda x: W @ jnp.where(x < 0.2, jnp.tanh(x), 0.5),
    "nested": lambda x: jnp.where(x > 1, x * x, jnp.where(x < -1, -x, W @ x)),
    "integers": lambda x: jnp.where(x > 0, (3 * x).astype(int), 1).astype(float),
    "of_many": lambda x: lax.select_n((jnp.clip(x, 0, 2.5)).astype(jnp.int32), x, jnp.sin(x), 2 * x),
    "relu_gradient": lambda x: jax.grad(lambda y: jnp.sum(jnp.sin(W @ jax.nn.relu(W @ y))))(x),
    "custom_elu": lambda x: jnp.where(x > 0, x, jnp.expm1(jnp.minimum(x, 0))),
}


@pytest.mark.parametrize("name", CASES)
def test_sound(name, double):
    soundness.check(CASES[name], *soundness.boxes(4)[:5])


@pytest.mark.parametrize("name", ["by_itself", "by_another"])
def test_sound_in_single_precision(name):
    soundness.check(CASES[name], *soundness.boxes(4)[:2])


def test_a_decided_selection_is_linear():
    box = jaxbound.Interval(jnp.array([0.5, -2.0]), jnp.array([1.0, -1.0]))
    lower, upper = jaxbound.crown_ibp(lambda x: jnp.where(x > 0, x, 0.5 * x) - x)(box)
    np.testing.assert_array_equal(lower, [0.0, 0.5])
    np.testing.assert_array_equal(upper, [0.0, 1.0])


def test_lines_around_an_open_selection_follow_what_it_selects(double):
    def fn(x):
        return jnp.where(x > 0, x, 0.5 * x) - 0.75 * x

    box = soundness.box([0.0], [1.0])
    constant = jaxbound.ibp(fn)(box)
    lines = jaxbound.crown_ibp(fn)(box)
    assert lines.upper[0] - lines.lower[0] < 0.7 * (constant.upper[0] - constant.lower[0])


LEAKY = {
    "positive": lambda x, slope: jnp.where(x > 0, x, slope * x),
    "at_least_zero": lambda x, slope: jnp.where(x >= 0, x, x * slope),
    "negative": lambda x, slope: jnp.where(x < 0, slope * x, x),
    "slope_of_each": lambda x, slope: jnp.where(x <= 0, jnp.full(4, slope) * x, x),
}


@pytest.mark.parametrize("name", LEAKY)
def test_a_leaky_relu_written_out_is_bounded_as_one(name, double):
    def bounds(activation, slope, weights):
        fn = lambda x: weights @ activation(weights @ x, slope)  # noqa: E731
        return jaxbound.crown_ibp(fn)(soundness.boxes(4)[1])

    found = jax.jit(lambda s, w: bounds(LEAKY[name], s, w))(0.1, W)
    expected = jax.jit(lambda s, w: bounds(jax.nn.leaky_relu, s, w))(0.1, W)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), found, expected)


def test_a_relu_written_out_is_bounded_as_one(double):
    box = soundness.boxes(4)[1]
    expected = jaxbound.crown_ibp(lambda x: W @ jax.nn.relu(W @ x))(box)
    for activation in (lambda x: jnp.where(x > 0, x, 0), lambda x: jnp.where(x < 0, jnp.zeros(4), x)):
        found = jax.jit(jaxbound.crown_ibp(lambda x, a=activation: W @ a(W @ x)))(box)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), found, expected)


def test_what_only_looks_like_a_leaky_relu_is_none(double):
    for fn in (
        lambda x: jnp.where(x > 0.1, x, 0.5 * x),
        lambda x: jnp.where(x > 0, 0.5 * x, x[::-1]),
        lambda x: jnp.where(x[0] > 0, x, 0.5 * x),
        lambda x: jnp.where(x > 0, W @ x, 0.5 * x),
        lambda x: jnp.where(x < 0, x, 0.5 * x),
    ):
        soundness.check(fn, *soundness.boxes(4)[1:3], methods={"crown_ibp": jaxbound.crown_ibp}, nested=False)
