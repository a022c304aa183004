import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxbound
from experiments.common import convolution, models

MNIST = (28, 28, 1)
DM_LARGE = 640 + 36_928 + 73_856 + 2 * 147_584 + 12_845_568 + 5130
# Inputs of each network's first dense layer on MNIST, and its number of parameters, worked out by hand.
SIZES = {
    "dm_small": (32 * 10 * 10, 272 + 8224 + 320_100 + 1010),
    "dm_medium": (64 * 4 * 4, 320 + 16_416 + 18_496 + 65_600 + 524_800 + 262_656 + 5130),
    "dm_large": (128 * 14 * 14, DM_LARGE),
    "kw": (32 * 7 * 7, 272 + 8224 + 156_900 + 1010),
    "mlp": (784, 200_960 + 2 * 65_792 + 2570),
    "cnn7": (128 * 14 * 14, DM_LARGE),
    "cnn7_bn": (128 * 14 * 14, DM_LARGE + 2 * (64 + 64 + 3 * 128 + 512)),
    "cnn_small_bn": (32 * 10 * 10, 272 + 8224 + 320_100 + 1010 + 2 * (16 + 32 + 100)),
    "wide_resnet8": (
        512 * 7 * 7,
        (160 + 32)
        + (18_560 + 147_584 + 2176 + 3 * 256)
        + (295_168 + 590_080 + 33_024 + 3 * 512)
        + (1_180_160 + 2_359_808 + 131_584 + 3 * 1024)
        + (12_845_568 + 1024 + 5130),
    ),
    "resnext": (
        512 * 7 * 7,
        (640 + 128)
        + (4160 + 18_496 + 2 * 8320 + 2 * 128 + 2 * 256)
        + (16_512 + 73_856 + 2 * 33_024 + 2 * 256 + 2 * 512)
        + (65_792 + 295_168 + 2 * 131_584 + 2 * 512 + 2 * 1024)
        + (12_845_568 + 1024 + 5130),
    ),
    "2layer_w1_l128": (8 * 7 * 7, 68 + 520 + 50_304 + 1290),
    "4layer_w1_l256": (8 * 7 * 7, 40 + 260 + 296 + 1032 + 100_608 + 65_792 + 2570),
    "4layer_w1_l256_bn": (8 * 7 * 7, 40 + 260 + 296 + 1032 + 100_608 + 65_792 + 2570 + 2 * (4 + 4 + 8 + 8 + 512)),
    "3layer_k3_w1": (8 * 7 * 7, 40 + 296 + 1032 + 25_152 + 650),
    "3layer_k5_w1": (8 * 6 * 6, 104 + 808 + 1032 + 18_496 + 650),
    "3layer_k5_w2_l32": (16 * 6 * 6, 208 + 3216 + 4112 + 18_464 + 330),
}


def make(name, shape=(8, 8, 1), **options):
    return models.create(name, **{"shape": shape, "num_classes": 10, "seed": 0, **options})


create = functools.cache(make)  # not for what is traced, or patched


def images(*shape, seed=1):
    return jax.random.uniform(jax.random.key(seed), shape)


def test_every_model_is_tested():
    assert models.MODELS.keys() <= SIZES.keys()


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_those_of_the_literature(name):
    params = jax.eval_shape(lambda: make(name, MNIST).variables["params"])
    flat, total = SIZES[name]
    assert params["Dense_0"]["kernel"].shape[0] == flat
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == total
    depth = sum(layer.startswith("Dense") for layer in params)
    assert params[f"Dense_{depth - 1}"]["kernel"].shape[1] == 10


@pytest.mark.parametrize("name", ["cnn7", "cnn7_bn"])
@pytest.mark.parametrize("width, flat", [(32, 128 * 16**2), (56, 128 * 14**2), (64, 128 * 16**2)])
def test_cnn7_has_one_stride_more_on_large_images(name, width, flat):
    params = jax.eval_shape(lambda: make(name, (width, width, 3)).variables["params"])
    assert params["Dense_0"]["kernel"].shape == (flat, 512)


