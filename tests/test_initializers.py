import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbound


@pytest.mark.parametrize("shape", [(400, 300), (5, 5, 16, 300), (3, 3, 64, 128)])
@pytest.mark.parametrize("gain", [1.0, 0.5])
def test_moments(shape, gain):
    weights = jaxbound.initializers.ibp(gain)(jax.random.key(0), shape)
    n = math.prod(shape[:-1])
    assert weights.shape == shape and weights.dtype == jnp.float32
    sigma = math.sqrt(2 * math.pi) / n * gain
    assert float(weights.std()) == pytest.approx(sigma, rel=0.02)
    assert abs(float(weights.mean())) < 5 * sigma / math.sqrt(weights.size)
    assert float(jnp.abs(weights).sum(tuple(range(weights.ndim - 1))).mean()) == pytest.approx(2 * gain, rel=0.02)


def test_type_and_key():
    init = jaxbound.initializers.ibp()
    assert init(jax.random.key(0), (3, 2), jnp.bfloat16).dtype == jnp.bfloat16
    assert (init(jax.random.key(0), (3, 2)) != init(jax.random.key(1), (3, 2))).all()


def test_a_deep_network_keeps_the_radius():
    """The gain of an affine layer with its ReLU, which is far from 1 under Flax's own initial weights."""

    class Deep(nn.Module):
        kernel_init: nn.initializers.Initializer

        @nn.compact
        def __call__(self, x):
            for _ in range(8):
                x = nn.relu(nn.Dense(300, kernel_init=self.kernel_init)(x))
            return x

    def gain(init):
        x = jax.random.normal(jax.random.key(1), (300,))
        model = Deep(init)
        layers = jaxbound.layer_bounds(model.apply)(
            model.init(jax.random.key(0), x), jaxbound.linf_ball(x, 0.1, clip=None)
        )
        radii = [float(jnp.mean(jaxbound.radius(box))) for box in layers.values()]
        return (radii[-1] / radii[0]) ** (1 / (len(radii) - 1))

    assert gain(jaxbound.initializers.ibp()) == pytest.approx(1, abs=0.1)
    assert gain(jaxbound.initializers.ibp(0.5)) == pytest.approx(0.5, abs=0.1)
    assert gain(nn.initializers.lecun_normal()) > 4


def test_a_bias_has_no_fan_in():
    with pytest.raises(ValueError, match=r"not the shape \(4,\)"):
        jaxbound.initializers.ibp()(jax.random.key(0), (4,))


def test_it_is_a_flax_initializer():
    variables = nn.Conv(4, (3, 3), kernel_init=jaxbound.initializers.ibp()).init(
        jax.random.key(0), jnp.zeros((8, 8, 2))
    )
    assert np.abs(variables["params"]["kernel"]).max() < 5 * math.sqrt(2 * math.pi) / 18
