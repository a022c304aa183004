"""Images per second of the experiments' own training step: plain, IBP, CROWN-IBP with loss fusion.

And what it costs to spread a step over a mesh and to feed it.

python -m benchmarks.throughput --help
"""

import argparse
import collections
import json
import os
import statistics
import time
from pathlib import Path

import jax
import numpy as np
import optax

from experiments.common import data, memory, methods, models, placement, train
from experiments.common.errors import UserError
from experiments.common.flags import PRECISIONS, CrownConfig

SHAPES = {"mnist": (28, 28, 1), "cifar10": (32, 32, 3)}
SIZE = 10_000  # random examples that batches are drawn from
PLAIN, IBP, FUSED = "plain", "IBP", "CROWN-IBP, loss fusion"
# name -> (bound, weight of the natural loss, weight of the linear bound)
KINDS = {PLAIN: (methods.ibp, 1, 0), IBP: (methods.ibp, 0.5, 0), FUSED: (methods.crown_ibp, 0.5, 0.5)}


def examples(dataset):
    """Random images and labels."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (SIZE, *SHAPES[dataset]), np.uint8)
    return data.Split(images, rng.integers(0, 10, SIZE).astype(np.int32))


def recipe(kind, network, *, batch, radius=0.01, precision="highest"):
    """The trainer's recipe with one phase, whose knobs are those of the ramp."""
    bound, *weights = KINDS[kind]
    config = CrownConfig(loss_fusion=True)

    def knobs(step, key):
        # Arrays, as during the ramp, but for what the kind leaves out.
        values = (x if x in (0, 1) else x + 0 * step for x in (radius, *weights))
        return train.Knobs(*values, 0, None, key)

    return train.Recipe(
        method=methods.make(network, config, bound(network, config)),
        phases=(train.Phase(0, knobs),),
        optimizer=optax.adam(5e-4),
        total_steps=1 << 30,
        steps_per_epoch=SIZE // batch,
        batch_size=batch,
        seeds=(0,),
        precision=precision,
    )


def of_flags(kind, network, flags):
    """The recipe that the command line asks for."""
    return recipe(kind, network, batch=flags.batch, radius=flags.radius, precision=flags.precision)


class Candidate:
    """A compiled step with its state and its source of batches.

    Args:
      given: the recipe.
      network: its network.
      where: its placement; None for the device that JAX takes by itself.
      fed: whether batches are sent while it runs; else there is one, used again and again.
    """

    def __init__(self, given, network, flags, *, where, fed=False):
        split = examples(flags.dataset)
        state = train.init_state(network.variables, given, seed=0, shape=SHAPES[flags.dataset])
        if where is None:
            shardings, batch = None, jax.tree.map(jax.numpy.asarray, data.Split(*(x[: flags.batch] for x in split)))
        else:
            state, batch = where.put(state), where.take(split, np.arange(flags.batch))
            shardings = where.of_state(state)
        self._state, self._batch = state, batch
        self._feed = train.batches(given, split, where, step=0) if fed else None
        self._step = train.compile_step(given.phases[0], given, shardings)
        self.seconds(1)  # compiles

    def seconds(self, steps):
        """Time of a step, the mean of so many."""
        start = time.perf_counter()
        for _ in range(steps):
            self._state = self._step(self._state, next(self._feed) if self._feed else self._batch)
        jax.block_until_ready(self._state)
        return (time.perf_counter() - start) / steps


def alternate(candidates, flags):
    """{name: seconds of a step in each round}, every round with all of them."""
    samples = collections.defaultdict(list)
    for _ in range(flags.rounds):
        for name, candidate in candidates.items():
            samples[name].append(candidate.seconds(flags.steps))
    return dict(samples)


def of_methods(flags):
    """Seconds of a step by each kind of training, on the mesh."""
    network = models.create(flags.model, shape=SHAPES[flags.dataset], num_classes=10, seed=0)
    where = placement.make(flags.mesh)
    return alternate({k: Candidate(of_flags(k, network, flags), network, flags, where=where) for k in KINDS}, flags)


def of_trainers(flags):
    """Seconds of an IBP step: as it is run, with one batch for all steps, and without a mesh; on one device."""
    network = models.create(flags.model, shape=SHAPES[flags.dataset], num_classes=10, seed=0)
    given, one = of_flags(IBP, network, flags), placement.make("data:1")
    return alternate(
        {
            "sharded, batches fed": Candidate(given, network, flags, where=one, fed=True),
            "sharded, one batch": Candidate(given, network, flags, where=one),
            "not sharded, one batch": Candidate(given, network, flags, where=None),
        },
        flags,
    )


def table(samples, flags):
    """A line for each candidate: milliseconds, images per second, its time over the last and the first one's."""
    first, *_, last = samples
    lines = [f"  {'':26}{'ms':>10}{'images/s':>11}{f'/ {first}':>24}{f'/ {last}':>28}"]
    for name, seconds in samples.items():
        ratios = [statistics.median(a / b for a, b in zip(seconds, samples[k], strict=True)) for k in (first, last)]
        median = statistics.median(seconds)
        lines.append(f"  {name:26}{1e3 * median:10.2f}{flags.batch / median:11.0f}{ratios[0]:24.3f}{ratios[1]:28.3f}")
    return "\n".join(lines)


def main():
    """Times both and prints the tables."""
    memory.keep_freed()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=SHAPES, default="mnist", help="whose shape the random images have")
    parser.add_argument("--model", default="dm_small", help="network, as in the experiments")
    parser.add_argument("--batch", type=int, default=128, help="examples in a batch")
    parser.add_argument("--radius", type=float, default=0.01, help="of the perturbation")
    parser.add_argument("--mesh", default="", help="devices of the first table, as in the experiments")
    parser.add_argument("--precision", choices=PRECISIONS, default="highest", help="of matrix products")
    parser.add_argument("--steps", type=int, default=10, help="steps of a sample")
    parser.add_argument("--rounds", type=int, default=7, help="alternating samples of each candidate")
    parser.add_argument("--json", type=Path, help="file to save all samples to")
    flags = parser.parse_args()
    try:
        if not placement.make(flags.mesh).divides(flags.batch):
            parser.error(f"--batch={flags.batch} cannot be spread evenly over the data axis of the mesh")
    except UserError as error:
        parser.error(str(error))
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}, {os.cpu_count()} cores"
    print(
        f"jax {jax.__version__}, {device}, {flags.model} on {flags.dataset}, batch {flags.batch}, {flags.precision}\n"
    )
    found = {}
    for title, measure in (("kinds of training", of_methods), ("the trainer around an IBP step", of_trainers)):
        found[title] = measure(flags)
        print(f"{title}; ratios are medians of the rounds\n{table(found[title], flags)}\n", flush=True)
    if flags.json:
        settings = {key: value for key, value in vars(flags).items() if key != "json"}
        content = {"jax": jax.__version__, "device": device, "flags": settings, "seconds": found}
        flags.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
