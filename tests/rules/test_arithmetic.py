import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbound
from jaxbound.rules import arithmetic
from tests import soundness

W = soundness.weights(4, 4)
CASES = {
    "add_sub_neg": lambda x: -(W @ x) + jnp.tanh(x) - (1 - x),
    "constant_over": lambda x: W[0] / (x + 6),
    "over_constant": lambda x: jnp.tanh(x) / W[0],
    "quotient": lambda x: (W @ x) / (x + 6),
    "quotient_negative": lambda x: (W @ x) / (x - 6),
    "product": lambda x: x * (W @ x),
    "gradient": jax.grad(lambda x: jnp.sum(jnp.sin(x) * (W @ x))),
    "outer": lambda x: jnp.outer(x, W @ x),
    "dot_of_sets": lambda x: jnp.dot(x, W @ x),
    "matmul_of_sets": lambda x: (x[:, None] * W) @ (W * x),
    "batched_matmul": lambda x: jnp.einsum(
        "bij,bjk->bik", jnp.tanh(x).reshape(2, 1, 2), jnp.stack([x.reshape(2, 2)] * 2)
    ),
    "normalised": lambda x: x / jnp.sqrt(jnp.sum(x * x) + 1),
    "mlp": lambda x: W @ jax.nn.relu(W @ jnp.tanh(W @ x)),
}


@pytest.mark.parametrize("name", CASES)
def test_sound(name, double):
    soundness.check(CASES[name], *soundness.boxes(4)[:2])


@pytest.mark.parametrize("name", ["product", "quotient", "mlp"])
def test_sound_in_single_precision(name):
    soundness.check(CASES[name], *soundness.boxes(4)[:2])


@pytest.mark.parametrize("name", ["dot_of_sets", "matmul_of_sets", "batched_matmul"])
def test_contractions_too_large_to_write_out_are_sound_and_looser(name, double, monkeypatch):
    box = soundness.boxes(4)[0]
    small = jaxbound.ibp(CASES[name])(box)
    monkeypatch.setattr(arithmetic, "_LARGEST_TABLE", 1)
    large = jaxbound.ibp(CASES[name])(box)
    assert (large.lower <= small.lower + 1e-12).all() and (large.upper >= small.upper - 1e-12).all()
    assert (large.upper - large.lower > small.upper - small.lower).any()
    soundness.check(CASES[name], box, methods={"ibp": jaxbound.ibp})


LINEAR = {"dot": lambda x: W @ x * 2 + 1, "dot_reversed": lambda x: x.reshape(2, 2).T.ravel() @ W}


@pytest.mark.parametrize("p, ball", [(1, jaxbound.l1_ball), (2, jaxbound.l2_ball), (np.inf, jaxbound.linf_ball)])
@pytest.mark.parametrize("name", LINEAR)
def test_first_layer_is_the_dual_norm(name, p, ball, double):
    fn, rng = LINEAR[name], np.random.default_rng(0)
    x, r = jnp.array(rng.uniform(size=4)), rng.uniform(size=4)
    dual = {1: np.inf, 2: 2, np.inf: 1}[p]
    width = np.linalg.norm(jax.jacobian(fn)(x) * r, ord=dual, axis=-1)
    region = ball(x, jnp.array(r), clip=None)
    for method in (jaxbound.ibp, jaxbound.crown_ibp, jaxbound.crown):
        lower, upper = jax.jit(method(fn))(region)
        np.testing.assert_allclose((upper - lower) / 2, width, rtol=1e-6)
        np.testing.assert_allclose((upper + lower) / 2, fn(x), rtol=1e-6, atol=1e-12)


def test_balls_through_a_network_are_sound(double):
    def fn(x):
        return W @ jax.nn.relu(W @ (x * 0.5) + 0.1)

    x = jnp.array([0.2, 0.9, 0.5, 0.4])
    for ball in (jaxbound.l1_ball, jaxbound.l2_ball):
        for options in ({}, {"clip": (0.0, 1.0)}, {"mean": jnp.full(4, 0.3), "std": jnp.array([0.2, 0.5, 1.0, 0.7])}):
            soundness.check(fn, ball(x, 0.3, **options), nested=False)


def test_constants_over_a_scalar():
    soundness.check(lambda x: jnp.array([1.0, -2.0, 3.0]) / x[0], jaxbound.Interval(jnp.ones(1), 2 * jnp.ones(1)))


def test_a_quotient_of_numbers_whose_reciprocals_are_too_small():
    x = jnp.array([2e38], jnp.float32)
    for end in jaxbound.ibp(lambda x: x / (x + 0))(jaxbound.Interval(x, x)):
        np.testing.assert_allclose(end, 1, rtol=1e-6)
