"""An experiment from its flags to its report: what every program of this folder shares."""

import contextlib
import dataclasses
import pathlib
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import tqdm
from absl import app

from experiments.common import checkpoints, flags, memory, metrics, processes, profile, recipes, report, train
from experiments.common import job as jobs
from experiments.common.errors import one_line, refuse_arguments
from experiments.common.files import writable_folder
from experiments.common.flags import Config
from experiments.common.job import Job, MakeBound

DIGITS = 8  # examples drawn with their certified radius


def main(name: str, make_bound: MakeBound, defaults: Config) -> None:
    """Runs a program: reads its flags, trains and evaluates; a user's mistake ends it with one line.

    Args:
      name: of the program, which tells its runs from those of others.
      make_bound: what it trains by.
      defaults: its flags' defaults.
    """
    flags.define(defaults)

    def program(argv: list[str]) -> None:
        with one_line(name):
            refuse_arguments(argv)
            config = flags.read(defaults)
            memory.keep_freed()
            processes.start(config)
            run(name, make_bound, config)

    app.run(program)


def run(name: str, make_bound: MakeBound, config: Config) -> list[dict[str, Any]] | None:
    """Trains, or resumes, and evaluates.

    Args:
      name: of the experiment.
      make_bound: what it trains by.
      config: its flags.

    Returns:
      The content of `results.json` for each seed; None where a SIGTERM or Ctrl-C stopped training, after a checkpoint.

    Raises:
      UserError: mistakes that the user can mend.
    """
    workdir = writable_folder(config.workdir)
    job = jobs.make(name, make_bound, config)
    with contextlib.closing(jobs.store(job)) as store:
        state = job.state
        if not config.eval_only:
            state = _resume(store, state, config)
            state = _fit(job, store, state, workdir=workdir)
            step = train.steps_taken(state)
            if step < job.recipe.total_steps:
                _say(f"stopped at step {step}, which is saved: the same command goes on from there")
                return None
        states = [jobs.as_evaluated(job, each) for each in train.members(_chosen(store, state, config))]
    if len(states) == 1:
        return [_evaluate(job, states[0], workdir=workdir)]
    folders = [writable_folder(str(workdir / f"seed_{seed}")) for seed in config.seeds]
    return [_evaluate(job, each, workdir=folder) for each, folder in zip(states, folders, strict=True)]


def _resume(store: checkpoints.Checkpoints, state: train.TrainState, config: Config) -> train.TrainState:
    """Returns the state of the last checkpoint, or the given one where there is none."""
    step = store.step()
    if step is None:
        return state
    must_match = ("experiment", *(f.name for f in dataclasses.fields(config) if f.metadata.get("defines_run")))
    _say(f"resuming {config.workdir} at step {step}")
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
    network = ("dataset", "model", "activation", "normalize", "augmentation")
    must_match = (*network, "num_seeds", "slope_end", "accumulation")  # and what else a checkpoint's arrays depend on
    return store.restore(state, step=step, must_match=must_match)


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
    job: Job, store: checkpoints.Checkpoints, state: train.TrainState, *, workdir: pathlib.Path
) -> train.TrainState:
    """Trains to the end or to a signal, with checkpoints, records and a progress bar."""
    config, recipe = job.config, job.recipe
    first = train.steps_taken(state)
    with (
        _stop_signals() as stop,
        contextlib.closing(metrics.Record(workdir, step=first, writes=processes.is_first())) as record,
        contextlib.closing(profile.Profile(workdir / "profile", steps=config.profile * processes.is_first())) as trace,
        tqdm.tqdm(total=recipe.total_steps, initial=first, unit="step", **_bar()) as bar,
    ):
        latest, began = {}, time.perf_counter()
        states = train.run(state, recipe, job.training, every=config.log_steps, placement=job.placement)
        for state in states:
            step = train.steps_taken(state)
            trace.look(step)
            epoch, position = divmod(step, recipe.steps_per_epoch)
            row = _row(state, job, seconds=time.perf_counter() - began)
            if not position or step == recipe.total_steps:
                due = not epoch % config.checkpoint_epochs or step == recipe.total_steps
                latest = _quick(job, state) if due else latest
                record.write({**row, **(latest if due else {})})
                began = time.perf_counter()
                if due:
                    store.save(state, latest)
            bar.set_postfix(_live({**row, **latest}), refresh=False)
            bar.update(step - bar.n)
            if processes.any_of(bool(stop)):
                store.save(state)
                break
        store.wait()  # before a second signal can break it off
    return state


