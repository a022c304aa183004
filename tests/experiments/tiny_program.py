"""A tiny run as a program of its own: `python -m tests.experiments.tiny_program --workdir=...`, with all its flags.

Where KILL_STEP and KILL_PROCESS are set, that process kills itself once it has come so far.
"""

import os
import signal

import jax

from experiments import mnist_ibp
from experiments.common import data, run, train
from tests.experiments import tiny_runs

if __name__ == "__main__":
    data.load = lambda *_: tiny_runs.make_dataset()
    taken = train.steps_taken

    def killed(state):
        step = taken(state)
        if step >= int(os.environ.get("KILL_STEP", 1000)) and jax.process_index() == int(os.environ["KILL_PROCESS"]):
            os.kill(os.getpid(), signal.SIGKILL)
        return step

    train.steps_taken = killed
    run.main(mnist_ibp.NAME, mnist_ibp.BOUND, tiny_runs.config(""))
