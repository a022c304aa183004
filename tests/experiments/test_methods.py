import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbound
from experiments.common import methods, models, train
from experiments.common.flags import Config, CrownConfig, GlobalConfig
from jaxbound import losses, regularizers

SHAPE, CLASSES = (4, 4, 1), 3


@pytest.fixture(scope="module")
def network():
    return models.create("mlp", shape=SHAPE, num_classes=CLASSES, seed=0)


@pytest.fixture(scope="module")
def batch():
    images = jax.random.uniform(jax.random.key(1), (5, *SHAPE))
    return train.Batch(images, jnp.arange(5) % CLASSES)


def knobs(**changes):
    values = {"radius": 0.05, "kappa": 0, "beta": 0, "regularization": 0, "slope": None, "key": None}
    return train.Knobs(**{**values, **changes})


def loss(network, batch, bound=methods.ibp, config=None, **changes):
    config = config or Config(epochs=60)
    method = methods.make(network, config, bound(network, config))
    return method(network.variables, batch, knobs(**changes))


def interval_margins(network, batch, radius):
    """IBP with elision in plain NumPy, one example after the other."""
    layers = [(np.asarray(p["kernel"], np.float64), np.asarray(p["bias"], np.float64)) for p in in_order(network)]
    rows = []
    for image, label in zip(np.asarray(batch.images, np.float64), np.asarray(batch.labels), strict=True):
        flat = image.ravel()
        lower, upper = np.maximum(flat - radius, 0), np.minimum(flat + radius, 1)
        for kernel, bias in layers[:-1]:
            middle, width = (lower + upper) / 2 @ kernel + bias, (upper - lower) / 2 @ np.abs(kernel)
            lower, upper = np.maximum(middle - width, 0), np.maximum(middle + width, 0)
        kernel, bias = layers[-1]
        margins = []
        for other in (j for j in range(CLASSES) if j != label):
            row = kernel[:, label] - kernel[:, other]
            margins.append(np.maximum(row, 0) @ lower + np.minimum(row, 0) @ upper + bias[label] - bias[other])
        rows.append(margins)
    return np.array(rows)


def in_order(network):
    params = network.variables["params"]
    return [params[f"Dense_{k}"] for k in range(len(params))]


def near(x):
    return pytest.approx(float(x), rel=1e-5)


def robust_loss(margins):
    return np.log1p(np.exp(-margins).sum(axis=1)).mean()


def test_the_loss_of_ibp_is_that_of_plain_numpy(network, batch):
    margins = interval_margins(network, batch, 0.05)
    found, (metrics, stats) = loss(network, batch)
    assert found == near(robust_loss(margins))
    assert metrics["verified_error"] == pytest.approx(100 * np.mean(~(margins > 0).all(axis=1)))
    assert stats == {}


def test_kappa_mixes_in_the_natural_loss(network, batch):
    logits = network.apply(network.variables, batch.images)
    natural = methods.cross_entropy(logits, batch.labels)
    robust = loss(network, batch)[0]
    for kappa in (0.25, jnp.asarray(0.25)):
        assert loss(network, batch, kappa=kappa)[0] == near(0.25 * natural + 0.75 * robust)
    found, (metrics, _) = loss(network, batch, kappa=1)
    assert found == near(natural) and metrics["verified_error"] == metrics["clean_error"]


def test_ordinary_training_bounds_nothing(network, batch):
    def bound(network, config):
        def never(*_):
            raise AssertionError("nothing is to be bounded")

        return never

    assert jnp.isfinite(loss(network, batch, bound=bound, kappa=1)[0])


def test_beta_mixes_the_margins(network, batch):
    config = CrownConfig()
    pure = {beta: loss(network, batch, methods.crown_ibp, config, beta=beta)[0] for beta in (0, 1)}
    assert pure[0] == near(loss(network, batch)[0])
    assert pure[1] < pure[0]
    between = loss(network, batch, methods.crown_ibp, config, beta=jnp.asarray(0.5))[0]
    assert pure[1] < between < pure[0]


def test_the_runner_up_alone_is_part_of_all_classes(network, batch):
    every, one = (loss(network, batch, methods.crown_ibp, CrownConfig(runner_up=r), beta=1)[0] for r in (False, True))
    assert one < every


def test_fused_loss(network, batch):
    config = CrownConfig(loss_fusion=True)
    assert loss(network, batch, methods.crown_ibp, config, beta=0)[0] == near(loss(network, batch)[0])
    found, (metrics, _) = loss(network, batch, methods.crown_ibp, config, beta=1)
    natural = methods.cross_entropy(network.apply(network.variables, batch.images), batch.labels)
    assert natural < found and 0 <= metrics["verified_error"] <= 100


