"""The report of a run: `results.json`, a table for the terminal, and `report.png`."""

import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import matplotlib.figure
import numpy as np

import jaxbound
from experiments.common.files import replace_text
from experiments.common.flags import Config

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def surroundings(config: Config, devices: Sequence[jax.Device] = ()) -> dict[str, Any]:
    """What a result depends on besides the code: flags (less folders and a process's own), versions, devices."""
    versions = {"python": platform.python_version(), "jaxbound": jaxbound.__version__}
    return {
        "flags": {
            field.name: getattr(config, field.name)
            for field in dataclasses.fields(config)
            if not (field.metadata.get("is_folder") or field.metadata.get("is_own"))
        },
        "versions": {**versions, **{name: importlib.metadata.version(name) for name in PACKAGES}},
        "device": device(devices),
    }


def device(devices: Sequence[jax.Device] = ()) -> dict[str, Any]:
    """What figures were measured on: these devices, or the one that JAX takes by itself."""
    first, *others = devices if len(devices) else jax.devices()[:1]
    return {
        "platform": first.platform,
        "kind": first.device_kind,
        "count": 1 + len(others),
        "processes": jax.process_count(),
        "cpu_cores": os.cpu_count(),
    }


def write_results(workdir: pathlib.Path, results: Mapping[str, Any]) -> None:
    """Writes `results.json`."""
    replace_text(workdir / "results.json", json.dumps(results, indent=2, allow_nan=False) + "\n")


def table(results: Mapping[str, Any]) -> str:
    """The errors as a table, one row per radius.

    Args:
      results: the content of `results.json`.
    """
    names = list(results["verified_error"])
    lines = [["radius", "clean", "PGD", *names]]
    for row in results["radii"]:
        verified = [row["verified_error"].get(name) for name in names]
        figures = [results["clean_error"], row["pgd_error"], *verified]
        lines.append([f"{row['radius']:g}", *("-" if figure is None else f"{figure:.2f}" for figure in figures)])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    body = "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
    title = f"errors in percent of {results['examples']} test examples (after PGD: verified errors by method)"
    return "\n".join([title, body, *_remarks(results)])


def _remarks(results: Mapping[str, Any]) -> list[str]:
    """What a reader of the figures must know."""
    remarks = []
    if beyond := results.get("radii_above_training"):
        trained = results["flags"]["radius"]
        remarks.append(f"{', '.join(f'{r:g}' for r in beyond)}: above the radius that it was trained at, {trained:g}")
    if (precision := results.get("flags", {}).get("precision", "highest")) != "highest":
        remarks.append(
            f"trained with matrix products of {precision} precision (TF32 on a GPU); verified with the highest"
        )
    if results.get("checkpoint") == "best":
        remarks.append(f"of the best checkpoint, chosen on the {results['checkpoint_chosen_on']} set")
    return remarks


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figures:
    """What `report.png` shows.

    Attributes:
      rows: the record of training.
      results: the content of `results.json`.
      method: the bound that the curve and the certified radii are by.
      radii, curve: the verified error over the radius.
      images: bytes [N, H, W, C], a few examples.
      certified: their certified radii, [N].
    """

    rows: Sequence[Mapping[str, Any]]
    results: Mapping[str, Any]
    method: str
    radii: Sequence[float]
    curve: Sequence[float]
    images: np.ndarray
    certified: np.ndarray


def draw(path: pathlib.Path, figures: Figures) -> None:
    """Draws `report.png`: training curves, verified error over the radius, digits with their certified radius."""
    figure = matplotlib.figure.Figure(figsize=(15, 4.5), layout="constrained")
    left, middle, right = figure.subfigures(1, 3)
    _draw_training(left.subplots(), figures.rows)
    _draw_radii(middle.subplots(), figures)
    _draw_digits(right, figures)
    partial = path.with_name(path.name + ".partial")
    figure.savefig(partial, format="png", dpi=110)
    os.replace(partial, path)


def _draw_training(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    names = {
        "clean_error": ("training, clean", "C0:"),
        "verified_error": ("training, at its radius", "C1:"),
        "test_clean_error": ("test, clean", "C0-"),
        "test_verified_error": ("test, verified", "C1-"),
    }
    for name, (label, style) in names.items():
        points = [(row["epoch"], row[name]) for row in rows if row.get(name) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), style, marker="." if len(points) < 3 else None, label=label)
    axes.set(title="training", xlabel="epoch", ylabel="error (%)", ylim=(0, 100))
    if rows:
        axes.legend(loc="center right")
        radius = axes.twinx()
        radius.plot([row["epoch"] for row in rows], [row["radius"] for row in rows], "k--", linewidth=0.8)
        radius.set_ylabel("radius (dashed)")
        radius.set_ylim(bottom=0)


def _draw_radii(axes: Any, figures: Figures) -> None:
    axes.plot(figures.radii, figures.curve, "C1-", label=figures.method)
    rows = figures.results["radii"]
    for index, name in enumerate(figures.results["verified_error"]):
        points = [(row["radius"], row["verified_error"][name]) for row in rows if name in row["verified_error"]]
        axes.plot(*zip(*points, strict=True), "s^v"[index % 3], color=f"C{index + 1}", label=f"{name}, evaluated")
    axes.plot([row["radius"] for row in rows], [row["pgd_error"] for row in rows], "kx", label="PGD")
    axes.axhline(figures.results["clean_error"], color="C0", linewidth=0.8, label="clean")
    axes.set(title="verified error over the radius", xlabel="radius (pixels in [0, 1])", ylabel="error (%)")
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper left")


def _draw_digits(panel: Any, figures: Figures) -> None:
    panel.suptitle(f"certified radius ({figures.method})")
    count = len(figures.images)
    columns = max(1, min(4, count))
    grid = panel.subplots(-(-count // columns), columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, image, radius in zip(grid.flat, figures.images, figures.certified, strict=False):
        axes.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255)
        axes.set_title(f"{radius:.3f}")
