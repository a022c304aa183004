"""Modules that compute in half precision, with parameters and inputs of another."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbound
from jaxbound.methods.problem import prepare
from tests import soundness

SLOW = pytest.mark.slow(reason="compiles one more method, or the same for another type")


class Network(nn.Module):
    dtype: type

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(4, dtype=self.dtype)(x))
        x = nn.LayerNorm(dtype=self.dtype, epsilon=0.1)(x)  # in single precision inside, whatever the type
        return nn.Dense(2, dtype=self.dtype)(x)


@pytest.mark.parametrize(
    "method",
    ["ibp", "crown", "lbp", *(pytest.param(name, marks=SLOW) for name in ("crown_ibp", "crown_lbp", "alpha_crown"))],
)
@pytest.mark.parametrize(
    "kind, of_input",
    [
        (jnp.bfloat16, jnp.float32),
        pytest.param(jnp.bfloat16, jnp.bfloat16, marks=SLOW),
        pytest.param(jnp.float16, jnp.float32, marks=SLOW),
        pytest.param(jnp.float16, jnp.float16, marks=SLOW),
    ],
)
def test_bounds_are_those_in_single_precision_up_to_rounding(method, kind, of_input):
    x = soundness.weights(3)
    variables = Network(jnp.float32).init(jax.random.key(0), jnp.asarray(x, jnp.float32))

    def bounds(kind, of_input):
        bound = getattr(jaxbound, method)(Network(kind).apply)
        return jax.jit(bound)(variables, jaxbound.linf_ball(jnp.asarray(x, of_input), 0.1, clip=None))

    for end, expected in zip(bounds(kind, of_input), bounds(jnp.float32, jnp.float32), strict=True):
        np.testing.assert_allclose(np.asarray(end, float), expected, atol=0.03)


@pytest.mark.parametrize("beta", [0, pytest.param(1, marks=SLOW)])
def test_a_loss_and_its_gradient_are_those_in_single_precision_up_to_rounding(beta):
    x = jnp.asarray(soundness.weights(3), jnp.float32)
    variables = Network(jnp.float32).init(jax.random.key(0), x)

    def loss(variables, kind):
        bound = jaxbound.fused_cross_entropy(Network(kind).apply, beta=beta)
        return bound(variables, jaxbound.linf_ball(x, 0.1, clip=None), label=1).astype(float)

    both = (jnp.float32, jnp.bfloat16)
    (value, exact), (other, found) = (
        jax.jit(jax.value_and_grad(loss), static_argnums=1)(variables, kind) for kind in both
    )
    np.testing.assert_allclose(other, value, atol=0.05)
    for g, expected in zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True):
        assert g.dtype == jnp.float32  # of the parameters
        np.testing.assert_allclose(g, expected, atol=0.05 * (1 + jnp.abs(expected).max()))


@pytest.mark.parametrize(
    "module",
    [nn.LayerNorm, nn.RMSNorm, functools.partial(nn.MultiHeadDotProductAttention, 2)],
    ids=["layer_norm", "rms_norm", "softmax"],
)
def test_composites_are_recognised(module, request):
    name = request.node.callspec.id
    module = module(dtype=jnp.bfloat16)
    x = jnp.ones((3, 4))
    variables = module.init(jax.random.key(0), x)
    assert name in [
        e.name for e in prepare(module.apply, (variables, jaxbound.linf_ball(x, 0.1)), {}).program.equations
    ]
