"""Compares runs beyond the radius that they were trained at: how fast do the verified and attacked errors rise?

    python -m experiments.drawdown --runs=runs/mnist_global_base,runs/mnist_global_arithmetic --out=runs/drawdown

writes `drawdown.png`, `drawdown.json` and a table. A run's seeds (folders `seed_N`, or side by side) are averaged. What
is measured of a run stays beside its results as `curve.json`, and is not measured again: a comparison that was broken
off goes on, and one whose weights are gone can still be drawn (`--runs=experiments/results/NAME,...`).

References:
  Liang et al. 2023, Frontiers of Information Technology and Electronic Engineering 24(10): the drawdown risk. Its
  measure is our own.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib.figure
import numpy as np
from absl import app, flags

from experiments.common import checkpoints, data, job, report
from experiments.common.errors import UserError, one_line, refuse_arguments
from experiments.common.files import CURVE, replace_text, writable_folder


class Curve(NamedTuple):
    """The errors of a run over the radius, in percent; the mean of its seeds.

    Attributes:
      name: of the run.
      training: the radius that it was trained at.
      clean: its clean error.
      method: the bound that verified: IBP, or CROWN-IBP for a network that was trained for that alone.
      verified: by it, one for each radius.
      attacked: by PGD, one for each radius.
      seeds: how many.
      device: what measured them.
    """

    name: str
    training: float
    clean: float
    method: str
    verified: list[float]
    attacked: list[float]
    seeds: int
    device: dict[str, Any]


def drawdown(errors: Sequence[float]) -> float:
    """The largest rise of an error between a smaller and a larger radius: max over i < j of errors[j] - errors[i]."""
    lowest = np.minimum.accumulate(errors)
    return float(np.max(np.asarray(errors)[1:] - lowest[:-1]))


def slope(curve: Curve, radii: Sequence[float]) -> float | None:
    """How fast the verified error rises from the training radius to 1.5 times it, in points for 0.01 of radius.

    None where these are not both between the radii that were evaluated.
    """
    ends = np.array([curve.training, 1.5 * curve.training])
    if ends[0] < radii[0] * (1 - 1e-6) or ends[1] > radii[-1] * (1 + 1e-6):
        return None
    first, second = np.interp(ends, radii, curve.verified)
    return float((second - first) / (100 * (ends[1] - ends[0])))


def measure(folder: pathlib.Path, radii: Sequence[float], *, attacked: int, **changes: Any) -> Curve:
    """Evaluates the seeds of a run.

    Args:
      folder: of the run.
      radii: increasing.
      attacked: how many test examples are attacked.
      **changes: of the run's flags.
    """
    found = sorted({path.parent for name in ("checkpoints", CURVE) for path in folder.glob(f"**/{name}")})
    if not found:
        raise UserError(f"{folder} holds no run: give the --workdir of one that was trained")
    parts = [_errors(workdir, radii, attacked=attacked, **changes) for workdir in found]
    seeds = [row for part in parts for row in part["seeds"]]
    clean, verified, survived = (np.mean([row[k] for row in seeds], axis=0) for k in ("clean", "verified", "attacked"))
    figures = float(clean), parts[0]["method"], verified.tolist(), survived.tolist(), len(seeds)
    return Curve(folder.name, parts[0]["training"], *figures, parts[0]["device"])


def _errors(workdir: pathlib.Path, radii: Sequence[float], *, attacked: int, **changes: Any) -> dict[str, Any]:
    """The errors of the seeds in one folder: those measured before, where the same was asked of the same weights."""
    path, step = workdir / CURVE, checkpoints.last_step(workdir / "checkpoints")
    settings = {name: value for name, value in changes.items() if name != "data_dir"}
    asked = json.loads(json.dumps({"radii": radii, "attacked": attacked, **settings}))
    saved = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if saved and saved["asked"] == asked and step in (None, saved["step"]):
        return saved
    if saved and step is None:
        raise UserError(
            f"{path} was measured with {saved['asked']}, not with {asked}, and the weights that it is of are not here: "
            "give the same flags, or the --workdir that was trained in"
        )
    this, states = job.finished(workdir, **changes)
    seeds = [
        {
            "clean": this.evaluation.clean_error(state.variables),
            "verified": this.evaluation.curve(state.variables, radii),
            "attacked": this.evaluation.attacked(state.variables, radii, size=attacked),
        }
        for state in states
    ]
    known = {"training": this.config.radius, "method": this.evaluation.cheapest}
    found = {"asked": asked, "step": step, **known, "seeds": seeds, "device": report.device()}
    replace_text(path, json.dumps(found, indent=2) + "\n")
    return found


def table(curves: Sequence[Curve], radii: Sequence[float]) -> str:
    """The errors in Markdown: one row for each run."""
    head = ["run", "seeds", "bound", "clean", *(f"{radius:g}" for radius in radii), "D", "slope"]
    lines = [head, ["---"] * len(head)]
    for curve in curves:
        figures = [f"{v:.2f}" for v in (curve.clean, *curve.verified, drawdown(curve.verified))]
        rise = slope(curve, radii)
        lines.append([curve.name, str(curve.seeds), curve.method, *figures, "-" if rise is None else f"{rise:.2f}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def draw(path: pathlib.Path, curves: Sequence[Curve], radii: Sequence[float], *, attacked: int) -> None:
    """Draws verified (solid) and attacked (dashed) errors over the radius; of how many examples is said."""
    figure = matplotlib.figure.Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for index, curve in enumerate(curves):
        label = f"{curve.name} ({curve.method}): D = {drawdown(curve.verified):.1f}"
        axes.plot(radii, curve.verified, "o-", color=f"C{index}", label=label)
        axes.plot(radii, curve.attacked, "--", color=f"C{index}", linewidth=1)
    for radius in sorted({curve.training for curve in curves}):
        axes.axvline(radius, color="k", linewidth=0.8, linestyle=":")
    axes.set(xlabel="radius (pixels in [0, 1]); dotted: trained at", ylabel="error (%)", ylim=(0, 100))
    axes.set_title(f"verified (solid); the first {attacked:,} images attacked by PGD (dashed)")
    axes.legend(loc="upper left")
    figure.savefig(path, dpi=110)


def compare(
    runs: Sequence[str], out: str, *, radii: Sequence[float], attacked: int = 1000, **changes: Any
) -> list[Curve]:
    """Evaluates runs side by side, and writes the picture and the figures.

    Args:
      runs: folders, the base method first.
      out: the folder to write to.
      radii: increasing.
      attacked: how many test examples are attacked.
      **changes: of the runs' flags.

    Raises:
      UserError: mistakes that the user can mend.
    """
    if not runs or len(radii) < 2 or list(radii) != sorted(radii):
        raise UserError("give --runs=FOLDER,FOLDER,..., and at least two --radii in increasing order")
    folder = writable_folder(out)
    changes = {"eval_methods": ("ibp",), "pgd_restarts": 1, "pgd_step_size": 0.0, **changes}  # the same for all runs
    curves = [measure(pathlib.Path(run), radii, attacked=attacked, **changes) for run in runs]
    content = {"radii": radii, "curves": [curve._asdict() for curve in curves]}
    replace_text(folder / "drawdown.json", json.dumps(content, indent=2) + "\n")
    draw(folder / "drawdown.png", curves, radii, attacked=attacked)
    return curves


def define_flags() -> None:
    """Defines the program's flags; not on import, where they would clash with a training program's."""
    flags.DEFINE_list("runs", [], "folders of finished runs, the base method first")
    flags.DEFINE_string("out", "runs/drawdown", "folder to write to")
    flags.DEFINE_list("radii", [f"{0.05 * k:.2f}" for k in range(1, 11)], "radii to evaluate at, increasing")
    flags.DEFINE_string("data_dir", data.DEFAULT_DATA_DIR, "TFDS folder that experiments.prepare_data wrote")
    flags.DEFINE_integer("eval_size", 0, "verify the first so many test examples; 0: all", lower_bound=0)
    flags.DEFINE_integer("attacked", 1000, "attack the first so many test examples", lower_bound=1)
    flags.DEFINE_integer("pgd_steps", 40, "steps of the attack", lower_bound=1)


def main(argv: list[str]) -> None:
    """Runs the program."""
    names = ("data_dir", "eval_size", "attacked", "pgd_steps")
    options = {name: flags.FLAGS[name].value for name in names}
    with one_line("drawdown", ValueError):
        refuse_arguments(argv)
        radii = [float(radius) for radius in flags.FLAGS["radii"].value]
        curves = compare(flags.FLAGS["runs"].value, flags.FLAGS["out"].value, radii=radii, **options)
        print(table(curves, radii))


if __name__ == "__main__":
    define_flags()
    app.run(main)
