"""Every program trains on tiny data, from its own defaults but for what makes it small."""

import dataclasses
import json

import numpy as np
import pytest

from experiments import cifar10_crown_ibp, cifar10_ibp, mnist_crown_ibp, mnist_global, mnist_ibp, tinyimagenet_ibp
from experiments.common import data, job, metrics
from experiments.common.errors import UserError
from tests.experiments import tiny_runs

VARIANTS = {
    "ibp": (mnist_ibp, {}),
    "fashion": (mnist_ibp, {"dataset": "fashion_mnist"}),
    "short warm-up": (mnist_ibp, {"init": "ibp", "regularization": 0.5, "warmup_epochs": 0, "ramp": "smoothed"}),
    "ramp": (mnist_ibp, {"activation": "ramp"}),
    "slope": (
        mnist_ibp,
        {
            "activation": "leaky_ramp",
            "slope_end": 0.0,
            "slope_begin_epoch": 1,
            "slope_epochs": 2,
            "ramp_noise": 0.01,
        },
    ),
    "crown_ibp": (mnist_crown_ibp, {}),
    "l2": (mnist_crown_ibp, {"norm": "2", "clip": False, "beta_end": 1.0, "radius": 0.1, "eval_radii": (0.1,)}),
    "global": (mnist_global, {"radii": 3, "weights": "geometric"}),
    "global crown_ibp": (mnist_global, {"radii": 2, "beta_start": 1.0}),
    "cifar10 ibp": (cifar10_ibp, {"model": "cnn_small_bn"}),
    "cifar10 crown_ibp": (cifar10_crown_ibp, {}),
    "tinyimagenet": (tinyimagenet_ibp, {}),
}
KEPT = {
    mnist_ibp: (),
    mnist_crown_ibp: (),
    mnist_global: (),
    cifar10_ibp: ("augmentation", "normalize", "init", "regularization", "grad_clip", "ramp"),
    cifar10_crown_ibp: ("augmentation", "normalize", "loss_fusion", "grad_clip", "ramp", "ramp_mid"),
    tinyimagenet_ibp: ("augmentation", "normalize", "init", "regularization", "accumulation", "ramp"),
}


FURTHER = {
    "fashion",
    "ramp",
    "slope",
    "short warm-up",
    "l2",
    "global crown_ibp",
    "cifar10 ibp",
    "cifar10 crown_ibp",
}  # variants of what others run


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow(reason="a variant of another run") if name in FURTHER else ())
        for name in VARIANTS
    ],
)
def test_a_program_trains_verifies_and_reports(tiny, tmp_path, name):
    program, changes = VARIANTS[name]
    size = {"eval_size": 20, "pgd_steps": 2, "pgd_restarts": 1, "eval_methods": ("ibp", "crown_ibp")}
    if changes.get("model") == "cnn_small_bn":
        size["eval_methods"] = ("ibp",)
    results = tiny_runs.train(tmp_path, program, **{**size, **changes})
    for kept in KEPT[program]:
        assert results["flags"][kept] == getattr(program.DEFAULTS, kept)
    assert results["experiment"] == program.NAME and results["seed"] == 0
    for row in results["radii"]:
        assert results["clean_error"] <= row["pgd_error"] <= min(row["verified_error"].values())
    rows = metrics.read(tmp_path)
    assert all(np.isfinite(row["loss"]) for row in rows)
    assert (tmp_path / "report.png").exists()
    if changes.get("beta_end") == 1:
        assert list(results["verified_error"]) == ["crown_ibp"]  # IBP verifies nothing of such a network


def test_betas_follow_the_radius(tiny, tmp_path):
    tiny_runs.train(tmp_path, mnist_crown_ibp, eval_size=10)
    rows = metrics.read(tmp_path)
    for row in rows:
        if row["radius"]:
            assert row["beta"] == pytest.approx(1 - row["radius"] / 0.02, abs=1e-5)
    assert rows[-1]["beta"] == 0


@pytest.mark.slow(reason="trains twice")
def test_seeds_side_by_side(tiny, tmp_path, capsys):
    """One program, a folder of results for each seed; the first is that of a run of its own."""
    flags = {"num_seeds": 2, "seed": 5, "max_steps": 12, "eval_size": 20}
    tiny_runs.train(tmp_path / "both", **flags)
    tiny_runs.train(tmp_path / "alone", **{**flags, "num_seeds": 1})
    found = [json.loads((tmp_path / "both" / f"seed_{seed}" / "results.json").read_text()) for seed in (5, 6)]
    assert [each["seed"] for each in found] == [5, 6]
    alone = json.loads((tmp_path / "alone" / "results.json").read_text())
    for key in ("clean_error", "verified_error"):
        assert found[0][key] == alone[key]
    _, states = job.finished(tmp_path / "both")
    weights = [np.asarray(state.variables["params"]["Dense_0"]["kernel"]) for state in states]
    assert len(weights) == 2 and np.abs(weights[0] - weights[1]).max() > 1e-3
    assert job.finished_first(tmp_path / "both")[1].seed == 5
    assert "holds 2 seeds: seed 5 is taken" in capsys.readouterr().err


def test_interval_bounds_are_not_asked_of_what_linear_bounds_trained(tiny, tmp_path, capsys):
    tiny_runs.train(tmp_path, mnist_crown_ibp, beta_end=1.0, max_steps=2, eval_size=10)
    assert "warning: --beta_end=1 trains for CROWN-IBP's bounds" in capsys.readouterr().err


def test_nor_where_they_are_asked_of_later(tiny, tmp_path):
    config = tiny_runs.config(tmp_path, mnist_crown_ibp, beta_end=1.0, eval_methods=("crown", "ibp"))
    made = job.make(mnist_crown_ibp.NAME, mnist_crown_ibp.BOUND, config)
    assert made.config.eval_methods == ("crown", "crown_ibp")


def test_radii_beyond_the_training_radius_are_said(tiny, tmp_path):
    results = tiny_runs.train(tmp_path, max_steps=2, eval_size=10, eval_radii=(0.02, 0.03))
    assert results["radii_above_training"] == [0.03]


def test_pixels_that_nobody_normalises(monkeypatch, tmp_path):
    dataset = dataclasses.replace(tiny_runs.make_dataset(), mean=None, std=None)
    monkeypatch.setattr(data, "load", lambda *_: dataset)
    with pytest.raises(UserError, match="--normalize: there is no usual mean .* of --dataset=mnist_5k"):
        tiny_runs.train(tmp_path, normalize=True, dataset="mnist_5k")
