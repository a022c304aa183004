import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxbound
from experiments.common import convolution, models

MNIST = (28, 28, 1)
# Inputs of each network's first dense layer on MNIST, and its number of parameters, worked out by hand.
SIZES = {
    "dm_small": (32 * 10 * 10, 272 + 8224 + 320_100 + 1010),
    "dm_medium": (64 * 4 * 4, 320 + 16_416 + 18_496 + 65_600 + 524_800 + 262_656 + 5130),
    "dm_large": (128 * 14 * 14, 640 + 36_928 + 73_856 + 2 * 147_584 + 12_845_568 + 5130),
    "kw": (32 * 7 * 7, 272 + 8224 + 156_900 + 1010),
    "mlp": (784, 200_960 + 2 * 65_792 + 2570),
}


def test_every_model_is_tested():
    assert SIZES.keys() == models.MODELS.keys()


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_those_of_the_literature(name):
    params = jax.eval_shape(lambda: models.create(name, shape=MNIST, num_classes=10, seed=0)[1])
    flat, total = SIZES[name]
    assert params["Dense_0"]["kernel"].shape[0] == flat
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == total
    assert params[f"Dense_{len(models.MODELS[name].dense)}"]["kernel"].shape[1] == 10


@pytest.mark.parametrize("name", ["dm_small", "kw", "mlp"])
def test_one_example_is_a_row_of_a_batch(name):
    apply, params = models.create(name, shape=MNIST, num_classes=7, seed=0)
    batch = jax.random.uniform(jax.random.key(1), (3, *MNIST))
    together = apply(params, batch)
    assert together.shape == (3, 7)
    np.testing.assert_allclose(apply(params, batch[1]), together[1], rtol=1e-4, atol=1e-5)


def test_weights_begin_as_in_pytorch():
    _, params = models.create("dm_small", shape=MNIST, num_classes=10, seed=0)
    for layer, fan_in in (("Conv_0", 16), ("Conv_1", 16 * 16), ("Dense_0", 3200), ("Dense_1", 100)):
        bound = 1 / math.sqrt(fan_in)
        for leaf in params[layer].values():
            assert jnp.abs(leaf).max() <= bound
        kernel = params[layer]["kernel"]
        assert jnp.abs(kernel).max() > 0.9 * bound
        assert float(kernel.std()) == pytest.approx(bound / math.sqrt(3), rel=0.1)
        assert float(jnp.abs(params[layer]["bias"]).min()) > 0


def test_the_seed_decides():
    first, again, other = (models.create("kw", shape=MNIST, num_classes=10, seed=s)[1] for s in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert all((a != b).any() for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(other), strict=True))


def test_bounds_go_through_the_convolution_of_this_device(monkeypatch):
    box, bounds = jaxbound.linf_ball(jax.random.uniform(jax.random.key(1), (8, 8, 1)), 0.05), []
    for function in (convolution.conv, lax.conv_general_dilated):
        monkeypatch.setattr(convolution, "for_backend", lambda function=function: function)
        apply, params = models.create("kw", shape=(8, 8, 1), num_classes=10, seed=0)
        bounds.append([jax.jit(bound(apply))(params, box) for bound in (jaxbound.ibp, jaxbound.crown_ibp)])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *bounds)
