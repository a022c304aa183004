"""Trains a network on digits by CROWN-IBP, whose linear bound gives way to interval bounds as the radius grows.

    python -m experiments.mnist_crown_ibp --flagfile=experiments/flags/mnist_dm_small_crown_ibp_relu.flags

References:
  Zhang et al. 2020, arXiv:1906.06316.
"""

from experiments.common import methods, run
from experiments.common.flags import CrownConfig

BOUND = methods.crown_ibp
NAME = "mnist_crown_ibp"
DEFAULTS = CrownConfig(workdir="runs/mnist_crown_ibp")

if __name__ == "__main__":
    run.main(NAME, BOUND, DEFAULTS)
