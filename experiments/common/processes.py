"""Several processes that train together: how they find one another, and what they must agree on."""

import dataclasses
import json
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from experiments.common.flags import Config, UserError

_LONGEST = 1 << 16  # bytes of a process's flags


def start(config: Config) -> None:
    """Joins the other processes that `--coordinator` names, before anything else asks for a device.

    Raises:
      UserError: they do not answer within `--process_timeout`, or their flags are others.
    """
    if not config.coordinator:
        return
    address = (
        {}
        if config.coordinator == "auto"
        else {
            "coordinator_address": config.coordinator,
            "num_processes": config.num_processes,
            "process_id": config.process_id,
        }
    )
    try:
        jax.distributed.initialize(
            **address,
            initialization_timeout=config.process_timeout,
            heartbeat_timeout_seconds=config.process_timeout,
            shutdown_timeout_seconds=config.process_timeout,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"process {config.process_id} of {config.num_processes} did not find the others by "
            f"--coordinator={config.coordinator} within --process_timeout={config.process_timeout} seconds: "
            f"{str(error).splitlines()[0][:200]}"
        ) from error
    _agree(config)


def is_first() -> bool:
    """Whether this process is the one that writes files and prints."""
    return jax.process_index() == 0


def any_of(value: bool) -> bool:
    """Whether the value is true in any process."""
    return bool(np.any(multihost_utils.process_allgather(np.asarray(value))))


def _agree(config: Config) -> None:
    """Raises UserError, in every process, where a flag that all must share differs."""
    shared = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if not field.metadata.get("is_own")
    }
    text = np.frombuffer(json.dumps(shared).encode(), np.uint8)
    everyone = multihost_utils.process_allgather(np.pad(text, (0, _LONGEST - text.size)))
    first, *others = (json.loads(bytes(row).rstrip(b"\0")) for row in np.asarray(everyone))
    for index, other in enumerate(others, 1):
        names = [name for name in {**first, **other} if first.get(name) != other.get(name)]
        if names:
            raise UserError(
                f"the processes have different flags: process 0 has {_values(first, names)}, "
                f"process {index} has {_values(other, names)}. Start all with the same ones"
            )


def _values(flags: dict[str, Any], names: list[str]) -> str:
    return ", ".join(f"--{name}={flags.get(name)}" for name in names)
