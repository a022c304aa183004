import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.common import data, placement, train
from experiments.common.methods import cross_entropy, error

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


def batches_of(epoch):
    order = data.permutation(SIZE, seed=0, epoch=epoch)
    chosen = [order[start : start + BATCH] for start in range(0, STEPS * BATCH, BATCH)]
    return [data.Split(*(leaf[part] for leaf in split())) for part in chosen]


def natural(variables, batch, knobs):
    logits = apply(variables["params"], batch.images)
    return cross_entropy(logits, batch.labels), ({"clean_error": error(logits, batch.labels)}, {})


def knobs(step, key):
    return train.Knobs(0.01 * step, 0.5, 0, 0, None, key)


def recipe(method=natural, **changes):
    values = {
        "method": method,
        "phases": (train.Phase(0, knobs),),
        "optimizer": optax.adam(0.1),
        "total_steps": 3 * STEPS,
        "steps_per_epoch": STEPS,
        "batch_size": BATCH,
        "seeds": (0,),
    }
    return train.Recipe(**{**values, **changes})


def run(state, recipe, *, every):
    where = placement.make("data:1")
    yield from train.run(where.put(state), recipe, split(), every=every, placement=where)


def last(recipe, *, every=100):
    return list(run(start(recipe), recipe, every=every))[-1]


def start(recipe, variables=None):
    states = [
        train.init_state(variables or {"params": params()}, recipe, seed=seed, shape=SHAPE) for seed in recipe.seeds
    ]
    return train.stack(states)


@pytest.mark.parametrize("mesh", ["data:1", "data:4", "data:2,model:2"])
def test_batches_are_those_of_the_epochs_order(mesh):
    found = list(train.batches(recipe(), split(), placement.make(mesh), step=0))
    expected = [batch for epoch in range(3) for batch in batches_of(epoch)]
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_batches_go_on_inside_an_epoch():
    every, where = list(train.batches(recipe(), split(), placement.make("data:1"), step=0)), placement.make("data:2")
    found = list(train.batches(recipe(), split(), where, step=STEPS + 2))
    jax.tree.map(np.testing.assert_array_equal, found, every[STEPS + 2 :])


def test_batches_of_several_seeds_are_stacked():
    first, second = (next(train.batches(recipe(seeds=(k,)), split(), placement.make("data:2"), step=3)) for k in (3, 4))
    both = next(train.batches(recipe(seeds=(3, 4)), split(), placement.make("data:2"), step=3))
    jax.tree.map(lambda a, b, c: np.testing.assert_array_equal(np.stack([a, b]), c), first, second, both)


def test_the_steps_are_those_of_a_plain_loop():
    given, expected = recipe(), params()
    opt_state = given.optimizer.init(expected)
    for epoch in range(3):
        for batch in batches_of(epoch):
            images = jnp.asarray(batch.images / np.float32(255))
            method = lambda p: cross_entropy(apply(p, images), batch.labels)  # noqa: B023, E731
            updates, opt_state = given.optimizer.update(jax.grad(method)(expected), opt_state)
            expected = optax.apply_updates(expected, updates)
    state = last(given)
    assert state.step == 3 * STEPS
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), state.variables["params"], expected
    )


def test_how_often_one_looks_changes_nothing():
    first, second = last(recipe(), every=1), last(recipe(), every=3)
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_yields_end_with_the_epoch():
    given = recipe()
    steps = [int(state.step) for state in run(start(given), given, every=3)]
    assert steps == [3, 5, 8, 10, 13, 15]


def test_totals_are_those_of_the_epoch():
    given = recipe(optimizer=optax.set_to_zero())
    *_, whole = (float(state.totals["loss"]) for state in run(start(given), given, every=STEPS))
    losses = [cross_entropy(apply(params(), b.images / np.float32(255)), b.labels) for b in batches_of(2)]
    assert whole == pytest.approx(float(sum(losses)), rel=1e-5)


