"""Trains a network on digits by interval bound propagation, and verifies it.

    python -m experiments.mnist_ibp --flagfile=experiments/flags/mnist_5k.flags

References:
  Gowal et al. 2018, arXiv:1810.12715; Shi et al. 2021, arXiv:2103.17268 (short warm-up); Lyu et al. 2021,
  arXiv:2104.00447 (ParamRamp).
"""

from experiments.common import methods, run
from experiments.common.flags import Config

BOUND = methods.ibp
NAME = "mnist_ibp"
DEFAULTS = Config()

if __name__ == "__main__":
    run.main(NAME, BOUND, DEFAULTS)
