import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common import models, placement, recipes
from experiments.common.data import Split
from experiments.common.flags import Config, CrownConfig

EPOCH = 10  # steps


@pytest.fixture(scope="module")
def network():
    return models.create("mlp", shape=(4, 4, 1), num_classes=3, seed=0)


def recipe(network, config):
    return recipes.make(network, config, None, steps_per_epoch=EPOCH, placement=placement.make("data:2"))


def knobs(recipe, step):
    return recipe.phase(step).knobs(step, None)


def test_phases_and_what_is_known_in_them(network):
    config = CrownConfig(epochs=20, warmup_epochs=2, ramp_epochs=8, radius=0.4, regularization=0.5)
    made = recipe(network, config)
    assert [phase.begin for phase in made.phases] == [0, 2 * EPOCH, 10 * EPOCH]
    assert made.total_steps == 20 * EPOCH
    assert knobs(made, 19)[:4] == (0.0, 1, 0, 0.5)
    np.testing.assert_allclose(knobs(made, 60)[:4], (0.2, 0.75, 0.5, 0.25), rtol=1e-6)
    # Python numbers: neither the linear bound nor the regularisers are computed any more.
    assert knobs(made, 100)[:4] == (0.4, 0.5, 0.0, 0)
    assert all(isinstance(value, int | float) for value in knobs(made, 100)[1:4])


def test_constant_weights_are_known(network):
    made = recipe(network, Config(epochs=20, warmup_epochs=2, ramp_epochs=8, kappa_start=0, kappa_end=0))
    assert knobs(made, 60).kappa == 0 and isinstance(knobs(made, 60).kappa, int | float)
    assert knobs(made, 60).beta == 0 and isinstance(knobs(made, 60).beta, int | float)


def test_a_ramp_from_the_first_step(network):
    made = recipe(network, Config(epochs=20, warmup_epochs=0, ramp_epochs=10, radius=0.4))
    assert [phase.begin for phase in made.phases] == [0, 100]
    assert float(knobs(made, 0).radius) == 0 and float(knobs(made, 50).radius) == pytest.approx(0.2)


def test_the_smoothed_ramp_takes_its_middle(network):
    flags = {"epochs": 200, "warmup_epochs": 0, "ramp_epochs": 100, "radius": 1.0, "ramp": "smoothed"}
    for mid, expected in ((0.25, 0.384615), (0.4, 0.285714)):
        made = recipe(network, Config(**flags, ramp_mid=mid))
        assert float(knobs(made, 500).radius) == pytest.approx(expected, abs=1e-6)


def test_steps_of_a_trial(network):
    assert recipe(network, Config(epochs=60, max_steps=7)).total_steps == 7
    assert recipe(network, Config(epochs=60, max_steps=7000)).total_steps == 600


def test_learning_rate_counts_accumulated_steps(network):
    """Two steps make one update, and the rate decays at the same epoch as without."""
    config = Config(epochs=60, learning_rate=1.0, lr_milestones=(1,), accumulation=2)
    optimizer, params = recipe(network, config).optimizer, jnp.zeros(())
    state, seen = optimizer.init(params), []
    for _ in range(2 * EPOCH):
        update, state = optimizer.update(jnp.ones(()), state, params)
        seen.append(float(update))
    assert [round(value, 3) for value in seen] == [0, -1] * 5 + [0, -0.1] * 5


def test_gradients_are_clipped(network):
    unclipped, clipped = (recipe(network, Config(epochs=60, grad_clip=clip)).optimizer for clip in (0.0, 1e-9))
    params = jnp.zeros(())
    sizes = [abs(float(o.update(jnp.ones(()), o.init(params), params)[0])) for o in (unclipped, clipped)]
    assert sizes[1] < 0.2 * sizes[0]  # Adam's epsilon rules such a small gradient


@pytest.fixture(scope="module")
def ramps():
    return models.create("mlp", shape=(4, 4, 1), num_classes=3, seed=0, activation="leaky_ramp")


def test_batches_of_an_evaluation_are_alike_however_the_file_is_sorted():
    images = np.repeat(np.arange(205, dtype=np.uint8), 16).reshape(205, 4, 4, 1)
    config, where = Config(epochs=60, batch_size=40), placement.make("data:2")
    batches = np.stack(list(recipes.evaluation_batches(config, Split(images, np.zeros(205, np.int32)), where)))
    assert batches.shape == (5, 40, 4, 4, 1)
    assert len(np.unique(batches)) == 200
    np.testing.assert_allclose(batches.mean(axis=(1, 2, 3, 4)), images.mean() / 255, atol=0.1)


def tops(variables):
    return [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"]) if "top" in str(path[-1])]


def test_ramps_start_at_mean_activations_and_stay_positive(ramps):
    config = Config(epochs=60, activation="leaky_ramp", batch_size=4)
    made = recipe(ramps, config)
    assert all(np.isinf(top).all() for top in tops(ramps.variables))
    images = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 1), np.uint8)
    started = made.phases[1].enter(ramps.variables, Split(images, np.zeros(8, np.int32)))
    hidden = images.reshape(8, -1) / 255 @ started["params"]["Dense_0"]["kernel"]
    hidden += started["params"]["Dense_0"]["bias"]
    mean = jnp.where(hidden > 0, hidden, 0.01 * hidden).mean(axis=0)
    np.testing.assert_allclose(tops(started)[0], np.maximum(mean, 1e-4), rtol=1e-5, atol=1e-6)
    lowered = jax.tree.map(lambda leaf: leaf - 10, started["params"])
    settled = made.settle(jax.random.key(0), lowered, 0)
    assert all(float(top.min()) == pytest.approx(1e-4) for top in tops({"params": settled}))
    np.testing.assert_array_equal(settled["Dense_0"]["kernel"], lowered["Dense_0"]["kernel"])


def test_ramps_are_noisy_after_updates_only(ramps):
    config = Config(epochs=60, activation="leaky_ramp", ramp_noise=0.01, accumulation=2)
    params = jax.tree.map(jnp.ones_like, ramps.variables["params"])
    settled = [recipe(ramps, config).settle(jax.random.key(step), params, jnp.asarray(step)) for step in range(4)]
    moved = [[float(jnp.abs(top - 1).max()) for top in tops({"params": each})] for each in settled]
    assert not np.any(moved[0::2]) and np.all(moved[1::2])


def test_the_slope_follows_its_schedule(ramps):
    config = Config(epochs=60, activation="leaky_ramp", slope_end=0.0, slope_begin_epoch=10, slope_epochs=20)
    made = recipe(ramps, config)
    slopes = [float(knobs(made, step).slope) for step in (0, 100, 200, 300, 599)]
    assert slopes == pytest.approx([0.01, 0.01, 0.005, 0, 0])
    variables = recipes.initial(ramps, config)
    x = -jnp.ones((4, 4, 1))
    flat = {**variables, "schedule": jax.tree.map(jnp.zeros_like, variables["schedule"])}
    np.testing.assert_array_equal(ramps.apply(variables, x), ramps.apply(ramps.variables, x))
    assert not np.array_equal(ramps.apply(flat, x), ramps.apply(variables, x))