def test_what_the_fused_loss_verifies_is_verified(network):
    """Small sets around images that are classified by what the network says: some verified, none of them wrongly."""
    apply = network.apply
    network = network._replace(apply=lambda variables, x: 1000 * apply(variables, x))
    images = jax.random.uniform(jax.random.key(2), (40, *SHAPE))
    labels = jnp.argmax(network.apply(network.variables, images), axis=-1)
    config = CrownConfig(loss_fusion=True)
    bound, plain = (methods.crown_ibp(network, c) for c in (config, CrownConfig()))
    each = [b(network.variables, train.Batch(images, labels), knobs(beta=0, radius=1e-4)) for b in (bound, plain)]
    assert np.asarray(each[0].verified).any()
    assert not (np.asarray(each[0].verified) & ~np.asarray(each[1].verified)).any()


def test_global_training_weighs_several_radii(network, batch):
    config = GlobalConfig(radii=3, weight_list=(0.5, 0.3, 0.2))
    expected = sum(
        weight * robust_loss(interval_margins(network, batch, 0.05 * (k + 1) / 3))
        for k, weight in enumerate((0.5, 0.3, 0.2))
    )
    found, (metrics, _) = loss(network, batch, methods.global_robust, config)
    assert found == near(expected)
    at_full = interval_margins(network, batch, 0.05)
    assert metrics["verified_error"] == pytest.approx(100 * np.mean(~(at_full > 0).all(axis=1)))
    assert loss(network, batch, methods.global_robust, GlobalConfig(radii=1))[0] == near(loss(network, batch)[0])


def test_regularisers_join_the_loss(network, batch):
    plain = loss(network, batch)[0]
    boxes = jaxbound.linf_ball(batch.images, 0.05)
    layers = jax.vmap(lambda box: jaxbound.layer_bounds(network.apply)(network.variables, box))(boxes)
    warm = regularizers.tightness(layers, jaxbound.radius(boxes).mean()) + regularizers.balance(layers)
    assert loss(network, batch, regularization=0.5)[0] == near(plain + 0.5 * warm)
    l1, stability = regularizers.l1(network.variables["params"]), regularizers.stability(layers)
    assert loss(network, batch, config=Config(l1=1e-3))[0] == near(plain + 1e-3 * l1)
    assert loss(network, batch, config=Config(stability=0.1))[0] == near(plain + 0.1 * stability)


def test_regularisers_of_the_warm_up_look_at_a_tiny_radius(network, batch):
    found = loss(network, batch, kappa=1, radius=0.0, regularization=0.5)[0]
    assert np.isfinite(found) and found > loss(network, batch, kappa=1, radius=0.0)[0]


@pytest.mark.parametrize("kappa", [1, 0.5])
def test_regularisers_do_not_change_below_the_smallest_radius(network, batch, kappa):
    found = [loss(network, batch, kappa=kappa, radius=r, regularization=0.5)[0] for r in (0.0, 1e-8, 1e-6)]
    assert found == [near(found[-1])] * 3


def test_bounds_take_the_batch_statistics(batch):
    """The loss is that of the network whose running averages are this batch's statistics."""
    network = models.create("cnn_small_bn", shape=(12, 12, 1), num_classes=CLASSES, seed=0)
    batch = train.Batch(jax.random.uniform(jax.random.key(1), (5, 12, 12, 1)), batch.labels)
    found, (_, stats) = loss(network, batch)
    assert stats.keys() == network.variables["batch_stats"].keys()
    fixed = {**network.variables, "batch_stats": stats}

    def margins(image, label):
        spec = jaxbound.margin_spec(label, CLASSES)
        return jaxbound.ibp(network.apply)(fixed, jaxbound.linf_ball(image, 0.05), spec=spec)

    expected = losses.robust_cross_entropy(jax.vmap(margins)(batch.images, batch.labels)).mean()
    assert found == near(expected)


@pytest.mark.parametrize(
    "norm, clip, kind", [("inf", True, jaxbound.Interval), ("2", False, jaxbound.Ball), ("1", False, jaxbound.Ball)]
)
def test_regions(norm, clip, kind):
    found = methods.region(jnp.zeros(SHAPE), 0.5, Config(norm=norm, clip=clip))
    assert isinstance(found, kind)
    lowest = found.lower if kind is jaxbound.Interval else found.center - found.radius
    assert float(np.min(lowest)) == (0 if clip else -0.5)
