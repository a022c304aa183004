import json
import shutil
from types import SimpleNamespace

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
    curve = drawdown.Curve("run", 0.2, 1.0, "ibp", [10.0, 20.0, 40.0], [0.0] * 3, 1, {})
    assert drawdown.slope(curve, [0.1, 0.2, 0.3]) == pytest.approx(20 / 10)
    assert drawdown.slope(curve._replace(training=0.05), [0.1, 0.2, 0.3]) is None
    assert drawdown.slope(curve._replace(training=0.21), [0.1, 0.2, 0.3]) is None
    assert drawdown.table([curve._replace(training=0.3)], [0.1, 0.2, 0.3]).endswith("| - |")


def test_runs_side_by_side(tiny, tmp_path):
    tiny_runs.train(tmp_path / "base", mnist_global, radii=1, max_steps=20, eval_size=10)
    runs = [str(tmp_path / name) for name in ("base", "steep")]
    options = {"radii": [0.01, 0.02, 0.05], "attacked": 20, "pgd_steps": 3, "eval_size": 40}
    drawdown.compare(runs[:1], str(tmp_path / "out"), **options)
    shutil.copytree(tmp_path / "base", tmp_path / "steep")  # with what was measured
    shutil.copytree(tmp_path / "steep", tmp_path / "base" / "seed_1")
    curves = drawdown.compare(runs, str(tmp_path / "out"), **options)
    content = json.loads((tmp_path / "out" / "drawdown.json").read_text())
    base, steep = content["curves"]
    assert (base["name"], base["seeds"], steep["seeds"]) == ("base", 2, 1)
    for curve in (base, steep):
        assert curve["verified"] == sorted(curve["verified"])
    assert (tmp_path / "out" / "drawdown.png").read_bytes().startswith(b"\x89PNG")
    assert "| base | 2 | ibp |" in drawdown.table(curves, options["radii"])


class Counted:
    """Takes the place of a run's evaluation, and counts how often it is asked."""

    calls, cheapest = 0, "ibp"

    def clean_error(self, variables):
        self.calls += 1
        return 1.0

    def curve(self, variables, radii):
        return [100 * radius for radius in radii]

    def attacked(self, variables, radii, *, size):
        return [size * radius for radius in radii]


def test_what_was_measured_is_not_measured_again(tmp_path, monkeypatch):
    evaluation, step = Counted(), [10]
    run = SimpleNamespace(evaluation=evaluation, config=SimpleNamespace(radius=0.2))
    monkeypatch.setattr(drawdown.job, "finished", lambda *_, **__: (run, [SimpleNamespace(variables=None)]))
    monkeypatch.setattr(drawdown.checkpoints, "last_step", lambda _: step[0])
    (tmp_path / "checkpoints").mkdir()

    def measured(radii=(0.1, 0.2), **changes):
        before = evaluation.calls
        curve = drawdown.measure(tmp_path, radii, **{"attacked": 10, "eval_methods": ("ibp",), **changes})
        return curve, evaluation.calls - before

    first, calls = measured()
    assert calls == 1 and (first.verified, first.attacked, first.training) == ([10, 20], [1, 2], 0.2)
    assert measured() == (first, 0) == measured(data_dir="elsewhere")
    assert measured((0.1, 0.3))[1] == measured()[1] == measured(attacked=5)[1] == measured()[1] == 1
    step[0] = 20  # training went on: other weights
    assert measured() == (first, 1) and measured() == (first, 0)
    step[0] = None  # the weights are gone
    assert measured() == (first, 0)
    with pytest.raises(UserError, match="the weights that it is of are not here"):
        measured((0.1, 0.3))


def test_a_run_that_ended_before_its_first_checkpoint(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="holds no checkpoint"):
        drawdown.measure(tmp_path, [0.1], attacked=1)


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        drawdown.measure(tmp_path, [0.1], attacked=1)


@pytest.mark.parametrize("runs, radii", [([], [0.1, 0.2]), (["run"], [0.2, 0.1]), (["run"], [0.1])])
def test_what_cannot_be_compared(tmp_path, runs, radii):
    with pytest.raises(UserError, match="give --runs"):
        drawdown.compare(runs, str(tmp_path), radii=radii)
