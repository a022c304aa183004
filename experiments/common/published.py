"""The rows of the results table: what the papers report, and which flagfile of ours stands beside it."""

import itertools
from typing import NamedTuple

ZHANG = "Zhang et al. 2020"
SHI = "Shi et al. 2021"
LYU = "Lyu et al. 2021"
XU = "Xu et al. 2020"


class Row(NamedTuple):
    """What a paper reports of one trained network: verified errors, in percent.

    Attributes:
      paper: who reports it.
      label: what was trained.
      program: the program of ours that trains it.
      name: of the flagfile, and of the folder of its results.
      radii: that it is verified at, in pixel units.
      errors: the published figures, one for each radius.
      method: the bound that verifies it.
    """

    paper: str
    label: str
    program: str
    name: str
    radii: tuple[float, ...]
    errors: tuple[float, ...]
    method: str = "ibp"


_LYU = {
    ("dm_small", "ibp", "relu"): (8.38, 11.77, 18.25),
    ("dm_small", "ibp", "ramp"): (5.73, 8.52, 13.55),
    ("dm_small", "crown_ibp", "relu"): (7.33, 10.30, 16.16),
    ("dm_small", "crown_ibp", "ramp"): (5.84, 8.59, 13.75),
    ("dm_medium", "ibp", "relu"): (6.89, 9.93, 15.85),
    ("dm_medium", "ibp", "ramp"): (5.27, 7.95, 13.50),
    ("dm_medium", "crown_ibp", "relu"): (5.40, 7.88, 13.03),
    ("dm_medium", "crown_ibp", "ramp"): (4.66, 7.18, 12.24),
    ("dm_large", "ibp", "relu"): (4.75, 8.47, 14.80),
    ("dm_large", "ibp", "ramp"): (3.91, 6.62, 11.86),
    ("dm_large", "crown_ibp", "ramp"): (3.59, 6.16, 10.76),
    ("dm_large", "crown_ibp", "leaky_ramp"): (3.69, 5.99, 10.68),
}
_ACTIVATIONS = {"relu": "ReLU", "ramp": "ParamRamp", "leaky_ramp": "ParamRamp, slope to 0"}


def _lyu(net: str, training: str, activation: str) -> Row:
    """A row of Lyu et al. 2021 on MNIST."""
    words = (net.replace("dm_", "DM-"), training.upper().replace("_", "-"), _ACTIVATIONS[activation])
    return Row(
        LYU,
        f"MNIST, {', '.join(words)}",
        f"mnist_{training}",
        f"mnist_{net}_{training}_{activation}",
        (0.2, 0.3, 0.4),
        _LYU[net, training, activation],
    )


def _cifar10(paper: str, label: str, activation: str, errors: tuple[float, float]) -> list[Row]:
    """Rows of a paper on CIFAR-10 with DM-large, at 2/255 and 8/255."""
    return [
        Row(paper, label, "cifar10_crown_ibp", f"cifar10_dm_large_crown_ibp_{activation}_{k}", (k / 255,), (e,), method)
        for k, e, method in zip((2, 8), errors, ("crown_ibp", "ibp"), strict=True)
    ]


ROWS: tuple[Row, ...] = (
    *itertools.starmap(_lyu, _LYU),
    Row(
        ZHANG,
        "MNIST, DM-large, CROWN-IBP",
        "mnist_crown_ibp",
        "mnist_dm_large_crown_ibp",
        (0.2, 0.3, 0.4),
        (4.13, 7.02, 12.06),
    ),
    *_cifar10(ZHANG, "CIFAR-10, DM-large, CROWN-IBP", "relu", (46.03, 66.94)),
    *_cifar10(LYU, "CIFAR-10, DM-large, CROWN-IBP, ParamRamp", "ramp", (45.67, 65.24)),
    Row(
        XU,
        "CIFAR-10, CNN-7, loss fusion; ours has one batch norm more",
        "cifar10_crown_ibp",
        "cifar10_cnn7_loss_fusion",
        (8 / 255,),
        (66.62,),
    ),
    Row(SHI, "MNIST, CNN-7", "mnist_ibp", "mnist_cnn7_shi", (0.4,), (10.98,)),
    Row(SHI, "CIFAR-10, CNN-7", "cifar10_ibp", "cifar10_cnn7_shi", (8 / 255,), (65.03,)),
    Row(SHI, "TinyImageNet, CNN-7", "tinyimagenet_ibp", "tinyimagenet_cnn7_shi", (1 / 255,), (82.36,)),
)
