import json

import pytest

from experiments import mnist_crown_ibp, model_set
from experiments.common import models
from tests.experiments import tiny_runs


def test_summary():
    found = model_set.summary({"a": 3.0, "b": 1.0, "c": 10.0, "d": 5.0})
    assert found == {"best": 1.0, "median": 4.0, "worst": 10.0, "best_model": "b", "worst_model": "c"}


def test_seeds_of_a_network_are_averaged(tmp_path, monkeypatch):
    errors = {"mlp": (10.0, 14.0), "kw": (11.0, 11.0)}

    def ran(name, bound, config):
        return [{"verified_error": {"ibp": error}} for error in errors[config.model]]

    monkeypatch.setattr(model_set.run, "run", ran)
    content = model_set.train(mnist_crown_ibp, tiny_runs.config(tmp_path, mnist_crown_ibp), ["mlp", "kw"])
    assert content["errors"] == {"mlp": 12.0, "kw": 11.0} and content["best_model"] == "kw"


@pytest.mark.slow(reason="trains two networks")
def test_a_family_is_trained_one_after_the_other(tiny, tmp_path):
    flags = tiny_runs.config(tmp_path, mnist_crown_ibp, max_steps=8, eval_size=20)
    content = model_set.train(mnist_crown_ibp, flags, ["mlp", "2layer_w1_l128"])
    assert content["errors"].keys() == {"mlp", "2layer_w1_l128"}
    assert content["best"] == min(content["errors"].values())
    for name in content["errors"]:
        assert json.loads((tmp_path / name / "results.json").read_text())["flags"]["model"] == name


@pytest.mark.slow(reason="trains several networks")
def test_the_command(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(models.MODEL_SETS, "mnist_small", ("mlp",))
    flags = tiny_runs.config(tmp_path, max_steps=3, eval_size=10)
    given = ("epochs", "warmup_epochs", "ramp_epochs", "batch_size", "max_steps", "eval_size", "pgd_steps", "workdir")
    arguments = [f"--{name}={getattr(flags, name)}" for name in given]
    model_set.main(["model_set", "--set=mnist_small", "--eval_methods=ibp", *arguments])
    content = json.loads((tmp_path / "model_set.json").read_text())
    assert content["set"] == "mnist_small" and content["best_model"] == "mlp"
    assert "best" in capsys.readouterr().out


@pytest.mark.parametrize(
    "argument, message", [("--program=vgg", "vgg"), ("--set=large", "large"), ("--nothing=3", "nothing")]
)
def test_mistakes_are_named(argument, message):
    with pytest.raises(SystemExit, match=message):
        model_set.main(["model_set", argument])
