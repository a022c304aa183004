"""Trains a network on TinyImageNet by interval bound propagation with a short warm-up, and verifies it.

    python -m experiments.tinyimagenet_ibp --flagfile=experiments/flags/tinyimagenet_cnn7_shi.flags

The learning rate falls after 60 and 70 epochs; sources of the recipe also give 61 and 71.

References:
  Shi et al. 2021, arXiv:2103.17268.
"""

from experiments.common import methods, run
from experiments.common.flags import Config

BOUND = methods.ibp
NAME = "tinyimagenet_ibp"
DEFAULTS = Config(
    workdir="runs/tinyimagenet_ibp",
    dataset="tiny_imagenet",
    model="cnn7_bn",
    augmentation="flip_crop4_edge",
    normalize=True,
    init="ibp",
    regularization=0.2,
    epochs=80,
    batch_size=64,
    accumulation=2,
    learning_rate=5e-4,
    lr_milestones=(60, 70),
    lr_decay=0.2,
    grad_clip=10.0,
    radius=1 / 255,
    warmup_epochs=1,
    ramp_epochs=20,
    ramp="smoothed",
    kappa_start=0.0,
    kappa_end=0.0,
    eval_radii=(1 / 255,),
    eval_methods=("ibp",),
)

if __name__ == "__main__":
    run.main(NAME, BOUND, DEFAULTS)
