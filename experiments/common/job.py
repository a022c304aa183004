"""What a run works on: its flags become data, a network, a recipe and an evaluation."""

import contextlib
import dataclasses
import importlib
import math
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax

import jaxbound.nn
from experiments.common import augment, checkpoints, data, methods, models, placement, recipes, train
from experiments.common.errors import UserError
from experiments.common.evaluate import Evaluation
from experiments.common.flags import Config

# (network, flags) -> the bound that it is trained by
MakeBound = Callable[[models.Network, Any], methods.Bound]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A run before its first step.

    Attributes:
      name: of the program.
      config: its flags.
      network: what is trained.
      training, test: the examples.
      recipe: how to train.
      evaluation: on the test examples.
      monitor: on the examples that choose the best checkpoint.
      placement: where it runs.
      state: before the first step, placed; of several seeds, stacked.
    """

    name: str
    config: Config
    network: models.Network
    training: data.Split
    test: data.Split
    recipe: train.Recipe
    evaluation: Evaluation
    monitor: Evaluation
    placement: placement.Placement
    state: train.TrainState


def make(name: str, make_bound: MakeBound, config: Config) -> Job:
    """Prepares a run.

    Raises:
      UserError: mistakes that the user can mend.
    """
    config = _verifiable(config)
    dataset = data.load(config.dataset, config.data_dir)
    size = dataset.train.size - config.validation_size
    if config.batch_size > size:
        raise UserError(
            f"--batch_size={config.batch_size} is too large: {config.dataset} has {dataset.train.size} training "
            f"examples, of which --validation_size={config.validation_size} are held out"
        )
    where = placement.make(config.mesh)
    if not (where.divides(config.batch_size) or config.eval_only):
        devices = where.mesh.shape[placement.DATA]
        raise UserError(
            f"--batch_size={config.batch_size} cannot be spread evenly over the {devices} devices of the mesh's "
            f"{placement.DATA} axis: make it a multiple, or give a --mesh with {placement.DATA}:"
            f"{math.gcd(config.batch_size, devices)}"
        )
    training, validation = (
        data.Split(*(leaf[part] for leaf in dataset.train)) for part in (slice(size), slice(size, None))
    )
    test = data.Split(*(leaf[: config.eval_size or None] for leaf in dataset.test))
    networks = [_network(config, dataset, seed) for seed in config.seeds]
    network = networks[0]
    method = methods.make(network, config, make_bound(network, config))
    recipe = recipes.make(network, config, method, steps_per_epoch=size // config.batch_size, placement=where)
    shape = augment.RECIPES[config.augmentation].shape(dataset.shape)
    states = [
        train.init_state(recipes.initial(each, config), recipe, seed=seed, shape=shape)
        for each, seed in zip(networks, config.seeds, strict=True)
    ]
    evaluation = Evaluation(network, config, test, where)
    return Job(
        name=name,
        config=config,
        network=network,
        training=training,
        test=test,
        recipe=recipe,
        evaluation=evaluation,
        monitor=Evaluation(network, config, validation, where) if validation.size else evaluation,
        placement=where,
        state=where.put(train.stack(states), stacked=len(states) > 1),
    )


def store(job: Job) -> checkpoints.Checkpoints:
    """The checkpoints of a run."""
    return checkpoints.Checkpoints(
        pathlib.Path(job.config.workdir) / "checkpoints", {"experiment": job.name, **dataclasses.asdict(job.config)}
    )


def finished(workdir: pathlib.Path, **changes: Any) -> tuple[Job, list[train.TrainState]]:
    """A run that was trained before, with its last checkpoint.

    Args:
      workdir: its folder.
      **changes: of its flags.

    Returns:
      The job, and the state of each seed as it is evaluated.

    Raises:
      CheckpointError: there is no checkpoint, or it cannot be read.
    """
    saved = checkpoints.saved_run(workdir / "checkpoints")
    program = importlib.import_module(f"experiments.{saved['experiment']}")
    known = {field.name for field in dataclasses.fields(program.DEFAULTS)}
    flags = {name: tuple(value) if isinstance(value, list) else value for name, value in saved.items() if name in known}
    here = {"workdir": str(workdir), "mesh": f"{placement.DATA}:1"}  # not the devices that it was trained on
    job = make(program.NAME, program.BOUND, type(program.DEFAULTS)(**{**flags, **here, **changes}))
    with contextlib.closing(store(job)) as found:
        states = train.members(found.restore(job.state, step=found.step(), must_match=("model",)))
    if (step := train.steps_taken(states[0])) < job.recipe.total_steps:
        print(f"warning: {workdir} has stopped at step {step} of {job.recipe.total_steps}", file=sys.stderr)
    return job, [as_evaluated(job, state) for state in states]


def finished_first(workdir: pathlib.Path, **changes: Any) -> tuple[Job, train.TrainState]:
    """As `finished`, for programs that evaluate one seed: the first, and a warning where there are others."""
    job, states = finished(workdir, **changes)
    if len(states) > 1:
        print(f"warning: {workdir} holds {len(states)} seeds: seed {job.config.seed} is taken", file=sys.stderr)
    return job, states[0]


def as_evaluated(job: Job, state: train.TrainState) -> train.TrainState:
    """The state with the batch statistics that `--eval_statistics` asks for; without batch norm, the state itself."""
    if "batch_stats" not in state.variables or job.config.eval_statistics == "running":
        return state
    batches = recipes.evaluation_batches(job.config, job.training, job.placement)
    statistics = jax.jit(lambda variables, images: job.network.train(variables, images)[1])
    with jax.default_matmul_precision("highest"):
        found = jaxbound.nn.population_statistics(statistics(state.variables, images) for images in batches)
    return state._replace(variables={**state.variables, "batch_stats": found})


def _network(config: Config, dataset: data.Dataset, seed: int) -> models.Network:
    if config.normalize and dataset.mean is None:
        raise UserError(f"--normalize: there is no usual mean and deviation of the pixels of --dataset={dataset.name}")
    normalization = {"mean": dataset.mean, "std": dataset.std} if config.normalize else {}
    return models.create(
        config.model,
        shape=augment.RECIPES[config.augmentation].shape(dataset.shape),
        num_classes=dataset.num_classes,
        seed=seed,
        activation=config.activation,
        init=config.init,
        **normalization,
    )


def _verifiable(config: Config) -> Config:
    """Interval bounds verify nothing of what was trained by linear bounds alone: those take their place."""
    if config.betas[1] < 1 or "ibp" not in config.eval_methods:
        return config
    linear = tuple(dict.fromkeys("crown_ibp" if name == "ibp" else name for name in config.eval_methods))
    print(
        "warning: --beta_end=1 trains for CROWN-IBP's bounds, and IBP verifies next to nothing of such a network: "
        f"verified by --eval_methods={','.join(linear)} instead",
        file=sys.stderr,
    )
    return dataclasses.replace(config, eval_methods=linear)