def test_names():
    sets = models.MODEL_SETS
    assert {name: len(set(names)) for name, names in sets.items()} == {
        "mnist_small": 10,
        "mnist_medium": 7,
        "cifar_small": 9,
        "cifar_medium": 8,
    }
    assert {*models.MODELS, *(name for names in sets.values() for name in names)} == set(models.NAMES)
    assert len(set(models.NAMES)) == len(models.NAMES)
    assert all(map(models.is_model, models.NAMES))
    families = ("2layer_w1", "2layer_w1_bn", "3layer_k4_w1", "4layer_w1_l256x", "5layer_w1_l1", "3layer_w1_l1")
    for wrong in ("", "dm", *families):
        assert not models.is_model(wrong)
        with pytest.raises(ValueError, match=f"there is no model '{wrong}': choose one of dm_small, .* 3layer_k3"):
            models.architecture(wrong, MNIST)


def test_images_that_are_too_small():
    with pytest.raises(ValueError, match=r"images are too small for this network: \(0, 0, 32\)"):
        create("dm_small", (8, 8, 1))


@pytest.mark.parametrize(
    "name", ["kw", "mlp", pytest.param("cnn_small_bn", marks=pytest.mark.slow(reason="compiles a deep network twice"))]
)
def test_one_example_is_a_row_of_a_batch(name):
    network = create(name, (16, 16, 3), num_classes=7)
    batch, apply = images(2, 3, 16, 16, 3), jax.jit(network.apply)
    together = apply(network.variables, batch)
    assert together.shape == (2, 3, 7) and network.num_classes == 7
    np.testing.assert_allclose(apply(network.variables, batch[1, 2]), together[1, 2], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", [*sorted(models.WITH_BATCH_NORM), "cnn7_bn", "cnn_small_bn", "2layer_w1_l16_bn"])
def test_training_returns_the_statistics_of_every_batch_norm(name):
    def train():
        network = make(name, (12, 12, 1))
        return network.variables["batch_stats"], network.train(network.variables, images(4, 12, 12, 1))[1]

    initial, statistics = jax.eval_shape(train)
    assert initial == statistics and jax.tree.leaves(initial)


def test_training_normalises_by_the_batch():
    network, batch = create("cnn_small_bn", (12, 12, 1), init="ibp"), images(4, 12, 12, 1)
    logits, statistics = jax.jit(network.train)(network.variables, batch)
    apply = jax.jit(network.apply)
    same = apply({**network.variables, "batch_stats": statistics}, batch)
    np.testing.assert_allclose(logits, same, rtol=1e-3, atol=1e-4)
    initial = apply(network.variables, batch)
    assert np.abs(logits - initial).max() > 0.1


def test_training_without_batch_norm():
    network, batch = create("mlp"), images(4, 8, 8, 1)
    logits, statistics = network.train(network.variables, batch)
    assert statistics == {} and network.variables.keys() == {"params"}
    np.testing.assert_array_equal(logits, network.apply(network.variables, batch))


def test_pixels_are_normalised_inside():
    mean, std, x = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), images(4, 8, 8, 3)
    plain, inside = create("mlp", (8, 8, 3)), create("mlp", (8, 8, 3), mean=mean, std=std)
    expected = plain.apply(plain.variables, (x - jnp.array(mean)) / jnp.array(std))
    np.testing.assert_allclose(inside.apply(plain.variables, x), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(inside.train(plain.variables, x)[0], expected, rtol=1e-5, atol=1e-6)
    one = create("mlp", (8, 8, 3), std=(0.5,))
    np.testing.assert_allclose(one.apply(plain.variables, x), plain.apply(plain.variables, 2 * x), rtol=1e-5, atol=1e-6)


def test_weights_begin_as_in_pytorch():
    params = create("dm_small", MNIST).variables["params"]
    for layer, fan_in in (("Conv_0", 16), ("Conv_1", 16 * 16), ("Dense_0", 3200), ("Dense_1", 100)):
        bound = 1 / math.sqrt(fan_in)
        for leaf in params[layer].values():
            assert jnp.abs(leaf).max() <= bound
        kernel = params[layer]["kernel"]
        assert jnp.abs(kernel).max() > 0.9 * bound
        assert float(kernel.std()) == pytest.approx(bound / math.sqrt(3), rel=0.1)
        assert float(jnp.abs(params[layer]["bias"]).min()) > 0


@pytest.mark.slow(reason="compiles a ResNeXt")
def test_weights_for_interval_bounds():
    """Halved where a sum of two branches comes in: the first convolution and the shortcut of a block behind a block."""
    params = create("resnext", (12, 12, 1), init="ibp").variables["params"]
    halved = {"Conv_5", "Conv_8", "Conv_9", "Conv_12", "Dense_0"}
    layers = [layer for layer in params if "BatchNorm" not in layer and layer != "Dense_1"]
    assert len(layers) == 14
    for layer in layers:
        kernel = params[layer]["kernel"]
        fan_in = math.prod(kernel.shape[:-1])
        sigma = math.sqrt(2 * math.pi) / fan_in / (2 if layer in halved else 1)
        assert float(kernel.std()) == pytest.approx(sigma, rel=0.1), layer
        assert 0 < float(jnp.abs(params[layer]["bias"]).max()) <= 1 / math.sqrt(fan_in)
    assert float(jnp.abs(params["Dense_1"]["kernel"]).max()) <= 1 / math.sqrt(512)


def test_orthogonal_weights():
    params = create("mlp", init="orthogonal").variables["params"]
    for layer in ("Dense_0", "Dense_1"):
        kernel = params[layer]["kernel"]
        short = kernel @ kernel.T if kernel.shape[0] <= kernel.shape[1] else kernel.T @ kernel
        np.testing.assert_allclose(short, np.eye(len(short)), atol=1e-5)
    assert float(jnp.abs(params["Dense_3"]["kernel"]).max()) <= 1 / 16


def test_the_seed_decides():
    first, again, other = (make("mlp", seed=s).variables for s in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert all((a != b).any() for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(other), strict=True))


def test_leaky():
    relu, leaky = create("mlp"), create("mlp", activation="leaky")
    x, params = images(8, 8, 1), relu.variables["params"]
    out = x.ravel()
    for k in range(4):
        out = out @ params[f"Dense_{k}"]["kernel"] + params[f"Dense_{k}"]["bias"]
        out = jnp.where(out < 0, 0.01 * out, out) if k < 3 else out
    np.testing.assert_allclose(leaky.apply(relu.variables, x), out, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "name, activation, bound",
    [
        ("cnn_small_bn", "relu", jaxbound.crown_ibp),
        pytest.param("resnext", "relu", jaxbound.ibp, marks=pytest.mark.slow(reason="compiles a deep network")),
        ("kw", "leaky", jaxbound.ibp),
        ("kw", "ramp", jaxbound.ibp),
        ("kw", "leaky_ramp", jaxbound.crown_ibp),
    ],
)
def test_bounds_hold(name, activation, bound):
    shape = (12, 12, 1)
    options = {} if activation == "relu" else {"activation": activation, "mean": (0.5,), "std": (0.25,)}
    network = create(name, shape, init="ibp", **options)
    variables = network.variables
    if "batch_stats" in variables:
        variables = {**variables, "batch_stats": jax.tree.map(lambda leaf: leaf + 0.3, variables["batch_stats"])}
    box = jaxbound.linf_ball(images(*shape), 0.02)
    corners = jnp.where(images(20, *shape, seed=2) < 0.5, box.lower, box.upper)
    values = jax.jit(network.apply)(variables, corners)
    lower, upper = jax.jit(bound(network.apply))(variables, box)
    slack = 1e-5 * (1 + jnp.abs(values).max())
    assert (lower <= values + slack).all() and (values <= upper + slack).all()
    assert np.isfinite(lower).all() and np.isfinite(upper).all()


def test_bounds_go_through_the_convolution_of_this_device(monkeypatch):
    box, bounds = jaxbound.linf_ball(images(8, 8, 1), 0.05), []
    for function in (convolution.conv, lax.conv_general_dilated):
        monkeypatch.setattr(convolution, "for_backend", lambda function=function: function)
        network = make("kw")
        bounds.append(
            [jax.jit(bound(network.apply))(network.variables, box) for bound in (jaxbound.ibp, jaxbound.crown_ibp)]
        )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *bounds)
