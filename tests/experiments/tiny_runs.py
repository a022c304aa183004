"""Runs that end within seconds: ten blurred prototypes with noise, 12 x 12 pixels, and a small network."""

import dataclasses

import jax
import numpy as np
import orbax.checkpoint as ocp

from experiments import mnist_ibp
from experiments.common import data, run

SHAPE = (12, 12, 1)


def make_dataset(train=160, test=40, seed=0):
    """A data set that a network learns in a few epochs and can be verified on."""
    rng = np.random.default_rng(seed)
    prototypes = rng.uniform(0.1, 0.9, (10, *SHAPE)) > 0.5

    def split(size):
        labels = np.arange(size, dtype=np.int32) % 10
        noisy = 255 * np.clip(0.8 * prototypes[labels] + rng.uniform(0, 0.2, (size, *SHAPE)), 0, 1)
        return data.Split(noisy.astype(np.uint8), labels)

    return data.Dataset("mnist_5k", train=split(train), test=split(test), mean=(0.5,), std=(0.5,))


def config(workdir, program=mnist_ibp, **changes):
    """Flags of a run of six epochs of five steps."""
    values = {
        "mesh": "data:1",
        "model": "mlp",
        "epochs": 6,
        "batch_size": 32,
        "learning_rate": 5e-3,
        "radius": 0.02,
        "warmup_epochs": 1,
        "ramp_epochs": 3,
        "lr_milestones": (4,),
        "checkpoint_epochs": 1,
        "log_steps": 2,
        "eval_radii": (0.02,),
        "eval_methods": ("ibp",),
        "eval_batch_size": 16,
        "pgd_steps": 5,
        "pgd_restarts": 2,
    }
    return dataclasses.replace(program.DEFAULTS, workdir=str(workdir), **{**values, **changes})


def train(workdir, program=mnist_ibp, bound=None, **changes):
    """Runs an experiment of one seed in this process."""
    found = run.run(program.NAME, bound or program.BOUND, config(workdir, program, **changes))
    return found and found[0]


def saved(workdir, step=None):
    """The arrays of a checkpoint by name, of the last one by default, whatever devices it was written on."""
    folder = workdir / "checkpoints"
    step = step or max(int(path.name) for path in folder.iterdir() if path.name.isdigit())
    path, reader = (folder / str(step) / "state").absolute(), ocp.PyTreeCheckpointer()
    arguments = jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray), reader.metadata(path).item_metadata.tree
    )
    leaves = jax.tree_util.tree_leaves_with_path(reader.restore(path, restore_args=arguments))
    return {jax.tree_util.keystr(name, simple=True, separator="/"): leaf for name, leaf in leaves}
