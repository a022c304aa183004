"""An experiment from its flags to its report: what every program of this folder shares."""

import contextlib
import dataclasses
import pathlib
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import absl.logging
import jax
import numpy as np
import optax
import tqdm
from absl import app

from experiments.common import checkpoints, data, flags, metrics, models, report, train
from experiments.common.evaluate import Evaluation
from experiments.common.files import writable_folder
from experiments.common.flags import Config, UserError
from jaxbound import schedules

# (network, number of classes) -> the method that trains it
MakeMethod = Callable[[models.Apply, int], train.Method]

DIGITS = 8  # examples drawn with their certified radius


def main(name: str, make_method: MakeMethod, defaults: Config) -> None:
    """Runs a program: reads its flags, trains and evaluates; a user's mistake ends it with one line.

    Args:
      name: of the program, which tells its runs from those of others.
      make_method: how it trains.
      defaults: its flags' defaults.
    """
    flags.define(defaults)

    def program(argv: list[str]) -> None:
        absl.logging.set_verbosity(absl.logging.ERROR)  # Orbax would tell of every checkpoint
        try:
            if len(argv) > 1:
                raise UserError(f"unexpected argument {argv[1]!r}: values are given as --flag=value")
            run(name, make_method, flags.read())
        except (UserError, data.DataError) as error:
            sys.exit(f"{name}: {error}")

    app.run(program)


def run(name: str, make_method: MakeMethod, config: Config) -> dict[str, Any] | None:
    """Trains, or resumes, and evaluates.

    Args:
      name: of the experiment.
      make_method: how it trains.
      config: its flags.

    Returns:
      The content of `results.json`; None where a SIGTERM or Ctrl-C stopped training, after a checkpoint.

    Raises:
      UserError, DataError: mistakes that the user can mend.
    """
    workdir = writable_folder(config.workdir)
    dataset = data.load(config.dataset, config.data_dir)
    job = _job(make_method, config, dataset)
    store = checkpoints.Checkpoints(workdir / "checkpoints", {"experiment": name, **dataclasses.asdict(config)})
    with contextlib.closing(store):
        state = job.state
        if not config.eval_only:
            state = _resume(store, state, config)
            state = _fit(job, store, state, workdir=workdir)
            if int(state.step) < job.recipe.total_steps:
                print(f"stopped at step {int(state.step)}, which is saved: the same command goes on from there")
                return None
        state = _chosen(store, state, config)
    return _evaluate(job, state, workdir=workdir)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Job:
    """What a run works on."""

    config: Config
    training: data.Split
    test: data.Split
    recipe: train.Recipe
    evaluation: Evaluation  # on the test examples
    monitor: Evaluation  # on the examples that choose the best checkpoint
    state: train.TrainState  # before the first step


