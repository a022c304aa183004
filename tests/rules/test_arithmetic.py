import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxbound
from tests import soundness

W = soundness.weights(4, 4)
KERNEL = soundness.weights(2, 2, 2, 3)


def convolution(x, kernel, *args, **options):
    """A convolution of operands of one precision, which JAX insists on."""
    return lax.conv_general_dilated(x, jnp.asarray(kernel, x.dtype), *args, **options)


LAYOUT = ("NHWC", "HWIO", "NHWC")


def image(x):
    return jnp.concatenate([x, 2 * x, x - 1, -x, x * x[0], x + 1, x, x]).reshape(1, 4, 4, 2)


def conv(x, kernel=KERNEL, strides=(1, 1), padding="SAME", **options):
    return convolution(image(jnp.tanh(x)), kernel, strides, padding, dimension_numbers=LAYOUT, **options)


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
    "conv": conv,
    "conv_strided": lambda x: conv(x, strides=(2, 2), padding=[(1, 0), (0, 1)]),
    "conv_strided_undivided": lambda x: conv(x, soundness.weights(3, 3, 2, 2), (2, 2), [(1, 1), (1, 1)]),
    "conv_dilated": lambda x: conv(x, padding=[(1, 1), (1, 1)], rhs_dilation=(2, 2), lhs_dilation=(2, 1)),
    "conv_grouped": lambda x: conv(x, soundness.weights(2, 2, 1, 4), feature_group_count=2),
    "conv_of_sets": lambda x: convolution(image(x), KERNEL * x[0], (1, 1), "SAME", dimension_numbers=LAYOUT),
    "conv_channels_first": lambda x: convolution(
        jnp.transpose(image(jnp.tanh(x)), (0, 3, 1, 2)), jnp.transpose(KERNEL, (3, 2, 0, 1)), (2, 2), "VALID"
    ),
    "conv_1d": lambda x: convolution(
        jnp.tanh(x)[None, :, None], soundness.weights(3, 1, 2), (1,), "SAME", dimension_numbers=("NHC", "HIO", "NHC")
    ),
    "mlp": lambda x: W @ jax.nn.relu(W @ jnp.tanh(W @ x)),
}


@pytest.mark.parametrize("name", CASES)
def test_sound(name, double):
    soundness.check(CASES[name], *soundness.boxes(4)[:2])


@pytest.mark.parametrize("name", ["product", "quotient", "conv_strided", "mlp"])
def test_sound_in_single_precision(name):
    soundness.check(CASES[name], *soundness.boxes(4)[:2])


LINEAR = {
    "dot": (lambda x: W @ x * 2 + 1, (4,)),
    "dot_reversed": (lambda x: x.reshape(2, 2).T.ravel() @ W, (4,)),
    "conv": (
        lambda x: convolution(x[None] * 1.5, KERNEL, (1, 1), "SAME", dimension_numbers=LAYOUT)[0],
        (4, 4, 2),
    ),
    "conv_strided": (
        lambda x: (
            convolution(
                jnp.transpose(x, (2, 0, 1))[None],
                KERNEL,
                (2, 2),
                [(1, 1), (0, 0)],
                dimension_numbers=("NCHW", "HWIO", "NHCW"),
            )[0]
            - 1
        ),
        (4, 4, 2),
    ),
}


@pytest.mark.parametrize("p, ball", [(1, jaxbound.l1_ball), (2, jaxbound.l2_ball), (np.inf, jaxbound.linf_ball)])
@pytest.mark.parametrize("name", LINEAR)
def test_first_layer_is_the_dual_norm(name, p, ball, double):
    fn, shape = LINEAR[name]
    rng = np.random.default_rng(0)
    x, r = jnp.array(rng.uniform(size=shape)), rng.uniform(size=shape)
    rows = np.asarray(jax.jacobian(fn)(x))
    rows = rows.reshape(*rows.shape[: rows.ndim - len(shape)], -1) * r.ravel()
    dual = {1: np.inf, 2: 2, np.inf: 1}[p]
    region = ball(x, jnp.array(r), clip=None)
    for method in (jaxbound.ibp, jaxbound.crown_ibp, jaxbound.crown):
        lower, upper = jax.jit(method(fn))(region)
        np.testing.assert_allclose((upper - lower) / 2, np.linalg.norm(rows, ord=dual, axis=-1), rtol=1e-6)
        np.testing.assert_allclose((upper + lower) / 2, fn(x), rtol=1e-6, atol=1e-12)


def test_balls_through_a_network_are_sound(double):
    def fn(x):
        return W @ jax.nn.relu(W @ (x * 0.5) + 0.1)

    x = jnp.array([0.2, 0.9, 0.5, 0.4])
    for ball in (jaxbound.l1_ball, jaxbound.l2_ball):
        for options in ({}, {"clip": (0.0, 1.0)}, {"mean": jnp.full(4, 0.3), "std": jnp.array([0.2, 0.5, 1.0, 0.7])}):
            soundness.check(fn, ball(x, 0.3, **options), nested=False)
