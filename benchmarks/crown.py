"""Full CROWN with rows that units share beside a row for each unit, and with rows of unstable units only.

python -m benchmarks.crown --help
"""

import argparse
import functools
import math
import os
import pathlib

import jax
import numpy as np

import jaxbound
from benchmarks import models
from benchmarks.timing import Comparison, compare, table
from experiments.common import evaluate, job

RADIUS = 0.1
CLASSES = 10


def cnn7(width):
    """The CNN-7 of CIFAR-10 with this many channels in place of 64."""
    convs = [("conv1", 1, 1), ("conv2", 1, 1), ("conv3", 2, 2), ("conv4", 2, 1), ("conv5", 2, 1)]
    layers = [models.Conv(name, factor * width, 3, stride, 1) for name, factor, stride in convs]
    body = models.hidden_and_relu((*layers, models.Dense("dense1", 8 * width)))
    return models.Network(f"cnn7 of width {width}", (32, 32, 3), (*body, models.Dense("out", CLASSES)))


NETWORKS = {
    "kw": models.KW,
    "dm_small": models.DM_SMALL,
    "residual_cnn": models.RESIDUAL_CNN,
    "cnn7_w2": cnn7(2),
    "cnn7": cnn7(64),
}


def margins(network, params, x, **options):
    """Lower bounds [B, S] of the margins to class 0 by full CROWN."""
    bound = jaxbound.crown(functools.partial(models.apply, network, params), **options)
    spec = jaxbound.margin_spec(0, CLASSES)
    return jax.vmap(lambda box: bound(box, spec=spec))(jaxbound.linf_ball(x, RADIUS))


def inputs(network, batch):
    """Random parameters and images [B, *input_shape]."""
    keys = jax.random.split(jax.random.key(0))
    return models.init(network, keys[0]), jax.random.uniform(keys[1], (batch, *network.input_shape))


def rows(network):
    """For each array of units in order: how many units, and by how many rows they are bounded."""
    found = []

    def counted(program, sets, relaxations):
        sharing = jaxbound.shared_rows(program, sets, relaxations)
        shapes = {k: s.shape for eq in program.equations for k, s in zip(eq.outputs, eq.shapes, strict=True)}
        size = math.prod(shapes[program.outputs[0]])
        found.append((size, size if sharing is None else sharing.rows))
        return sharing

    jax.eval_shape(functools.partial(margins, network, rows=counted), *inputs(network, 1))
    return found


def measure(network, *, batch, rounds, chunk):
    """Both forms timed in alternation; they must agree."""
    forms = {"shared rows": jaxbound.shared_rows, "single rows": jaxbound.single_rows}
    candidates = {name: functools.partial(margins, network, rows=form, chunk=chunk) for name, form in forms.items()}
    timings = compare(candidates, {}, inputs(network, batch), rounds=rounds)
    return Comparison(network.name, f"full CROWN, {chunk} rows at once", timings)


def measure_run(workdir, *, radius, batch, rounds, chunk, **changes):
    """A finished run's network on its first test images: rows of unstable units only beside all rows."""
    this, (state, *_) = job.finished(pathlib.Path(workdir), **changes)
    radius = this.config.eval_radii[0] if radius is None else radius
    examples = this.placement.take(this.test, np.arange(batch))
    forms = {
        "shared rows, unstable units": {"units": jaxbound.unstable_units},
        "shared rows, all units": {},
        "single rows, all units": {"rows": jaxbound.single_rows},
    }

    def margins(variables, examples, **options):
        bound = functools.partial(jaxbound.crown, chunk=chunk, **options)
        return evaluate.margin_bounds(this.network, this.config, bound)(variables, examples, radius)

    candidates = {name: functools.partial(margins, **options) for name, options in forms.items()}
    timings = compare(candidates, {}, (state.variables, examples), rounds=rounds)
    return Comparison(f"{this.config.model} of {workdir}", f"full CROWN at {radius:g}", timings)


def parse_flags():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8, help="examples in a batch")
    parser.add_argument("--models", nargs="+", choices=NETWORKS, default=["kw", "dm_small"], help="networks")
    parser.add_argument("--rounds", type=int, default=5, help="alternating samples of each form")
    parser.add_argument("--chunk", type=int, default=512, help="rows that go backwards at once")
    parser.add_argument("--count_only", action="store_true", help="print how many rows there are, without timing")
    parser.add_argument("--workdir", help="folder of a finished run, whose network is measured instead")
    parser.add_argument("--data_dir", default="data", help="the TFDS folder that the run's data set is in")
    parser.add_argument("--radius", type=float, help="for a run; by default the one that it was evaluated at")
    return parser.parse_args()


def main():
    """Measure and print."""
    flags = parse_flags()
    print(
        f"jax {jax.__version__}, {jax.devices()[0].device_kind}, {os.cpu_count()} cores, batch {flags.batch}, float32"
    )
    print("ratio: time of the first form over that line's, median of the rounds\n")
    sizes = {"batch": flags.batch, "rounds": flags.rounds, "chunk": flags.chunk}
    if flags.workdir:
        print(table(measure_run(flags.workdir, radius=flags.radius, data_dir=flags.data_dir, **sizes)))
        return
    for network in (NETWORKS[name] for name in flags.models):
        counts = ", ".join(f"{units} by {count}" for units, count in rows(network))
        print(f"{network.name}: units and the rows that bound them: {counts}", flush=True)
        if not flags.count_only:
            print(table(measure(network, **sizes)), end="\n\n")


if __name__ == "__main__":
    main()
