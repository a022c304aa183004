"""Where arrays live: a mesh of devices over which examples, parameters and the rows of bounds are spread.

One program runs on all devices, and XLA inserts what they have to tell each other: the trainer is the same function on
one device, on eight, and on many hosts.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from experiments.common import data
from experiments.common.errors import UserError

DATA, MODEL = "data", "model"  # the mesh's axes: examples; features of parameters, and rows of bounds


@dataclasses.dataclass(frozen=True)
class Placement:
    """Spreads arrays over a mesh.

    Attributes:
      mesh: of the axes `data` and `model`, either of which may have the size 1.
    """

    mesh: Mesh

    @property
    def rows(self) -> NamedSharding | None:
        """How the rows of a bound are spread; None where the mesh has one device for them."""
        return NamedSharding(self.mesh, PartitionSpec(MODEL)) if self.mesh.shape[MODEL] > 1 else None

    def divides(self, batch_size: int) -> bool:
        """Whether each device gets the same number of a batch's examples."""
        return batch_size % self.mesh.shape[DATA] == 0

    def filled(self, batch_size: int) -> int:
        """The next batch size that `divides`."""
        return batch_size + -batch_size % self.mesh.shape[DATA]

    def take(self, split: data.Split, chosen: np.ndarray) -> data.Split:
        """A batch on the devices, each of which is sent its own examples only.

        Args:
          split: the examples, the same in every process.
          chosen: their indices, [..., B].
        """
        sharding = NamedSharding(self.mesh, PartitionSpec(*[None] * (chosen.ndim - 1), DATA))

        def place(array: np.ndarray) -> jax.Array:
            shape = (*chosen.shape, *array.shape[1:])
            return jax.make_array_from_callback(shape, sharding, lambda part: array[chosen[part[: chosen.ndim]]])

        return data.Split(*map(place, split))

    def of_state(self, state: Any, *, stacked: bool = False) -> Any:
        """How a state is spread: what has as many features as the `model` axis divides, over that axis; else whole.

        Args:
          state: arrays whose last axis is that of features, as in Flax's kernels, biases and statistics.
          stacked: whether a first axis holds several states.
        """
        share = self.mesh.shape[MODEL]

        def place(leaf: Any) -> NamedSharding:
            rank = np.ndim(leaf)
            split = share > 1 and rank > stacked and np.shape(leaf)[-1] % share == 0
            return NamedSharding(self.mesh, PartitionSpec(*[None] * (rank - 1), MODEL) if split else PartitionSpec())

        return jax.tree.map(place, state)

    def put(self, state: Any, *, stacked: bool = False) -> Any:
        """Spreads a state that every process has."""
        return jax.tree.map(_put, state, self.of_state(state, stacked=stacked))


def _put(leaf: Any, sharding: NamedSharding) -> jax.Array:
    return jax.make_array_from_callback(np.shape(leaf), sharding, np.asarray(leaf).__getitem__)


def fetch(array: jax.Array) -> np.ndarray:
    """The whole of an array, in every process."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def make(text: str, devices: Sequence[jax.Device] | None = None) -> Placement:
    """The placement that `--mesh` asks for.

    Args:
      text: sizes of axes, such as `data:4,model:2`; empty for all devices on `data`.
      devices: to choose from; all there are by default.

    Raises:
      UserError: the text is no mesh, or there are not as many devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = {DATA: 1, MODEL: 1, **_sizes(text)} if text else {DATA: len(devices), MODEL: 1}
    count = math.prod(sizes.values())
    if count > len(devices):
        raise UserError(f"--mesh={text} needs {count} devices, of which there are {len(devices)}: {_kinds(devices)}")
    if count < len(devices) and jax.process_count() > 1:
        raise UserError(
            f"--mesh={text} leaves out {len(devices) - count} of the {len(devices)} devices of "
            f"{jax.process_count()} processes: with several processes the mesh takes all"
        )
    return Placement(
        jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * 2, devices=devices[:count])
    )


def _sizes(text: str) -> dict[str, int]:
    found = {}
    for part in text.split(","):
        name, _, size = part.strip().partition(":")
        if name not in (DATA, MODEL) or name in found or not size.isdecimal() or int(size) < 1:
            raise UserError(
                f"--mesh={text} is no mesh: give the sizes of {DATA} and {MODEL}, such as --mesh={DATA}:4,{MODEL}:2"
            )
        found[name] = int(size)
    return found


def _kinds(devices: Sequence[jax.Device]) -> str:
    return ", ".join(sorted({device.device_kind for device in devices}))
