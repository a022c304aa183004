"""Starts several processes of a program on this machine, which find one another over loopback.

    python -m experiments.launch_local --processes=2 -- python -m experiments.mnist_ibp --workdir=runs/two

Every process gets the command's own flags and `--coordinator`, `--num_processes` and `--process_id`. Lines of output
are marked with the process that they come from. When one ends with an error, the others are given `--patience` seconds
to end as well and are then ended. Ctrl-C and SIGTERM go to all of them.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

from absl import app, flags


def launch(command: Sequence[str], *, processes: int, devices: int = 0, patience: float = 120.0) -> list[int]:
    """Runs a command several times at once.

    Args:
      command: a program of this folder, with its flags.
      processes: how many.
      devices: CPU devices that each process gets; 0 for what it finds.
      patience: seconds that the others have to end once one has failed.

    Returns:
      Each process's exit status.
    """
    address = f"127.0.0.1:{_free_port()}"
    of_devices = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)} if devices else {}
    environment = {**os.environ, **of_devices}
    running = []
    for index in range(processes):
        own = [f"--coordinator={address}", f"--num_processes={processes}", f"--process_id={index}"]
        running.append(
            subprocess.Popen(
                [*command, *own],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,  # the terminal's Ctrl-C comes to this program alone, which passes it on
            )
        )
    readers = [threading.Thread(target=_relay, args=(k, each), daemon=True) for k, each in enumerate(running)]
    for reader in readers:
        reader.start()
    previous = {number: signal.signal(number, _forward(running)) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        _wait(running, patience)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        for each in running:
            each.kill()
    for reader in readers:
        reader.join()
    return [each.wait() for each in running]


def _wait(running: Sequence[subprocess.Popen], patience: float) -> None:
    """Until all have ended, or one has failed and the others' time is up."""
    deadline = float("inf")
    while any(each.poll() is None for each in running) and time.monotonic() < deadline:
        if any(each.poll() for each in running):
            deadline = min(deadline, time.monotonic() + patience)
        time.sleep(0.1)


def _relay(index: int, process: subprocess.Popen) -> None:
    for line in process.stdout or ():
        if line.strip():
            sys.stdout.write(f"[{index}] {line.rstrip()}\n")
            sys.stdout.flush()


def _forward(running: Sequence[subprocess.Popen]):
    def handler(number: int, _: object) -> None:
        for each in running:
            if each.poll() is None:
                each.send_signal(number)

    return handler


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def main(argv: list[str]) -> None:
    """Starts what the command line names; ends with its status."""
    if len(argv) < 2:
        sys.exit("launch_local: no command: write it behind --, as `-- python -m experiments.mnist_ibp --workdir=...`")
    options = flags.FLAGS.flag_values_dict()
    statuses = launch(
        argv[1:], processes=options["processes"], devices=options["devices"], patience=options["patience"]
    )
    failed = {index: status for index, status in enumerate(statuses) if status}
    if failed:
        sys.exit("launch_local: " + ", ".join(f"process {k} ended with status {v}" for k, v in failed.items()))


if __name__ == "__main__":
    flags.DEFINE_integer("processes", 2, "how many processes", lower_bound=1)
    flags.DEFINE_integer("devices", 0, "CPU devices of each process; 0: what it finds", lower_bound=0)
    flags.DEFINE_float("patience", 120.0, "seconds that the others have to end once one has failed", lower_bound=0)
    app.run(main)
