"""The record of a run: one line of JSON and a set of TensorBoard scalars per epoch."""

import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import tensorboardX

from experiments.common.files import replace_text

FILE = "metrics.jsonl"


def read(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the rows recorded in a folder; a last line that was cut short by a `kill -9` is left out."""
    path = workdir / FILE
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


class Record:
    """Writes the rows of a run, as `metrics.jsonl` and as TensorBoard events.

    Args:
      workdir: the run's folder.
      step: where the run goes on. Rows after it were written after the checkpoint that it goes on from, and will be
        written again: they are dropped.
      writes: whether this process is the one that writes.
    """

    def __init__(self, workdir: pathlib.Path, *, step: int, writes: bool = True):
        self._path, self._board = workdir / FILE, None
        if not writes:
            return
        kept = [row for row in read(workdir) if row["step"] <= step]
        replace_text(self._path, "".join(_line(row) for row in kept))
        self._board = tensorboardX.SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1 if step else None)

    def write(self, row: Mapping[str, Any]) -> None:
        """Adds a row: a `step` and figures; None stands for a figure that was not taken."""
        if self._board is None:
            return
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(_line(row))
        for name, value in row.items():
            if name != "step" and value is not None:
                self._board.add_scalar(name, value, row["step"])
        self._board.flush()

    def close(self) -> None:
        """Closes the TensorBoard file."""
        if self._board is not None:
            self._board.close()


def _line(row: Mapping[str, Any]) -> str:
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()
    }
    return json.dumps(finite, allow_nan=False) + "\n"
