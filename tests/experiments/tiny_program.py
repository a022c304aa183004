"""A tiny run as a program of its own: `python -m tests.experiments.tiny_program --workdir=...`, with all its flags.

Where KILL_PROCESS is set, that process kills itself at KILL_STEP, or sends itself a SIGTERM at TERM_STEP.
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

    def signalled(state):
        step = taken(state)
        if jax.process_index() == int(os.environ.get("KILL_PROCESS", -1)):
            if step >= int(os.environ.get("KILL_STEP", 1000)):
                os.kill(os.getpid(), signal.SIGKILL)
            if step == int(os.environ.get("TERM_STEP", -1)):
                os.environ.pop("TERM_STEP")  # a second signal would break off what the first one began
                os.kill(os.getpid(), signal.SIGTERM)
        return step

    train.steps_taken = signalled
    run.main(mnist_ibp.NAME, mnist_ibp.BOUND, tiny_runs.config(""))
