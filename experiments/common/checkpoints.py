"""Checkpoints of a run: atomic, the last one and the best one kept, never mistaken for another run's."""

import contextlib
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from experiments.common.errors import UserError, first_line

METRIC = "test_verified_error"  # the best checkpoint has the smallest


class CheckpointError(UserError):
    """A checkpoint that is missing, unreadable, or of another run."""


class Checkpoints:
    """The checkpoints in one folder.

    Orbax writes a checkpoint into a folder of another name and renames it, so one that was cut short by a `kill -9` is
    never seen. It is written in the background; whatever needs it waits. Several processes write one together.

    Args:
      folder: where they are; made if need be.
      run: what defines the run (the flags that training depends on), saved with every checkpoint.
    """

    def __init__(self, folder: pathlib.Path, run: Mapping[str, Any]):
        self._folder, self._run = folder, dict(run)
        policies = ocp.checkpoint_managers
        keep = policies.AnyPreservationPolicy(
            [
                policies.LatestN(1),
                policies.BestN(get_metric_fn=_metric, reverse=True, n=1, keep_checkpoints_without_metrics=False),
            ]
        )
        self._manager = ocp.CheckpointManager(
            folder.absolute(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=keep,
                best_fn=_metric,
                best_mode="min",
                cleanup_tmp_directories=True,
            ),
            item_names=("state", "run"),
        )

    def step(self, which: str = "last") -> int | None:
        """The step of the last or the best checkpoint; None where there is none."""
        return self._manager.best_step() if which == "best" else self._manager.latest_step()

    def save(self, state: Any, metrics: Mapping[str, float] | None = None) -> None:
        """Begins to save a state under its step, unless that step is saved already.

        Args:
          state: a pytree of arrays with a field `step`. It may be donated at once.
          metrics: figures of this state, to choose the best one by; None where it was not evaluated.

        Raises:
          CheckpointError: this checkpoint, or the one before it, could not be written.
        """
        step = int(np.min(state.step))
        if step == self.step():
            return
        self.wait()
        # On a CPU a host's view of an array is the array itself, which the next step overwrites: a copy is safe.
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(jax.tree.map(jnp.copy, state)), run=ocp.args.JsonSave(self._run)
        )
        with self._writing():
            self._manager.save(step, args=items, metrics=None if metrics is None else dict(metrics))

    def wait(self) -> None:
        """Waits until the last checkpoint is written.

        Raises:
          CheckpointError: it could not be.
        """
        with self._writing():
            self._manager.wait_until_finished()

    def restore(self, like: Any, *, step: int, must_match: tuple[str, ...]) -> Any:
        """Reads a checkpoint.

        Args:
          like: a pytree of arrays of the shapes and types to read.
          step: which checkpoint.
          must_match: names out of `run` that must be the same as when it was saved.

        Returns:
          The state.

        Raises:
          CheckpointError: where the checkpoint is of another run or model, or damaged.
        """
        saved = self.run(step)
        # A flag that is younger than the checkpoint cannot differ.
        here = {name: _plain(self._run.get(name)) for name in must_match if name in saved}
        other = [f"--{name}={saved[name]}, not {value}" for name, value in here.items() if saved[name] != value]
        if other:
            raise CheckpointError(
                f"the checkpoint in {self._folder} is of another run: it has {'; '.join(other)}. "
                "Name another --workdir, or give the flags of that run"
            )
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        return self._read(step, state=ocp.args.StandardRestore(abstract))["state"]

    def run(self, step: int) -> dict[str, Any]:
        """What defines the run that a checkpoint is of."""
        return self._read(step, run=ocp.args.JsonRestore())["run"]

    def close(self) -> None:
        """Waits for the last checkpoint and releases the folder.

        Raises:
          CheckpointError: that checkpoint could not be written.
        """
        self.wait()
        self._manager.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"a checkpoint could not be written to {self._folder}: {first_line(error)}. The one before it is "
                "kept; is there room, and do all processes run? Then start the same command again"
            ) from error

    def _read(self, step: int, **items: Any) -> Any:
        self.wait()
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"the checkpoint {self._folder / str(step)} is damaged, half-written or of another model: "
                f"{first_line(error)}. Delete that folder (the run goes on from the checkpoint before it, if there is "
                "one) or name another --workdir"
            ) from error


def last_step(folder: pathlib.Path) -> int | None:
    """The step of the last checkpoint in a folder; None where there is none, or no such folder."""
    if not folder.is_dir():
        return None
    with contextlib.closing(Checkpoints(folder, {})) as found:
        return found.step()


def saved_run(folder: pathlib.Path) -> dict[str, Any]:
    """What defines the run whose checkpoints are in a folder.

    Raises:
      CheckpointError: there is none.
    """
    if folder.is_dir():
        with contextlib.closing(Checkpoints(folder, {})) as found:
            step = found.step()
            if step is not None:
                return found.run(step)
    raise CheckpointError(f"{folder} holds no checkpoint: name the --workdir of a run that was trained")


def _metric(metrics: Mapping[str, float]) -> float:
    return metrics[METRIC]


def _plain(value: Any) -> Any:
    """The value as JSON would give it back."""
    return list(value) if isinstance(value, tuple) else value
