"""Compares bounds on one trained network: mean lowest margin and verified error, for tight and for adaptive lines.

    python -m experiments.bound_table --workdir=runs/mnist_5k --radius=0.1

With tight lines every method is at least as tight as those before it, example by example (theorem 2 of the paper); with
adaptive lines, on a network trained by IBP, some fall far behind IBP. The table counts the examples that break the
order.

References:
  Lyu et al. 2021, arXiv:2104.00447, table 1.
"""

import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import app, flags

import jaxbound
from experiments.common import data, job, report, train
from experiments.common.errors import one_line, refuse_arguments
from experiments.common.evaluate import Examples, exact, margin_bounds
from experiments.common.files import replace_text

LINES = {"tight": jaxbound.relax.tight, "adaptive": jaxbound.relax.adaptive}


def bare(_: Any, found: Any) -> Any:
    """A bound as it is, not intersected with the interval bound."""
    return found


def bounds(lines: Callable[..., Any]) -> dict[str, Callable[[Callable], Callable]]:
    """The methods of the paper with these lines, none of which is helped by interval bounds."""
    return {
        "ibp": jaxbound.ibp,
        "lbp": functools.partial(jaxbound.lbp, relu=lines, combine=bare),
        "crown_ibp": functools.partial(jaxbound.crown_ibp, relu=lines),
        "crown_lbp": functools.partial(jaxbound.crown_lbp, relu=lines, combine=bare),
        "crown": functools.partial(jaxbound.crown, relu=lines, combine=bare),
    }


# Pairs of methods of which the second is at least as tight, with tight lines.
ORDER = (("ibp", "lbp"), ("ibp", "crown_ibp"), ("lbp", "crown_lbp"), ("crown_ibp", "crown_lbp"), ("crown_lbp", "crown"))


def margins(
    this: job.Job, variables: Any, bound: Callable[[Callable], Callable], *, radius: float, batch_size: int, title: str
) -> np.ndarray:
    """Lower bounds of all margins of the test examples, [N, K-1].

    Args:
      this: the run.
      variables: of its network.
      bound: a bound transform.
      radius: of the sets.
      batch_size: examples at a time.
      title: of the progress bar.
    """
    of_batch = exact(margin_bounds(this.network, this.config, bound))
    found = Examples(this.test, this.placement).batches(
        lambda examples, _: of_batch(variables, examples, radius),
        chosen=np.arange(this.test.size),
        batch_size=batch_size,
        title=title,
    )
    return np.concatenate([margins for _, margins in found])


def compare(this: job.Job, state: train.TrainState, *, radius: float, batch_size: int) -> dict[str, Any]:
    """All methods with both kinds of lines."""
    content: dict[str, Any] = {}
    options = {"radius": radius, "batch_size": batch_size}
    for name, lines in LINES.items():
        found = {
            key: margins(this, state.variables, bound, title=f"{name} {key}", **options)
            for key, bound in bounds(lines).items()
        }
        rows = {
            key: {
                "mean_margin": float(lower.min(axis=1).mean()),
                "verified_error": float(100 * np.mean(~(lower > 0).all(axis=1))),
            }
            for key, lower in found.items()
        }
        slack = {f"{a} <= {b}": _broken(found[a], found[b]) for a, b in ORDER}
        content[name] = {"methods": rows, "examples_breaking": slack}
    return content


def _broken(looser: np.ndarray, tighter: np.ndarray) -> int:
    """How many examples have a margin on which the order does not hold, up to rounding."""
    slack = 1e-4 * (1 + np.abs(looser) + np.abs(tighter))
    return int(np.sum(~(looser <= tighter + slack).all(axis=1)))


def table(content: dict[str, Any]) -> str:
    """The comparison in Markdown."""
    lines = ["| lines | method | mean lowest margin | verified error |", "|---|---|---|---|"]
    for name, part in content.items():
        for key, row in part["methods"].items():
            lines.append(f"| {name} | {key} | {row['mean_margin']:.4g} | {row['verified_error']:.2f} |")
    for name, part in content.items():
        lines.append(f"\n{name} lines, examples that break an order: {part['examples_breaking']}")
    return "\n".join(lines)


def run(workdir: str, *, radius: float, size: int, batch_size: int, data_dir: str) -> dict[str, Any]:
    """Compares the bounds on a finished run's network and writes `bound_table.json` into its folder.

    Raises:
      UserError: mistakes that the user can mend.
    """
    folder = pathlib.Path(workdir)
    this, state = job.finished_first(folder, data_dir=data_dir, eval_size=size)
    content = compare(this, state, radius=radius, batch_size=batch_size)
    surroundings = {"radius": radius, "examples": this.test.size, "device": report.device()}
    replace_text(folder / "bound_table.json", json.dumps({**surroundings, **content}, indent=2) + "\n")
    return content


def define_flags() -> None:
    """Defines the program's flags; not on import, where they would clash with a training program's."""
    flags.DEFINE_string("workdir", "runs/mnist_5k", "folder of a finished run")
    flags.DEFINE_float("radius", 0.1, "radius to bound at", lower_bound=0)
    flags.DEFINE_integer("size", 1000, "how many test examples", lower_bound=1)
    flags.DEFINE_integer("batch_size", 20, "examples at a time", lower_bound=1)
    flags.DEFINE_string("data_dir", data.DEFAULT_DATA_DIR, "TFDS folder that experiments.prepare_data wrote")


def main(argv: list[str]) -> None:
    """Runs the program."""
    names = ("workdir", "radius", "size", "batch_size", "data_dir")
    with one_line("bound_table"):
        refuse_arguments(argv)
        print(table(run(**{name: flags.FLAGS[name].value for name in names})))


if __name__ == "__main__":
    define_flags()
    app.run(main)
