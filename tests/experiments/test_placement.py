"""Training spread over eight devices is training on one."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import mnist_crown_ibp, mnist_global, mnist_ibp
from experiments.common import data, job, placement, train
from experiments.common.errors import UserError
from tests.experiments import tiny_runs

PROGRAMS = {"ibp": mnist_ibp, "crown_ibp": mnist_crown_ibp, "global": mnist_global}
STEPS = 50


def made(name, **changes):
    """A run of 50 steps, most of them on the ramp."""
    values = {"epochs": 10, "warmup_epochs": 1, "ramp_epochs": 8, "lr_milestones": (), "eval_size": 8, **changes}
    program = PROGRAMS[name]
    return job.make(program.NAME, program.BOUND, tiny_runs.config("unused", program, **values))


def trained(name, dtype=None, **changes):
    """The parameters after the last step, trained in another precision where one is given."""
    this, state = made(name, **changes), None
    state = this.state
    if dtype:
        state = jax.tree.map(lambda x: x.astype(dtype) if x.dtype == jnp.float32 else x, state)
    *_, last = train.run(state, this.recipe, this.training, every=STEPS, placement=this.placement)
    assert train.steps_taken(last) == STEPS
    return jax.tree.map(np.asarray, last.variables["params"])


def distance(first, second):
    first, second = (np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)]) for tree in (first, second))
    return np.linalg.norm(first - second) / np.linalg.norm(second)


@pytest.mark.slow(reason="the test in float64 is the sharper one")
@pytest.mark.parametrize("name, seeds", [*((name, 1) for name in PROGRAMS), ("ibp", 2)])
def test_fifty_steps_on_eight_devices_are_those_on_one(tiny, name, seeds):
    changes = {"learning_rate": 1e-3, "num_seeds": seeds}
    first, second = (trained(name, mesh=mesh, **changes) for mesh in ("data:4,model:2", "data:1"))
    assert distance(first, second) < 1e-5


@pytest.mark.parametrize(
    "name",
    [
        "ibp",
        pytest.param("crown_ibp", marks=pytest.mark.slow(reason="compiles twice as long")),
        pytest.param("global", marks=pytest.mark.slow(reason="crown_ibp with more examples")),
    ],
)
def test_in_float64_to_the_last_digits(tiny, double, name):
    first, second = (trained(name, float, mesh=mesh) for mesh in ("data:4,model:2", "data:1"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), first, second)


@pytest.mark.slow(reason="compiles a deep network twice")
def test_batch_statistics_are_of_the_whole_batch(tiny, double):
    changes = {"model": "cnn_small_bn", "batch_size": 16, "epochs": 1, "warmup_epochs": 0, "ramp_epochs": 1}
    found = []
    for mesh in ("data:8", "data:1"):
        this = made("ibp", mesh=mesh, **changes)
        state = jax.tree.map(lambda x: x.astype(float) if x.dtype == jnp.float32 else x, this.state)
        *_, last = train.run(state, this.recipe, this.training, every=STEPS, placement=this.placement)
        found.append(jax.tree.map(np.asarray, last.variables["batch_stats"]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), *found)


@pytest.mark.parametrize(
    "name, model",
    [
        pytest.param("ibp", "cnn_small_bn", marks=pytest.mark.slow(reason="compiles a deep network")),
        ("crown_ibp", "mlp"),
        ("global", "mlp"),
    ],
)
def test_all_that_devices_exchange_are_sums(tiny, name, model):
    """Of gradients, of metrics, of batch statistics: everything else stays where it is."""
    this = made(name, mesh="data:8", model=model)
    batch = this.placement.take(this.training, np.arange(32))
    step = train.compile_step(this.recipe.phases[1], this.recipe, this.placement.of_state(this.state))
    text = step.lower(this.state, batch).compile().as_text()
    found = re.findall(r" (all-\w+|collective-\w+|reduce-scatter)(?:-start)?\(", text)
    assert found and set(found) == {"all-reduce"}
    assert len(found) <= (1 if model == "mlp" else 7)  # XLA sums all that is ready together


def test_a_step_compiles_once(tiny):
    this = made("ibp", mesh="data:8", batch_size=16, epochs=3, ramp_epochs=1)
    compiled = []

    def count(event, *_, **__):
        if "backend_compile" in event:
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(count)
    counts = []
    for _ in train.run(this.state, this.recipe, this.training, every=1, placement=this.placement):
        counts.append(len(compiled))
    first, ramp, full = (phase.begin for phase in this.recipe.phases)
    assert counts[first] < counts[ramp] < counts[full]  # each phase's first step compiles it
    for begin, end in ((first, ramp), (ramp, full), (full, len(counts))):
        assert len(set(counts[begin:end])) == 1


# What --mesh may be.


def test_the_default_is_all_devices():
    assert dict(placement.make("").mesh.shape) == {"data": 8, "model": 1}
    assert dict(placement.make("model:2").mesh.shape) == {"data": 1, "model": 2}


@pytest.mark.parametrize("text", ["data", "data:x", "data:0", "rows:2", "data:2,data:2", "data:-1", "data:2;model:2"])
def test_what_is_no_mesh(text):
    with pytest.raises(UserError, match=f"--mesh={re.escape(text)} is no mesh.*--mesh=data:4,model:2"):
        placement.make(text)


def test_a_mesh_larger_than_the_devices():
    with pytest.raises(UserError, match="--mesh=data:8,model:2 needs 16 devices, of which there are 8"):
        placement.make("data:8,model:2")


def test_a_batch_that_the_mesh_does_not_divide(tiny):
    with pytest.raises(UserError, match=r"--batch_size=28 cannot be spread evenly over the 8 devices.*data:4"):
        made("ibp", mesh="", batch_size=28)
    made("ibp", mesh="", batch_size=28, eval_only=True)  # an evaluation fills up its batches


def test_features_are_spread_where_they_can_be():
    where = placement.make("data:2,model:4")
    state = {"kernel": jnp.zeros((3, 8)), "odd": jnp.zeros((8, 6)), "count": jnp.zeros(())}
    found = jax.tree.map(lambda leaf: leaf.sharding.spec, where.put(state))
    assert found == {
        "kernel": jax.sharding.PartitionSpec(None, "model"),
        "odd": jax.sharding.PartitionSpec(),
        "count": jax.sharding.PartitionSpec(),
    }
    seeds = where.put({"step": jnp.zeros(4)}, stacked=True)  # one number for each of four seeds: no features
    assert seeds["step"].sharding.spec == jax.sharding.PartitionSpec()


def test_a_batch_is_sent_in_parts():
    where, split = placement.make("data:4,model:2"), data.Split(np.arange(64).reshape(32, 2), np.arange(32))
    chosen = np.array([3, 1, 4, 15, 9, 2, 6, 5])
    batch = where.take(split, chosen)
    for shard in batch.labels.addressable_shards:
        np.testing.assert_array_equal(shard.data, chosen[shard.index])
    np.testing.assert_array_equal(batch.images, split.images[chosen])
