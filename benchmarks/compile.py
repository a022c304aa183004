"""CPU seconds to trace and to compile bounds of residual networks, and how they grow with depth.

python -m benchmarks.compile --help
"""

import argparse
import time
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

import jaxbound


class Block(nn.Module):
    """Two convolutions around which the input passes."""

    features: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps a batch of images."""
        y = nn.Conv(self.features, (3, 3), self.stride, use_bias=False)(x)
        y = nn.relu(nn.BatchNorm(use_running_average=True)(y))
        y = nn.Conv(self.features, (3, 3), use_bias=False)(y)
        y = nn.BatchNorm(use_running_average=True)(y)
        if x.shape != y.shape:
            x = nn.Conv(self.features, (1, 1), self.stride, use_bias=False)(x)
            x = nn.BatchNorm(use_running_average=True)(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """A residual network for small images; blocks of (2, 2, 2, 2) and a width of 64 are ResNet-18.

    Attributes:
      blocks: how many in each stage; every stage but the first halves the image and doubles the width.
      width: channels of the first stage.
      classes: number of logits.

    References:
      He et al. 2016, arXiv:1512.03385.
    """

    blocks: tuple[int, ...]
    width: int = 64
    classes: int = 10

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps a batch of images to logits."""
        x = nn.Conv(self.width, (3, 3), use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
        for stage, count in enumerate(self.blocks):
            for block in range(count):
                x = Block(self.width * 2**stage, 2 if stage and not block else 1)(x)
        return nn.Dense(self.classes)(jnp.mean(x, axis=(1, 2)))


class Times(NamedTuple):
    """CPU seconds to trace and to compile, and the number of operations that XLA was given."""

    trace: float
    compile: float
    operations: int


def network(blocks: tuple[int, ...], width: int, size: int = 32) -> Callable[[jax.Array], jax.Array]:
    """The function of one image [size, size, 3] of a residual network with random parameters."""
    model = ResNet(blocks, width)
    variables = model.init(jax.random.key(0), jnp.zeros((1, size, size, 3)))
    return lambda x: model.apply(variables, x[None])[0]


def times(fn: Callable, *args: jax.Array) -> Times:
    """How long a function of arrays takes to compile."""
    start = time.process_time()
    lowered = jax.jit(lambda *args: fn(*args)).lower(*args)  # a new function: nothing is cached
    traced = time.process_time()
    lowered.compile()
    done = time.process_time()
    return Times(traced - start, done - traced, sum(" = " in line for line in lowered.as_text().splitlines()))


def bounded(fn: Callable, method: Callable) -> Callable:
    """The margins of class 0 of one image over a ball of any radius."""
    spec = jaxbound.margin_spec(0, 10)
    return lambda x, eps: method(fn)(jaxbound.linf_ball(x, eps), spec=spec)


METHODS = {"ibp": jaxbound.ibp, "crown_ibp": jaxbound.crown_ibp}


def main() -> None:
    """Prints a line for each depth and method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=16, help="channels of the first stage; 64 in the original")
    parser.add_argument("--size", type=int, default=32, help="of the image's sides")
    parser.add_argument("--per_stage", type=int, nargs="+", default=[2, 4, 8], help="blocks in each of four stages")
    flags = parser.parse_args()
    x = jnp.full((flags.size, flags.size, 3), 0.5)
    print(f"{'blocks':>6} {'of':10}{'trace s':>10}{'compile s':>10}{'operations':>12}{'s, of the plain pass':>22}")
    for count in flags.per_stage:
        fn = network((count,) * 4, flags.width, flags.size)
        plain = times(fn, x)
        rows = {"forward": plain}
        rows |= {name: times(bounded(fn, method), x, jnp.array(1e-3)) for name, method in METHODS.items()}
        for name, row in rows.items():
            ratio = (row.trace + row.compile) / (plain.trace + plain.compile)
            print(
                f"{4 * count:6} {name:10}{row.trace:10.2f}{row.compile:10.2f}{row.operations:12}{ratio:22.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
