"""Shows how interval bounds grow through networks with their initial weights.

    python -m experiments.plot_init --models=mlp,cnn7_bn,wide_resnet8 --out=runs/init

writes `init.png`, `init.json` and a table. The gain of a layer is the mean radius of its pre-activations over that of
the layer's before it, so it is the gain of a ReLU and the affine layer behind it; the first layer, which has no ReLU
before it, has none. A network's mean gain is the geometric mean of its layers' gains. The last layer, whose results are
no pre-activations, is left out. In a residual network a sum counts as a layer, with the radii of both branches.

Batch norm divides by a standard deviation, so it hides what the weights do. Networks that have it are measured twice:
with the statistics that they begin with, where it is the identity, and with the batch's.

References:
  Shi et al. 2021, arXiv:2103.17268.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np
from absl import app, flags

import jaxbound
from experiments.common import data, models, report
from experiments.common.errors import UserError, one_line, refuse_arguments
from experiments.common.files import replace_text, writable_folder

BATCH = 64  # images that the batch's statistics are over


class Growth(NamedTuple):
    """The radii of a network's layers, averaged over images, neurons and seeds.

    Attributes:
      model: the network.
      init: its initial weights.
      normalised: whether batch norm has the batch's statistics; False where it does nothing.
      radii: the mean radius of the (clipped) input box, then of each layer's pre-activations.
    """

    model: str
    init: str
    normalised: bool
    radii: list[float]

    @property
    def gains(self) -> list[float]:
        """The gain of every layer from the second one on."""
        return [after / before for before, after in zip(self.radii[1:-1], self.radii[2:], strict=True)]

    @property
    def mean_gain(self) -> float:
        """The geometric mean of the gains."""
        return float(np.exp(np.mean(np.log(self.gains))))


def mean_radii(network: models.Network, variables: Any, boxes: jaxbound.Interval) -> list[float]:
    """The mean radius of a batch of boxes [B, H, W, C] and of every layer's pre-activations, in a network's order."""

    @jax.jit
    def measure(variables: Any, boxes: Any) -> list[jax.Array]:
        layers = jax.vmap(lambda box: jaxbound.layer_bounds(network.apply)(variables, box))(boxes)
        return [jnp.mean(jaxbound.radius(box)) for box in (boxes, *layers.values())]

    return [float(mean) for mean in measure(variables, boxes)]


def grow(model: str, init: str, images: np.ndarray, *, radius: float, count: int, seeds: int) -> list[Growth]:
    """Measures a network.

    Args:
      model: a name of `models.create`.
      init: a key of `models.INITS`.
      images: pixels in [0, 1], [B, H, W, C]; batch statistics are over all of them.
      radius: of the boxes, which are clipped to [0, 1].
      count: how many of the images get a box.
      seeds: how many initialisations are averaged.

    Returns:
      The growth without and, where the network has batch norm, with the batch's statistics.
    """
    boxes = jaxbound.linf_ball(jnp.asarray(images[:count]), radius)
    rows: dict[bool, list[list[float]]] = {}
    for seed in range(seeds):
        network = models.create(model, shape=images.shape[1:], num_classes=10, seed=seed, init=init)
        rows.setdefault(False, []).append(mean_radii(network, network.variables, boxes))
        _, statistics = jax.jit(network.train)(network.variables, images)
        if statistics:
            variables = {**network.variables, "batch_stats": statistics}
            rows.setdefault(True, []).append(mean_radii(network, variables, boxes))
    return [Growth(model, init, key, np.mean(found, axis=0).tolist()) for key, found in rows.items()]


def table(growths: Sequence[Growth]) -> str:
    """The gains in Markdown: one row for each network and initialisation."""
    head = ["model", "init", "batch norm", "mean gain", "gain of each layer"]
    lines = [head, ["---"] * len(head)]
    for growth in growths:
        gains = " ".join(f"{gain:.2f}" for gain in growth.gains)
        norm = "by the batch" if growth.normalised else "none"
        lines.append([growth.model, growth.init, norm, f"{growth.mean_gain:.3f}", gains])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def draw(path: pathlib.Path, growths: Sequence[Growth], title: str) -> None:
    """Draws radii over depth: a column for each network, a row without and one with the batch's statistics."""
    names = list(dict.fromkeys(growth.model for growth in growths))
    inits = list(dict.fromkeys(growth.init for growth in growths))
    kinds = sorted({growth.normalised for growth in growths})
    figure = matplotlib.figure.Figure(figsize=(4.2 * len(names), 3.6 * len(kinds) + 0.4), layout="constrained")
    grid = figure.subplots(len(kinds), len(names), squeeze=False)
    for (row, column), axes in np.ndenumerate(grid):
        shown = [g for g in growths if g.model == names[column] and g.normalised == kinds[row]]
        if not shown:
            axes.set_axis_off()
            continue
        for growth in shown:
            relative = np.array(growth.radii[1:]) / growth.radii[1]
            label = f"{growth.init}: mean gain {growth.mean_gain:.2f}"
            layers, color = range(1, len(relative) + 1), f"C{inits.index(growth.init)}"
            axes.semilogy(layers, relative, "o-", color=color, label=label)
            axes.set_xticks(layers)
        axes.axhline(1, color="k", linewidth=0.8, linestyle=":")
        norm = ", batch norm by the batch" if kinds[row] else ", without batch norm"
        axes.set(title=names[column] + norm, xlabel="layer", ylabel="mean radius / first layer's")
        axes.legend(loc="best", fontsize="small")
    figure.suptitle(title)
    figure.savefig(path, dpi=110)