def test_a_phase_takes_over_with_its_knobs():
    seen = []

    def method(variables, batch, knobs):
        seen.append(knobs.kappa)
        return 0 * variables["params"]["b"].sum() + knobs.radius, ({"clean_error": jnp.asarray(7.0)}, {})

    def later(step, key):
        return knobs(step, key)._replace(kappa=0)

    given = recipe(method, phases=(train.Phase(0, knobs), train.Phase(STEPS + 2, later)))
    losses = [float(state.totals["loss"]) for state in run(start(given), given, every=STEPS)]
    assert losses == pytest.approx([0.01 * sum(range(k * STEPS, (k + 1) * STEPS)) for k in range(3)])
    assert seen[1:] == [0.5, 0]  # known when a step is compiled; the first look was for the metrics' names


def test_what_a_phase_begins_with_is_done_once():
    counts = []

    def enter(variables, examples):
        counts.append(len(examples.labels))
        return {"params": jax.tree.map(jnp.zeros_like, variables["params"])}

    given = recipe(phases=(train.Phase(0, knobs), train.Phase(STEPS, knobs, enter)), optimizer=optax.set_to_zero())
    states = [jax.tree.map(np.array, state) for state in run(start(given), given, every=2)]
    assert counts == [SIZE]
    changed = {int(state.step): not state.variables["params"]["w"].any() for state in states}
    assert changed == {step: step > STEPS for step in changed}
    # A run that is resumed there does it again, from the state before it.
    resumed = start(given)._replace(step=jnp.asarray(STEPS, jnp.int32))
    assert not last_of(given, resumed).variables["params"]["w"].any() and len(counts) == 2


def last_of(recipe, state):
    return list(run(state, recipe, every=100))[-1]


def test_images_are_augmented_and_parameters_settled():
    def augment(key, images):
        return images * 0

    def settle(key, params, step):
        return {**params, "b": params["b"] * 0 + 2}

    given = recipe(augment=augment, settle=settle, total_steps=1)
    state = last(given)
    np.testing.assert_array_equal(state.variables["params"]["b"], 2)
    np.testing.assert_array_equal(state.variables["params"]["w"], params()["w"])  # black images have no gradient


def test_batch_statistics_are_averaged():
    def method(variables, batch, knobs):
        loss, (metrics, _) = natural(variables, batch, knobs)
        return loss, (metrics, {"mean": jnp.full(2, 3.0)})

    variables = {"params": params(), "batch_stats": {"mean": jnp.zeros(2)}}
    given = recipe(method, momentum=0.5, total_steps=2)
    state = last_of(given, start(given, variables))
    np.testing.assert_allclose(state.variables["batch_stats"]["mean"], 0.75 * 3)


def test_seeds_side_by_side_are_those_one_by_one():
    def noisy(key, images):
        return images + jax.random.randint(key, images.shape, 0, 2, jnp.uint8)

    together = train.members(last(recipe(seeds=(3, 4), augment=noisy)))
    for seed, state in zip((3, 4), together, strict=True):
        alone = last(recipe(seeds=(seed,), augment=noisy))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), state, alone)
    weights = [np.asarray(state.variables["params"]["w"]) for state in together]
    assert np.abs(weights[0] - weights[1]).max() > 1e-3


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing(broken):
    def method(variables, batch, knobs):
        loss, rest = natural(variables, batch, knobs)
        bad = knobs.radius > 0.065  # from step 7 on
        if broken == "loss":
            return jnp.where(bad, jnp.inf, loss), rest
        # The square root of 0 is fine, its slope is not.
        return loss + jnp.sqrt(jnp.where(bad, 0 * variables["params"]["b"].sum(), 1.0)), rest

    given, seen = recipe(method), []
    with pytest.raises(train.Diverged, match=r"not finite at step 7 \(epoch 2\)"):
        for state in run(start(given), given, every=1):
            seen.append(jax.tree.map(np.array, state))
    assert seen[-1].step == 7
    for state, sound in zip(seen, run(start(recipe()), recipe(), every=1), strict=False):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), state.variables, sound.variables)


@pytest.mark.parametrize("precision, name", [("highest", "HIGHEST"), ("high", "HIGH"), ("default", "DEFAULT")])
def test_matrix_products_of_a_step_have_the_precision_asked_for(precision, name):
    given, where = recipe(precision=precision), placement.make("data:1")
    batch = where.take(split(), np.arange(BATCH))
    text = train.compile_step(given.phases[0], given).lower(start(given), batch).as_text()
    found = re.findall(r"dot_general.*?precision = \[(\w+), (\w+)\]", text)
    assert found and {operand for pair in found for operand in pair} == {name}