def _quick(job: Job, state: train.TrainState) -> dict[str, float]:
    """The figures during training, the mean of all seeds."""
    figures = [job.monitor.quick(each.variables) for each in train.members(state)]
    return {name: float(np.mean([each[name] for each in figures])) for name in figures[0]}


def _row(state: train.TrainState, job: Job, *, seconds: float) -> dict[str, Any]:
    """The figures of the epoch that the last step belongs to, over the steps taken in it."""
    recipe = job.recipe
    last = train.steps_taken(state) - 1
    epoch, position = divmod(last, recipe.steps_per_epoch)
    knobs = recipe.phase(last).knobs(last, None)
    means = {name: round(float(np.mean(total)) / (position + 1), 6) for name, total in state.totals.items()}
    return {
        "epoch": epoch + 1,
        "step": last + 1,
        "radius": float(knobs.radius),
        "kappa": float(knobs.kappa),
        "beta": float(knobs.beta),
        "learning_rate": float(recipes.learning_rate(job.config, recipe.steps_per_epoch)(last)),
        **means,
        "seconds": round(seconds, 3),
    }


def _live(row: dict[str, Any]) -> dict[str, str]:
    """The figures beside the progress bar."""
    names = {"epoch": "epoch", "radius": "radius", "loss": "loss", "clean_error": "clean", "verified_error": "verified"}
    shown = {short: f"{row[name]:.4g}" for name, short in names.items() if name in row}
    return {**shown, **({"test": f"{row['test_verified_error']:.4g}"} if "test_verified_error" in row else {})}


def _bar() -> dict[str, Any]:
    """How the progress bar is drawn: often on a terminal, now and then in a log file, by one process only."""
    return {"mininterval": 0.5 if sys.stderr.isatty() else 30.0, "disable": not processes.is_first()}


def _say(text: str) -> None:
    """Prints, in one process."""
    if processes.is_first():
        print(text)


def _evaluate(job: Job, state: train.TrainState, *, workdir: pathlib.Path) -> dict[str, Any]:
    """Evaluates a state, writes the report and prints the table."""
    config, rows = job.config, metrics.read(pathlib.Path(job.config.workdir))
    began = time.perf_counter()
    errors = job.evaluation.full(state.variables)
    beyond = [radius for radius in config.eval_radii if radius > config.radius]
    radii = [float(radius) for radius in np.linspace(0, 1.25 * max(config.eval_radii), 26)]
    shown = range(min(DIGITS, job.test.size))
    curve = job.evaluation.curve(state.variables, radii)
    certified = job.evaluation.certified_radii(state.variables, shown)
    results = {
        **errors,
        "experiment": job.name,
        "seed": int(state.seed),
        "step": int(state.step),
        "epoch": int(state.step) / job.recipe.steps_per_epoch,
        "checkpoint": config.eval_checkpoint,
        "radii_above_training": beyond,
        "checkpoint_chosen_on": "validation" if config.validation_size else "test",
        "seconds": {
            "train": round(sum(row["seconds"] for row in rows if row["step"] <= int(state.step)), 1),
            "evaluate": round(time.perf_counter() - began, 1),
        },
        **report.surroundings(config, job.placement.mesh.devices.ravel()),
    }
    if processes.is_first():
        figures = report.Figures(
            rows=rows,
            results=results,
            method=job.evaluation.cheapest,
            radii=radii,
            curve=curve,
            images=job.test.images[shown],
            certified=certified,
        )
        report.write_results(workdir, results)
        report.draw(workdir / "report.png", figures)
        print(report.table(results))
        print(f"written to {workdir}: results.json, report.png, {metrics.FILE}, tensorboard/")
    return results