def define_flags() -> None:
    """Defines the program's flags; not on import, where they would clash with a training program's."""
    flags.DEFINE_list("models", ["mlp", "cnn7_bn", "wide_resnet8"], "networks")
    flags.DEFINE_multi_enum("init", ["torch", "orthogonal", "ibp"], list(models.INITS), "initial weights")
    flags.DEFINE_string("dataset", data.SAMPLE, "data set whose images are used")
    flags.DEFINE_string("data_dir", data.DEFAULT_DATA_DIR, "TFDS folder that experiments.prepare_data wrote")
    flags.DEFINE_float("radius", 0.1, "of the boxes around images, in pixels of [0, 1]", lower_bound=1e-6)
    flags.DEFINE_integer("images", 8, "images with a box", lower_bound=1, upper_bound=BATCH)
    flags.DEFINE_integer("seeds", 3, "initialisations to average", lower_bound=1)
    flags.DEFINE_string("out", "runs/init", "folder to write to")


def run(options: Mapping[str, Any]) -> str:
    """Measures, writes the files and returns the table.

    Args:
      options: the flags' values by name.

    Raises:
      UserError: mistakes that the user can mend.
    """
    if unknown := [name for name in options["models"] if not models.is_model(name)]:
        raise UserError(f"--models: there is no {unknown[0]!r}: choose among {', '.join(models.NAMES)}")
    images = data.load(options["dataset"], options["data_dir"]).train.images[:BATCH] / np.float32(255)
    folder = writable_folder(options["out"])
    settings = {"radius": options["radius"], "count": options["images"], "seeds": options["seeds"]}
    growths = [g for m in options["models"] for i in options["init"] for g in grow(m, i, images, **settings)]
    rows = [{**growth._asdict(), "gains": growth.gains, "mean_gain": growth.mean_gain} for growth in growths]
    content = {"dataset": options["dataset"], **settings, "device": report.device(), "growths": rows}
    replace_text(folder / "init.json", json.dumps(content, indent=2) + "\n")
    draw(folder / "init.png", growths, f"{options['dataset']}, boxes of radius {options['radius']:g}")
    return table(growths)


def main(argv: list[str]) -> None:
    """Runs the program."""
    names = ("models", "init", "dataset", "data_dir", "radius", "images", "seeds", "out")
    with one_line("plot_init"):
        refuse_arguments(argv)
        print(run({name: flags.FLAGS[name].value for name in names}))


if __name__ == "__main__":
    define_flags()
    app.run(main)
