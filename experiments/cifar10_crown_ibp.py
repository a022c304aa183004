"""Trains a network on CIFAR-10 by CROWN-IBP, and verifies it.

    python -m experiments.cifar10_crown_ibp --flagfile=experiments/flags/cifar10_dm_large_crown_ibp_relu_8.flags

References:
  Zhang et al. 2020, arXiv:1906.06316; Xu et al. 2020, arXiv:2002.12920 (loss fusion).
"""

from experiments.common import methods, run
from experiments.common.flags import CrownConfig

BOUND = methods.crown_ibp
NAME = "cifar10_crown_ibp"
DEFAULTS = CrownConfig(
    workdir="runs/cifar10_crown_ibp",
    dataset="cifar10",
    model="cnn7_bn",
    augmentation="flip_crop4_edge",
    normalize=True,
    loss_fusion=True,
    epochs=2000,
    batch_size=256,
    learning_rate=5e-4,
    lr_milestones=(1400, 1700),
    grad_clip=8.0,
    radius=8.8 / 255,
    warmup_epochs=100,
    ramp_epochs=801,
    ramp="smoothed",
    ramp_mid=0.4,
    kappa_start=0.0,
    kappa_end=0.0,
    eval_radii=(8 / 255,),
    eval_methods=("ibp", "crown_ibp"),
)

if __name__ == "__main__":
    run.main(NAME, BOUND, DEFAULTS)
