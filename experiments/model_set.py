"""Trains every network of a family by one recipe, and reports the best, the median and the worst of them.

    python -m experiments.model_set --program=mnist_crown_ibp --set=mnist_small --flagfile=experiments/flags/NAME.flags

Each network has a folder of its own in `--workdir`, so an interrupted set goes on where it stopped; `model_set.json`
and a table sum them up.

References:
  Zhang et al. 2020, arXiv:1906.06316, whose model sets these are.
"""

import dataclasses
import importlib
import json
import pathlib
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags as absl_flags

from experiments.common import flags, memory, models, processes, run
from experiments.common.errors import one_line
from experiments.common.files import replace_text

PROGRAMS = ("mnist_ibp", "mnist_crown_ibp", "mnist_global", "cifar10_ibp", "cifar10_crown_ibp", "tinyimagenet_ibp")


def summary(errors: Mapping[str, float]) -> dict[str, Any]:
    """The best, the median and the worst of a family.

    Args:
      errors: verified error of each network, in percent.

    Returns:
      The three figures, and the names of the best and the worst network.
    """
    order = sorted(errors, key=lambda name: errors[name])
    return {
        "best": errors[order[0]],
        "median": statistics.median(errors.values()),
        "worst": errors[order[-1]],
        "best_model": order[0],
        "worst_model": order[-1],
    }


def train(program: Any, config: flags.Config, names: Sequence[str]) -> dict[str, Any] | None:
    """Trains, or resumes, all networks of a family, each the mean of its seeds; None where a signal stopped it."""
    results = {}
    for name in names:
        if processes.is_first():
            print(f"{name}:")
        workdir = str(pathlib.Path(config.workdir) / name)
        found = run.run(program.NAME, program.BOUND, dataclasses.replace(config, model=name, workdir=workdir))
        if found is None:
            return None
        results[name] = found
    method = next(iter(found[0]["verified_error"]))
    errors = {name: statistics.mean(seed["verified_error"][method] for seed in each) for name, each in results.items()}
    return {"method": method, "radius": config.eval_radii[0], "errors": errors, **summary(errors)}


def main(argv: list[str]) -> None:
    """Finds the program, whose flags are then known, and runs it for each network."""
    early = absl_flags.FlagValues()
    absl_flags.DEFINE_enum("program", "mnist_ibp", PROGRAMS, "what trains them", flag_values=early)
    absl_flags.DEFINE_enum("set", "mnist_small", tuple(models.MODEL_SETS), "the family", flag_values=early)
    with one_line("model_set", absl_flags.Error):
        rest = early(argv, known_only=True)
        program = importlib.import_module(f"experiments.{early.program}")
        values = absl_flags.FlagValues()
        flags.define(program.DEFAULTS, values)
        values(rest)
        config = flags.read(program.DEFAULTS, values)
        memory.keep_freed()
        processes.start(config)
        content = train(program, config, models.MODEL_SETS[early.set])
    if content is None or not processes.is_first():
        return
    content = {"set": early.set, **content}
    replace_text(pathlib.Path(config.workdir) / "model_set.json", json.dumps(content, indent=2) + "\n")
    print(f"verified error by {content['method']} at {content['radius']:g}, {early.set}:")
    for key in ("best", "median", "worst"):
        print(f"{key:>6} {content[key]:6.2f} {content.get(f'{key}_model', '')}")


if __name__ == "__main__":
    main(sys.argv)
