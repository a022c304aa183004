"""Trains a network on digits at several radii at once, the larger ones weighing less.

    python -m experiments.mnist_global --flagfile=experiments/flags/mnist_global_arithmetic.flags

References:
  Liang et al. 2023, Frontiers of Information Technology and Electronic Engineering 24(10): the idea; radii and weights
  are families of our own.
"""

from experiments.common import methods, run
from experiments.common.flags import GlobalConfig

BOUND = methods.global_robust
NAME = "mnist_global"
DEFAULTS = GlobalConfig(workdir="runs/mnist_global", beta_start=0.0)

if __name__ == "__main__":
    run.main(NAME, BOUND, DEFAULTS)
