"""Finds each test example's certified radius by bisection, for several bounds on a finished run's network.

    python -m experiments.certified_radius --workdir=runs/mnist_5k --method=ibp,crown_ibp --num_examples=1000

A certified radius is one at which the example was verified itself; 0 where it was at none. All examples of a batch are
bisected together. What is found is written to `certified_radius.jsonl` at once, and the same command goes on where it
was interrupted. `certified_radius.json` is the summary, `certified_radius.png` shows the accuracy over the radius.
"""

import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import matplotlib.figure
import numpy as np
from absl import app, flags

from experiments.common import cascade, data, evaluate, job, report
from experiments.common.errors import one_line, refuse_arguments
from experiments.common.files import replace_text
from experiments.common.flags import define_changes, read_changes
from experiments.common.records import Records

# The run's own flags that can be given other values here.
CHANGES = ("data_dir", "eval_batch_size", "crown_batch_size")


def searched(this: job.Job, bound: Callable[..., Any], halvings: int) -> cascade.Check:
    """The bisection by a bound as a check, of which the radius is the largest to try."""
    finder = evaluate.radius_finder(evaluate.verifier(this.network, this.config, bound), halvings=halvings)

    @evaluate.exact
    def check(variables: Any, examples: data.Split, radius: Any, indices: jax.Array) -> dict[str, jax.Array]:
        del indices
        return {"radius": finder(variables, examples, radius)}

    return check


def find(
    this: job.Job, variables: Any, method: tuple[str, Callable[..., Any], int], *, halvings: int, records: Records
) -> float | None:
    """Finds the radii in [0, 1] that the records lack.

    Args:
      this: the run.
      variables: of its network.
      method: name of the bound, the bound, and how many examples at a time.
      halvings: how many radii are tried.
      records: where the radii are written.

    Returns:
      How many times longer it took than verifying at one radius, the fastest batch of each; None where all was there.
    """
    name, bound, batch_size = method
    found = {row["index"] for row in records.rows if row["method"] == name}
    left = np.array([i for i in range(this.test.size) if i not in found])
    if not left.size:
        return None
    examples, batch_size = evaluate.Examples(this.test, this.placement), min(batch_size, left.size)

    def batches(check: cascade.Check, chosen: np.ndarray, radius: float) -> Any:
        options = {"chosen": chosen, "batch_size": batch_size}
        program, _ = cascade.compiled(check, variables, examples, radius=radius, **options)
        return cascade.timed(examples.batches(program, title=name, **options))

    thrice = np.resize(left, 3 * batch_size)
    once = min(s for *_, s in batches(cascade.bounded(this, bound), thrice, this.config.eval_radii[0]))
    fastest, largest = np.inf, evaluate.largest_radius(this.config)
    for batch, radii, seconds in batches(searched(this, bound, halvings), left, largest):
        rows = zip(batch.tolist(), this.test.labels[batch].tolist(), radii["radius"].tolist(), strict=True)
        names = ("index", "label", "radius")
        records.append({**dict(zip(names, row, strict=True)), "method": name, "seconds": seconds} for row in rows)
        fastest = min(fastest, seconds)
    return round(float(fastest / once), 2)


def run(workdir: str, names: Sequence[str], *, halvings: int = 12, **changes: Any) -> dict[str, Any]:
    """Finds the certified radii of the test examples of a finished run, and writes the summary and the picture.

    Args:
      workdir: the run's folder.
      names: of the bounds.
      halvings: how many radii are tried for each example.
      **changes: of the run's flags.

    Raises:
      UserError: mistakes that the user can mend.
    """
    folder = pathlib.Path(workdir)
    this, state = job.finished_first(folder, **changes)
    settings = {**cascade.settings(this, state.step), "halvings": halvings}
    records = Records(folder / "certified_radius.jsonl", settings)
    chosen, methods, radii = cascade.bounds(this, names), {}, {}
    for name, (bound, size) in chosen.items():
        cost = find(this, state.variables, (name, bound, size), halvings=halvings, records=records)
        rows = [row for row in records.rows if row["method"] == name and row["index"] < this.test.size]
        radii[name] = [row["radius"] for row in rows]
        methods[name] = {
            "mean_radius": round(float(np.mean(radii[name])), 5),
            "median_radius": round(float(np.median(radii[name])), 5),
            "seconds": round(sum(row["seconds"] for row in rows), 3),
            "times_one_verification": cost,
        }
    draw(folder / "certified_radius.png", radii, this.config.radius)
    content = {**settings, "examples": this.test.size, "device": report.device(), "methods": methods}
    replace_text(folder / "certified_radius.json", json.dumps(content, indent=2) + "\n")
    return content


def table(content: Mapping[str, Any]) -> str:
    """The summary for the terminal."""
    lines = [f"{'method':12}{'mean radius':>12}{'median':>10}{'seconds':>10}{'times one verification':>24}"]
    for name, row in content["methods"].items():
        cost = row["times_one_verification"] or "-"
        lines.append(f"{name:12}{row['mean_radius']:12.4f}{row['median_radius']:10.4f}{row['seconds']:10.1f}{cost:>24}")
    return "\n".join(
        [*lines, f"certified radii of {content['examples']} examples, {content['halvings']} halvings each"]
    )


def draw(path: pathlib.Path, radii: Mapping[str, Sequence[float]], training: float) -> None:
    """Draws the certified accuracy over the radius, a curve for each bound."""
    figure = matplotlib.figure.Figure(figsize=(6.5, 4.5), layout="constrained")
    axes = figure.subplots()
    shown = np.linspace(0, 1.05 * max(map(max, radii.values())) or 1.0, 400)[1:]
    for name, found in radii.items():
        accuracy = 100 * np.mean(np.array(found)[:, None] >= shown, axis=0)
        axes.plot(shown, accuracy, label=f"{name}: median {np.median(found):.3f}")
    axes.axvline(training, color="k", linewidth=0.8, linestyle=":")
    axes.set(xlabel="radius (pixels in [0, 1]); dotted: trained at", ylabel="certified accuracy (%)")
    axes.set(xlim=(0, shown[-1]), ylim=(0, 100), title=f"certified radii of {len(found)} test examples")
    axes.legend(loc="lower left")
    figure.savefig(path, dpi=110)


def define_flags() -> None:
    """Defines the program's flags; not on import, where they would clash with a training program's."""
    flags.DEFINE_string("workdir", "runs/mnist_5k", "folder of a finished run")
    flags.DEFINE_list("method", ["ibp", "crown_ibp"], "bounds to find radii by")
    flags.DEFINE_integer("num_examples", 1000, "the first so many test examples; 0: all", lower_bound=0)
    flags.DEFINE_integer("halvings", 12, "radii tried for each example; the resolution is 1/2^halvings", lower_bound=1)
    define_changes(CHANGES)


def main(argv: list[str]) -> None:
    """Runs the program."""
    workdir, method, size, halvings = (
        flags.FLAGS[name].value for name in ("workdir", "method", "num_examples", "halvings")
    )
    with one_line("certified_radius", resumes=True):
        refuse_arguments(argv)
        print(table(run(workdir, method, halvings=halvings, eval_size=size, **read_changes(CHANGES))))


if __name__ == "__main__":
    define_flags()
    app.run(main)
