"""Trains a network on CIFAR-10 by interval bound propagation with a short warm-up, and verifies it.

    python -m experiments.cifar10_ibp --flagfile=experiments/flags/cifar10_cnn7_shi.flags

References:
  Gowal et al. 2018, arXiv:1810.12715; Shi et al. 2021, arXiv:2103.17268.
"""

from experiments.common import methods, run
from experiments.common.flags import Config

BOUND = methods.ibp
NAME = "cifar10_ibp"
DEFAULTS = Config(
    workdir="runs/cifar10_ibp",
    dataset="cifar10",
    model="cnn7_bn",
    augmentation="flip_crop2_edge",
    normalize=True,
    init="ibp",
    regularization=0.5,
    epochs=160,
    batch_size=128,
    learning_rate=5e-4,
    lr_milestones=(120, 140),
    lr_decay=0.2,
    grad_clip=10.0,
    radius=8 / 255,
    warmup_epochs=1,
    ramp_epochs=80,
    ramp="smoothed",
    kappa_start=0.0,
    kappa_end=0.0,
    eval_radii=(8 / 255,),
    eval_methods=("ibp", "crown_ibp"),
)

if __name__ == "__main__":
    run.main(NAME, BOUND, DEFAULTS)
