import contextlib
import gc
import resource
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common import checkpoints

# Where a read fails, Orbax leaves the other reads' coroutines behind, which complain when they are collected.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

RUN = {"model": "mlp", "radius": 0.1, "lr_milestones": (1, 2)}


@pytest.fixture(autouse=True)
def collect():
    yield
    gc.collect()


class State(NamedTuple):
    step: object
    params: object


def state(step, size=3):
    return State(jnp.asarray(step), {"w": jnp.full(size, float(step))})


def opened(folder, run=RUN):
    return checkpoints.Checkpoints(folder, run)


def fill(folder, errors):
    store = opened(folder)
    for step, error in errors.items():
        store.save(state(step), None if error is None else {checkpoints.METRIC: error})
    return store


def kept(folder):
    return {int(path.name) for path in folder.iterdir()}


@contextlib.contextmanager
def full_disk():
    """No file may grow beyond a thousand bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_keeps_the_last_good_one(tmp_path):
    store = fill(tmp_path, {1: 30.0})
    store.close()
    store = opened(tmp_path)
    noise = np.random.default_rng(0).uniform(size=100_000)  # nothing that could be compressed
    with full_disk(), pytest.raises(checkpoints.CheckpointError, match="could not be written.*one before it is kept"):
        store.save(State(jnp.asarray(2), {"w": jnp.asarray(noise)}), {checkpoints.METRIC: 10.0})
        store.close()
    again = opened(tmp_path)
    assert again.step() == again.step("best") == 1
    found = again.restore(state(0), step=1, must_match=tuple(RUN))
    np.testing.assert_array_equal(found.params["w"], np.ones(3))
    again.save(state(3), {checkpoints.METRIC: 5.0})
    again.close()
    assert kept(tmp_path) == {3}


def test_a_donated_state_is_saved_as_it_was(tmp_path):
    """The next steps overwrite its memory while it is written."""
    store, overwrite = (
        opened(tmp_path),
        jax.jit(lambda state: jax.tree.map(lambda x: x * 0 - 1, state), donate_argnums=0),
    )
    given = state(1, size=1_000_000)
    store.save(given, {checkpoints.METRIC: 10.0})
    for _ in range(3):
        given = overwrite(given)
    np.testing.assert_array_equal(store.restore(given, step=1, must_match=()).params["w"], np.ones(1_000_000))
    store.close()


def test_an_empty_folder(tmp_path):
    store = opened(tmp_path)
    assert store.step() is None and store.step("best") is None


@pytest.mark.parametrize(
    "errors, last, best",
    [
        ({1: 30.0, 2: 10.0, 3: 20.0}, 3, 2),
        ({1: 30.0, 2: 20.0, 3: 10.0}, 3, 3),
        ({1: 10.0, 2: None, 3: None}, 3, 1),
    ],
)
def test_the_last_and_the_best_are_kept(tmp_path, errors, last, best):
    store = fill(tmp_path, errors)
    assert (store.step(), store.step("best")) == (last, best)
    store.close()
    assert kept(tmp_path) == {last, best}
    again = opened(tmp_path)
    assert (again.step(), again.step("best")) == (last, best)
    for step in (last, best):
        found = again.restore(state(0), step=step, must_match=("model", "lr_milestones"))
        assert isinstance(found, State) and found.step == step
        np.testing.assert_array_equal(found.params["w"], np.full(3, step))


def test_a_step_is_saved_once(tmp_path):
    store = fill(tmp_path, {1: 30.0})
    store.save(state(1)._replace(params={"w": jnp.zeros(3)}))
    np.testing.assert_array_equal(store.restore(state(0), step=1, must_match=()).params["w"], np.ones(3))


def test_another_run(tmp_path):
    fill(tmp_path, {1: 30.0}).close()
    store = opened(tmp_path, {**RUN, "radius": 0.2, "model": "kw"})
    with pytest.raises(checkpoints.CheckpointError, match="another run: it has --radius=0.1, not 0.2. Name another"):
        store.restore(state(0), step=1, must_match=("radius",))
    assert store.restore(state(0), step=1, must_match=("lr_milestones",)).step == 1


def test_a_flag_that_is_younger_than_the_checkpoint(tmp_path):
    fill(tmp_path, {1: 30.0}).close()
    assert opened(tmp_path, {**RUN, "precision": "high"}).restore(state(0), step=1, must_match=("precision",)).step == 1


def test_another_shape_under_the_same_name(tmp_path):
    fill(tmp_path, {1: 30.0}).close()
    with pytest.raises(checkpoints.CheckpointError, match="1 is damaged, half-written or of another model"):
        opened(tmp_path).restore(state(0, size=4), step=1, must_match=("model",))


@pytest.mark.parametrize("part", ["run", "state", "state/manifest.ocdbt"])
def test_a_damaged_checkpoint(tmp_path, part):
    fill(tmp_path, {1: 30.0}).close()
    damaged = tmp_path / "1" / part
    if damaged.is_dir():
        for path in damaged.rglob("*"):
            if path.is_file():
                path.unlink()
    else:
        damaged.write_bytes(damaged.read_bytes()[:10])
    with pytest.raises(
        checkpoints.CheckpointError, match="1 is damaged, half-written or of another model: .*Delete that"
    ):
        opened(tmp_path).restore(state(0), step=1, must_match=("model",))


def test_a_half_written_checkpoint_is_passed_over(tmp_path):
    fill(tmp_path, {1: 30.0}).close()
    (tmp_path / "2.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    assert opened(tmp_path).step() == 1