def _job(make_method: MakeMethod, config: Config, dataset: data.Dataset) -> _Job:
    size = dataset.train.size - config.validation_size
    if config.batch_size > size:
        raise UserError(
            f"--batch_size={config.batch_size} is too large: {config.dataset} has {dataset.train.size} training "
            f"examples, of which --validation_size={config.validation_size} are held out"
        )
    training, validation = (
        data.Split(*(leaf[part] for leaf in dataset.train)) for part in (slice(size), slice(size, None))
    )
    test = data.Split(*(leaf[: config.eval_size or None] for leaf in dataset.test))
    classes = dataset.num_classes
    apply, params = models.create(config.model, shape=dataset.shape, num_classes=classes, seed=config.seed)
    recipe = _recipe(make_method(apply, classes), apply, config, steps_per_epoch=size // config.batch_size)
    evaluation = Evaluation(apply, config, test, num_classes=classes)
    return _Job(
        config=config,
        training=training,
        test=test,
        recipe=recipe,
        evaluation=evaluation,
        monitor=Evaluation(apply, config, validation, num_classes=classes) if validation.size else evaluation,
        state=train.init_state(params, recipe, shape=dataset.shape),
    )


def _recipe(method: train.Method, apply: models.Apply, config: Config, *, steps_per_epoch: int) -> train.Recipe:
    """Turns flags, in epochs, into schedules, in steps."""
    begin = config.warmup_epochs * steps_per_epoch
    ramp = {"linear": schedules.linear, "smoothed": schedules.smoothed}[config.ramp]
    radius = ramp(0.0, config.radius, begin=begin, end=begin + config.ramp_epochs * steps_per_epoch)
    kappa = _kappa(config, radius)
    clip = optax.clip_by_global_norm(config.grad_clip) if config.grad_clip else optax.identity()
    key = jax.random.key(config.seed)
    return train.Recipe(
        method=method,
        warmup=train.natural(apply),
        knobs=lambda step: train.Knobs(radius(step), kappa(step), jax.random.fold_in(key, step)),
        optimizer=optax.chain(clip, optax.adam(_learning_rate(config, steps_per_epoch))),
        warmup_steps=begin,
        total_steps=config.epochs * steps_per_epoch,
        steps_per_epoch=steps_per_epoch,
        batch_size=config.batch_size,
        seed=config.seed,
    )


def _kappa(config: Config, radius: schedules.Schedule) -> Callable[[Any], Any]:
    """The natural loss's weight, which follows the radius."""
    if config.kappa_start == config.kappa_end == 0:
        return lambda step: 0  # known when the step is compiled, so that the natural loss's gradient is left out
    return schedules.following(radius, config.kappa_start, config.kappa_end, full=config.radius)


def _learning_rate(config: Config, steps_per_epoch: int) -> optax.Schedule:
    decays = {epoch * steps_per_epoch: config.lr_decay for epoch in config.lr_milestones}
    return optax.piecewise_constant_schedule(config.learning_rate, decays)


def _resume(store: checkpoints.Checkpoints, state: train.TrainState, config: Config) -> train.TrainState:
    """Returns the state of the last checkpoint, or the given one where there is none."""
    step = store.step()
    if step is None:
        return state
    must_match = ("experiment", *(f.name for f in dataclasses.fields(config) if f.metadata.get("defines_run")))
    print(f"resuming {config.workdir} at step {step}")
    return store.restore(state, step=step, must_match=must_match)


def _chosen(store: checkpoints.Checkpoints, state: train.TrainState, config: Config) -> train.TrainState:
    """Returns the state to evaluate."""
    if not config.eval_only and config.eval_checkpoint == "last":
        return state
    step = store.step(config.eval_checkpoint)
    if step is None:
        raise checkpoints.CheckpointError(
            f"--workdir={config.workdir} has no {config.eval_checkpoint} checkpoint: train first, without --eval_only"
        )
    return store.restore(state, step=step, must_match=("model",))


@contextlib.contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collects SIGTERM and the first Ctrl-C instead of dying of them."""
    received: list[int] = []

    def receive(number: int, _: Any) -> None:
        received.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C breaks off

    previous = {number: signal.signal(number, receive) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _fit(
    job: _Job, store: checkpoints.Checkpoints, state: train.TrainState, *, workdir: pathlib.Path
) -> train.TrainState:
    """Trains to the end or to a signal, with checkpoints, records and a progress bar."""
    config, recipe = job.config, job.recipe
    first = int(state.step)
    with (
        _stop_signals() as stop,
        contextlib.closing(metrics.Record(workdir, step=first)) as record,
        tqdm.tqdm(total=recipe.total_steps, initial=first, unit="step", mininterval=_interval()) as bar,
    ):
        latest, began = {}, time.perf_counter()
        states = train.run(state, recipe, job.training, every=config.log_steps)
        for state in states:
            step = int(state.step)
            epoch, position = divmod(step, recipe.steps_per_epoch)
            row = _row(state, job, seconds=time.perf_counter() - began)
            if not position:
                due = not epoch % config.checkpoint_epochs or step == recipe.total_steps
                latest = job.monitor.quick(state.params) if due else latest
                record.write({**row, **(latest if due else {})})
                began = time.perf_counter()
                if due:
                    store.save(state, latest)
            bar.set_postfix(_live({**row, **latest}), refresh=False)
            bar.update(step - bar.n)
            if stop:
                store.save(state)
                break
    return state


def _row(state: train.TrainState, job: _Job, *, seconds: float) -> dict[str, Any]:
    """The figures of the epoch that the last step belongs to, over the steps taken in it."""
    recipe = job.recipe
    last = int(state.step) - 1
    epoch, position = divmod(last, recipe.steps_per_epoch)
    knobs = recipe.knobs(last)
    means = {name: round(float(total) / (position + 1), 6) for name, total in state.totals.items()}
    return {
        "epoch": epoch + 1,
        "step": last + 1,
        "radius": float(knobs.radius),
        "kappa": float(knobs.kappa),
        "learning_rate": float(_learning_rate(job.config, recipe.steps_per_epoch)(last)),
        **means,
        "seconds": round(seconds, 3),
    }


def _live(row: dict[str, Any]) -> dict[str, str]:
    """The figures beside the progress bar."""
    names = {"epoch": "epoch", "radius": "radius", "loss": "loss", "clean_error": "clean", "verified_error": "verified"}
    shown = {short: f"{row[name]:.4g}" for name, short in names.items() if name in row}
    return {**shown, **({"test": f"{row['test_verified_error']:.4g}"} if "test_verified_error" in row else {})}


def _interval() -> float:
    """Seconds between two drawings of the progress bar; a log file gets a line now and then."""
    return 0.5 if sys.stderr.isatty() else 30.0


def _evaluate(job: _Job, state: train.TrainState, *, workdir: pathlib.Path) -> dict[str, Any]:
    """Evaluates a state, writes the report and prints the table."""
    config, rows = job.config, metrics.read(workdir)
    began = time.perf_counter()
    errors = job.evaluation.full(state.params)
    radii = [float(radius) for radius in np.linspace(0, 1.25 * max(config.eval_radii), 26)]
    shown = range(min(DIGITS, job.test.size))
    curve = job.evaluation.curve(state.params, radii)
    certified = job.evaluation.certified_radii(state.params, shown)
    results = {
        **errors,
        "step": int(state.step),
        "epoch": int(state.step) / job.recipe.steps_per_epoch,
        "checkpoint": config.eval_checkpoint,
        "checkpoint_chosen_on": "validation" if config.validation_size else "test",
        "seconds": {
            "train": round(sum(row["seconds"] for row in rows if row["step"] <= int(state.step)), 1),
            "evaluate": round(time.perf_counter() - began, 1),
        },
        **report.surroundings(config),
    }
    report.write_results(workdir, results)
    figures = report.Figures(
        rows=rows, results=results, radii=radii, curve=curve, images=job.test.images[shown], certified=certified
    )
    report.draw(workdir / "report.png", figures)
    print(report.table(results))
    print(f"written to {workdir}: results.json, report.png, {metrics.FILE}, tensorboard/")
    return results
