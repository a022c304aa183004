"""What a training step computes and exchanges, counted from the program: the arithmetic behind `docs/scale.md`.

python -m benchmarks.scaling --help
"""

import argparse

import jax
import jax.numpy as jnp

from benchmarks.throughput import FUSED, IBP, recipe
from experiments.common import data, models, train

# network -> (shape of an image, number of classes)
NETWORKS = {
    "dm_large": ((28, 28, 1), 10),
    "cnn7_bn": ((32, 32, 3), 10),
    "wide_resnet8": ((56, 56, 3), 200),  # TinyImageNet, cropped
}
BATCH = 8


def step_flops(network, shape, kind, *, batch=BATCH):
    """Floating-point operations of a training step, for each example, as XLA counts them before it optimises."""
    given = recipe(kind, network, batch=batch)
    state = jax.eval_shape(lambda: train.init_state(network.variables, given, seed=0, shape=shape))
    examples = data.Split(jax.ShapeDtypeStruct((batch, *shape), jnp.uint8), jax.ShapeDtypeStruct((batch,), jnp.int32))
    return train.compile_step(given.phases[0], given).lower(state, examples).cost_analysis()["flops"] / batch


def exchanged_bytes(network):
    """Bytes that the devices sum in a step: gradients, and the statistics of batch norm in both directions."""
    sizes = {name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in network.variables.items()}
    return 4 * (sizes["params"] + 2 * sizes.get("batch_stats", 0))


def smallest_share(flops, exchanged, *, compute, bandwidth):
    """Examples that a device needs in a step to compute for as long as it exchanges.

    A ring sums n bytes by sending, and receiving, nearly 2 n bytes through each device's links.

    Args:
      flops: of an example.
      exchanged: bytes.
      compute: operations a second that a device reaches.
      bandwidth: bytes a second in one direction.
    """
    return (2 * exchanged / bandwidth) / (flops / compute)


def main():
    """Prints a line for each network and kind of training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compute", type=float, default=67e12, help="operations a second of one device")
    parser.add_argument("--bandwidth", type=float, default=450e9, help="bytes a second of its links, in one direction")
    parser.add_argument("--share", type=float, default=0.3, help="of these operations that a step reaches")
    flags = parser.parse_args()
    reached = flags.share * flags.compute
    print(f"{'network':18}{'parameters':>12}{'training':>24}{'GFLOP/example':>15}{'MiB summed':>12}{'examples >=':>13}")
    for name, (shape, classes) in NETWORKS.items():
        network = models.create(name, shape=shape, num_classes=classes, seed=0)
        count = sum(leaf.size for leaf in jax.tree.leaves(network.variables["params"]))
        for kind in (IBP, FUSED):
            flops, exchanged = step_flops(network, shape, kind), exchanged_bytes(network)
            least = smallest_share(flops, exchanged, compute=reached, bandwidth=flags.bandwidth)
            print(
                f"{name:18}{count:12,}{kind:>24}{flops / 1e9:15.2f}{exchanged / 2**20:12.1f}{least:13.2f}", flush=True
            )


if __name__ == "__main__":
    main()
