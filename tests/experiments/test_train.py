import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.common import data, train

SHAPE, CLASSES, SIZE, BATCH = (2, 2, 1), 3, 22, 4
STEPS = SIZE // BATCH  # a remainder of two examples


def apply(params, x):
    return x.reshape(*x.shape[:-3], -1) @ params["w"] + params["b"]


def params():
    return {"w": jax.random.normal(jax.random.key(0), (4, CLASSES)), "b": jnp.zeros(CLASSES)}


def split():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (SIZE, *SHAPE), np.uint8)
    return data.Split(images, rng.integers(0, CLASSES, SIZE).astype(np.int32))


def recipe(method=None, **changes):
    natural = train.natural(apply)
    values = {
        "method": method or natural,
        "warmup": natural,
        "knobs": lambda step: train.Knobs(0.01 * step, 0.5, jax.random.fold_in(jax.random.key(0), step)),
        "optimizer": optax.adam(0.1),
        "warmup_steps": 0,
        "total_steps": 3 * STEPS,
        "steps_per_epoch": STEPS,
        "batch_size": BATCH,
        "seed": 0,
    }
    return train.Recipe(**{**values, **changes})


def last(recipe, *, every=100):
    states = list(train.run(start(recipe), recipe, split(), every=every))
    return states[-1]


def start(recipe):
    return train.init_state(params(), recipe, shape=SHAPE)


def test_error_and_cross_entropy():
    logits = jnp.array([[2.0, 1.0], [0.0, 1.0], [1.0, 1.0], [jnp.nan, 0.0]])
    assert train.error(logits, jnp.array([0, 0, 0, 1])) == 75  # ties and NaN are errors
    expected = -jax.nn.log_softmax(logits[:2])[np.arange(2), np.array([0, 0])].mean()
    np.testing.assert_allclose(train.cross_entropy(logits[:2], jnp.array([0, 0])), expected, rtol=1e-6)


def test_natural_reports_every_metric():
    batch = train.Batch(jnp.zeros((2, *SHAPE)), jnp.array([0, 1]))
    loss, metrics = train.natural(apply, metrics=("verified_error", "pgd_error"))(params(), batch, None)
    assert loss == pytest.approx(np.log(3))
    assert metrics.keys() == {"clean_error", "verified_error", "pgd_error"}
    assert len({float(value) for value in metrics.values()}) == 1


def test_the_steps_are_those_of_a_plain_loop():
    given, expected = recipe(), params()
    opt_state = given.optimizer.init(expected)
    for epoch in range(3):
        for batch in data.batches(split(), BATCH, seed=0, epoch=epoch):
            images = jnp.asarray(batch.images / np.float32(255))
            method = lambda p: train.cross_entropy(apply(p, images), batch.labels)  # noqa: B023, E731
            updates, opt_state = given.optimizer.update(jax.grad(method)(expected), opt_state)
            expected = optax.apply_updates(expected, updates)
    state = last(given)
    assert state.step == 3 * STEPS
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), state.params, expected)


def test_how_often_one_looks_changes_nothing():
    first, second = last(recipe(), every=1), last(recipe(), every=3)
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_yields_end_with_the_epoch():
    given = recipe()
    steps = [int(state.step) for state in train.run(start(given), given, split(), every=3)]
    assert steps == [3, 5, 8, 10, 13, 15]


def test_totals_are_those_of_the_epoch():
    given = recipe(optimizer=optax.set_to_zero())
    *_, whole = (float(state.totals["loss"]) for state in train.run(start(given), given, split(), every=STEPS))
    batches = list(data.batches(split(), BATCH, seed=0, epoch=2))
    losses = [train.cross_entropy(apply(params(), b.images / np.float32(255)), b.labels) for b in batches]
    assert whole == pytest.approx(float(sum(losses)), rel=1e-5)


def test_the_method_takes_over_after_warm_up():
    def constant(params, batch, knobs):
        return 0 * params["b"].sum() + knobs.radius, {"clean_error": 7.0, "verified_error": 8.0}

    given = recipe(constant, warmup_steps=STEPS)
    states = train.run(start(given), given, split(), every=STEPS)
    before, after, _ = ({name: float(total) for name, total in state.totals.items()} for state in states)
    assert before["verified_error"] == before["clean_error"] != 7 * STEPS
    assert after["verified_error"] == 8 * STEPS
    assert after["loss"] == pytest.approx(0.01 * sum(range(STEPS, 2 * STEPS)))


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing(broken):
    def method(params, batch, knobs):
        loss, metrics = train.natural(apply)(params, batch, knobs)
        bad = knobs.radius > 0.065  # from step 7 on
        if broken == "loss":
            return jnp.where(bad, jnp.inf, loss), metrics
        # The square root of 0 is fine, its slope is not.
        return loss + jnp.sqrt(jnp.where(bad, 0 * params["b"].sum(), 1.0)), metrics

    given, seen = recipe(method), []
    with pytest.raises(train.Diverged, match=r"not finite at step 7 \(epoch 2\)"):
        for state in train.run(start(given), given, split(), every=1):
            seen.append(jax.tree.map(np.array, state))
    assert seen[-1].step == 7
    for state, sound in zip(seen, train.run(start(recipe()), recipe(), split(), every=1), strict=False):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), state.params, sound.params)
