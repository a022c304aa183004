"""Verifies a finished run's network example by example: an attack first, then bounds from cheap to dear.

    python -m experiments.verify --workdir=runs/mnist_5k --method=ibp,crown_ibp,crown --radius=0.1

Each bound sees only the examples that nothing before it decided. What is found of an example is written to
`verified_RADIUS.jsonl` at once: the same command goes on where it was interrupted, and with more methods or examples it
adds what is missing. `verified_RADIUS.json` is the summary.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from absl import app, flags

from experiments.common import cascade, job, report
from experiments.common.errors import one_line, refuse_arguments
from experiments.common.files import replace_text
from experiments.common.flags import define_changes, read_changes
from experiments.common.records import Records

# The run's own flags that can be given other values here.
CHANGES = ("data_dir", "eval_batch_size", "crown_batch_size", "pgd_steps", "pgd_restarts")
# Those that the attack depends on.
ATTACK = ("seed", "pgd_steps", "pgd_restarts", "pgd_step_size")


def run(workdir: str, names: Sequence[str], *, radius: float | None = None, **changes: Any) -> dict[str, Any]:
    """Verifies the test examples of a finished run, and returns the summary.

    Args:
      workdir: the run's folder, which is written to.
      names: of the bounds.
      radius: of the sets; None for the one that the run was evaluated at.
      **changes: of the run's flags.

    Raises:
      UserError: mistakes that the user can mend.
    """
    folder = pathlib.Path(workdir)
    this, state = job.finished_first(folder, **changes)
    radius = this.config.eval_radii[0] if radius is None else radius
    attack = {name: getattr(this.config, name) for name in ATTACK}
    settings = {**cascade.settings(this, state.step), "radius": radius, **attack}
    records = Records(folder / f"verified_{radius:g}.jsonl", settings)
    content = cascade.run(this, state.variables, names, radius=radius, records=records)
    everything = {**settings, **content, "device": report.device()}
    replace_text(folder / f"verified_{radius:g}.json", json.dumps(everything, indent=2) + "\n")
    return content


def define_flags() -> None:
    """Defines the program's flags; not on import, where they would clash with a training program's."""
    flags.DEFINE_string("workdir", "runs/mnist_5k", "folder of a finished run")
    flags.DEFINE_list("method", ["ibp", "crown_ibp", "crown"], "bounds to verify by; they run from cheap to dear")
    flags.DEFINE_float("radius", None, "radius to verify at; by default the run's own", lower_bound=0)
    flags.DEFINE_integer("num_examples", 0, "the first so many test examples; 0: all", lower_bound=0)
    define_changes(CHANGES)


def main(argv: list[str]) -> None:
    """Runs the program."""
    workdir, method, radius, size = (
        flags.FLAGS[name].value for name in ("workdir", "method", "radius", "num_examples")
    )
    with one_line("verify", resumes=True):
        refuse_arguments(argv)
        found = run(workdir, method, radius=radius, eval_size=size, **read_changes(CHANGES))
        print(cascade.table(found))


if __name__ == "__main__":
    define_flags()
    app.run(main)
