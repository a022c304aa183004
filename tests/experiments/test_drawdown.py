import json
import shutil

import pytest

from experiments import drawdown, mnist_global
from experiments.common.errors import UserError
from tests.experiments import tiny_runs


@pytest.mark.parametrize(
    "errors, expected",
    [([10, 20, 30], 20), ([10, 50, 20], 40), ([30, 20, 25], 5), ([30, 20, 10], -10), ([30, 20, 10, 45], 35)],
)
def test_the_largest_rise(errors, expected):
    assert drawdown.drawdown(errors) == expected
    pairs = [b - a for i, a in enumerate(errors) for b in errors[i + 1 :]]
    assert max(pairs) == expected


def test_the_slope_behind_the_training_radius():
    curve = drawdown.Curve("run", 0.2, 1.0, [10.0, 20.0, 40.0], [0.0] * 3, 1, {})
    assert drawdown.slope(curve, [0.1, 0.2, 0.3]) == pytest.approx(20 / 10)
    assert drawdown.slope(curve._replace(training=0.05), [0.1, 0.2, 0.3]) is None
    assert drawdown.slope(curve._replace(training=0.21), [0.1, 0.2, 0.3]) is None
    assert drawdown.table([curve._replace(training=0.3)], [0.1, 0.2, 0.3]).endswith("| - |")


def test_runs_side_by_side(tiny, tmp_path):
    tiny_runs.train(tmp_path / "base", mnist_global, radii=1, max_steps=20, eval_size=10)
    shutil.copytree(tmp_path / "base", tmp_path / "steep")
    shutil.copytree(tmp_path / "steep", tmp_path / "base" / "seed_1")
    runs = [str(tmp_path / name) for name in ("base", "steep")]
    options = {"radii": [0.01, 0.02, 0.05], "attacked": 20, "pgd_steps": 3, "eval_size": 40}
    curves = drawdown.compare(runs, str(tmp_path / "out"), **options)
    content = json.loads((tmp_path / "out" / "drawdown.json").read_text())
    base, steep = content["curves"]
    assert (base["name"], base["seeds"], steep["seeds"]) == ("base", 2, 1)
    for curve in (base, steep):
        assert curve["verified"] == sorted(curve["verified"])
    assert (tmp_path / "out" / "drawdown.png").read_bytes().startswith(b"\x89PNG")
    assert "| base | 2 |" in drawdown.table(curves, options["radii"])


def test_what_was_measured_is_not_measured_again(tiny, tmp_path, monkeypatch):
    run = tmp_path / "run"
    tiny_runs.train(run, mnist_global, radii=1, max_steps=5, eval_size=10)
    options = {"attacked": 10, "pgd_steps": 2, "eval_size": 20, "eval_methods": ("ibp",)}
    first = drawdown.measure(run, [0.01, 0.02], **options)
    wider = drawdown.measure(run, [0.01, 0.03], **options)
    assert wider.verified[0] == first.verified[0] and wider.verified[1] >= first.verified[1]
    kept = (run / drawdown.FILE).read_text()

    tiny_runs.train(run, mnist_global, radii=1, max_steps=8, eval_size=10)  # goes on: other weights
    assert drawdown.measure(run, [0.01, 0.03], **options).seeds == 1
    assert json.loads((run / drawdown.FILE).read_text())["step"] == 8 != json.loads(kept)["step"]

    monkeypatch.setattr(drawdown.job, "finished", None)  # nothing is evaluated any more
    last = drawdown.measure(run, [0.01, 0.03], **options)
    shutil.rmtree(run / "checkpoints")
    assert drawdown.measure(run, [0.01, 0.03], **options) == last
    with pytest.raises(UserError, match="the weights that it is of are not here"):
        drawdown.measure(run, [0.01, 0.02], **options)


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        drawdown.measure(tmp_path, [0.1], attacked=1)


@pytest.mark.parametrize("runs, radii", [([], [0.1, 0.2]), (["run"], [0.2, 0.1]), (["run"], [0.1])])
def test_what_cannot_be_compared(tmp_path, runs, radii):
    with pytest.raises(UserError, match="give --runs"):
        drawdown.compare(runs, str(tmp_path), radii=radii)
