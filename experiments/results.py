"""Writes the README's table of results: the published figures, and ours beside them.

    python -m experiments.results --runs=runs

takes `results.json` and the plots of finished runs over into `experiments/results/`, one folder for each flagfile, and
rewrites the table from what is there. Without `--runs` it only rewrites the table.
"""

import json
import pathlib
import shutil
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from absl import app, flags

from experiments.common.errors import one_line, refuse_arguments
from experiments.common.files import CURVE, replace_text
from experiments.common.published import ROWS, Row

HERE = pathlib.Path(__file__).parent
BEGIN, END = "<!-- results: python -m experiments.results -->", "<!-- end of results -->"
FILES = ("results.json", CURVE, "*.png")
HEADER = ("paper", "row", "radius", "published", "ours", "difference", "seeds", "machine", "minutes", "flagfile")


def collect(runs: pathlib.Path, results: pathlib.Path, names: Iterable[str]) -> list[str]:
    """Copies what finished runs left: results and plots, never weights.

    Args:
      runs: the folder that holds the runs, `NAME` or, for further seeds, `NAME/seed_N`.
      results: where they go.
      names: of flagfiles.

    Returns:
      The names that were found.
    """
    found = []
    for name in names:
        for source in sorted({path.parent for file in FILES[:2] for path in (runs / name).glob(f"**/{file}")}):
            target = results / name / source.relative_to(runs / name)
            target.mkdir(parents=True, exist_ok=True)
            for file in (file for pattern in FILES for file in source.glob(pattern)):
                shutil.copyfile(file, target / file.name)
            found.append(str(target.relative_to(results)))
    return found


def read(results: pathlib.Path, name: str) -> list[dict[str, Any]]:
    """The results of a flagfile, one for each seed."""
    paths = sorted((results / name).glob("**/results.json"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def figure(result: Mapping[str, Any], radius: float, method: str) -> float | None:
    """The verified error of a run at a radius by a method; None where it was not evaluated."""
    for at in result["radii"]:
        if abs(at["radius"] - radius) < 1e-6:
            return at["verified_error"].get(method)
    return None


def cells(row: Row, results: list[dict[str, Any]]) -> list[str]:
    """One line of the table; figures at several radii stand in the radii's order."""
    start = [row.paper, row.label, " / ".join(map(_radius, row.radii)), _figures(row.errors)]
    found = [[figure(result, radius, row.method) for radius in row.radii] for result in results]
    complete = [errors for errors in found if None not in errors]
    if not complete:
        return [*start, "not run", "", "", "", "", f"`{row.name}`"]
    ours = [statistics.mean(errors) for errors in zip(*complete, strict=True)]
    differences = [error - published for error, published in zip(ours, row.errors, strict=True)]
    minutes = statistics.mean(sum(result["seconds"].values()) / 60 for result in results)
    measured = [
        _figures(ours),
        _figures(differences, "+.2f"),
        str(len(complete)),
        machine(results[0]),
        f"{minutes:.0f}",
    ]
    return [*start, *measured, f"`{row.name}`"]


def _radius(radius: float) -> str:
    return f"{radius:g}" if radius >= 0.05 else f"{radius * 255:.3g}/255"


def _figures(values: Iterable[float], form: str = ".2f") -> str:
    return " / ".join(format(value, form) for value in values)


def machine(result: Mapping[str, Any]) -> str:
    """What a run was trained on."""
    device = result["device"]
    if device["platform"] == "cpu":
        return f"{device['cpu_cores']} CPU cores"
    return device["kind"] if device.get("count", 1) == 1 else f"{device['count']} x {device['kind']}"


def table(results: pathlib.Path, rows: Iterable[Row] = ROWS) -> str:
    """The table in Markdown."""
    lines = [HEADER, ["---"] * len(HEADER), *(cells(row, read(results, row.name)) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def rewrite(readme: pathlib.Path, text: str) -> None:
    """Puts a text between the markers of a file.

    Raises:
      ValueError: the file has no such markers.
    """
    content = readme.read_text(encoding="utf-8")
    if content.count(BEGIN) != 1 or content.count(END) != 1:
        raise ValueError(f"{readme} must have the lines {BEGIN!r} and {END!r} once each: the table goes between them")
    before, rest = content.split(BEGIN)
    after = rest.split(END)[1]
    replace_text(readme, f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


def main(argv: list[str]) -> None:
    """Runs the program."""
    with one_line("results"):
        refuse_arguments(argv)
    folder, runs = HERE / "results", flags.FLAGS["runs"].value
    if runs:
        names = [path.stem for path in (HERE / "flags").glob("*.flags")]
        found = collect(pathlib.Path(runs), folder, names)
        print(f"taken over: {', '.join(found) or 'nothing'}")
    rewrite(HERE.parent / "README.md", table(folder))
    print("the table in README.md is written")


if __name__ == "__main__":
    flags.DEFINE_string("runs", "", "folder of finished runs to take over; empty: none")
    app.run(main)
