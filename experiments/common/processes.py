"""Several processes that train together: how they find one another, and what they must agree on."""

import dataclasses
import faulthandler
import json
import socket
import time
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from experiments.common.errors import UserError, first_line
from experiments.common.flags import Config

_LONGEST = 1 << 16  # bytes of a process's flags


def start(config: Config) -> None:
    """Joins the other processes that `--coordinator` names, before anything else asks for a device.

    Raises:
      UserError: process 0 does not answer within `--process_timeout`, or the processes' flags differ. Where another
        one does not come, or dies later, JAX ends this process after that time.
    """
    if not config.coordinator:
        return
    faulthandler.disable()  # where another process dies JAX ends this one with a message; stacks would bury it
    limits = ("initialization_timeout", "heartbeat_timeout_seconds", "shutdown_timeout_seconds")
    options: dict[str, Any] = dict.fromkeys(limits, config.process_timeout)
    if config.coordinator != "auto":
        if config.process_id >= config.num_processes:
            raise UserError(
                f"--process_id={config.process_id} is too large: of --num_processes={config.num_processes} the last "
                f"is {config.num_processes - 1}"
            )
        host, port = _parse(config.coordinator)
        print(f"process {config.process_id} of {config.num_processes} looks for the others by {config.coordinator}")
        if config.process_id:
            _reach(host, port, config.process_timeout)
        options |= {name: getattr(config, name) for name in ("num_processes", "process_id")}
        options["coordinator_address"] = config.coordinator
    try:
        jax.distributed.initialize(**options)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"--coordinator={config.coordinator}: the processes did not find one another: {first_line(error)}"
        ) from error
    _agree(config)


def _parse(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise UserError(f"--coordinator={address} is no address: give host:port of process 0, or auto")
    return host.strip("[]"), int(port)


def _reach(host: str, port: int, timeout: int) -> None:
    """Waits until process 0 listens: JAX itself would break off without a word of the address."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection((host, port), timeout=1).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise UserError(
                    f"--coordinator={host}:{port} did not answer within --process_timeout={timeout} seconds ({error}): "
                    "is process 0 running there, and its port open?"
                ) from error
        time.sleep(0.2)


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
