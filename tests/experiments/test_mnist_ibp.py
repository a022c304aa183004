import json
import os
import pathlib
import signal
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common import checkpoints, data, methods, metrics, run, train
from experiments.common.errors import UserError
from tests.experiments import tiny_runs

ROOT = pathlib.Path(__file__).parents[2]
STEPS_PER_EPOCH = 5
EPOCHS = 6


def assert_same(first, second):
    assert first.keys() == second.keys() and len(first) > 10
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def without_seconds(rows):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The folder of a run that was left alone."""
    workdir = tmp_path_factory.mktemp("uninterrupted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "load", lambda *_: tiny_runs.make_dataset())
        tiny_runs.train(workdir)
    return workdir


def test_a_run_from_flags_to_report(tiny, tmp_path, capsys):
    radii = (0.02, 0.04)
    results = tiny_runs.train(tmp_path, eval_radii=radii, eval_methods=("crown", "ibp", "crown_ibp"), eval_size=30)
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(json.dumps(results))
    assert results["examples"] == 30
    assert [row["radius"] for row in results["radii"]] == list(radii)
    assert list(results["verified_error"]) == ["ibp", "crown_ibp", "crown"]
    assert results["radii"][0]["verified_error"] == results["verified_error"]
    assert results["radii"][0]["pgd_error"] == results["pgd_error"]
    assert list(results["radii"][1]["verified_error"]) == ["ibp", "crown_ibp"]
    for row in results["radii"]:
        verified = list(row["verified_error"].values())
        assert results["clean_error"] <= row["pgd_error"] <= verified[-1]
        assert verified == sorted(verified, reverse=True)
    assert results["verified_error"]["ibp"] < 50
    assert results["flags"]["radius"] == 0.02 and results["flags"]["model"] == "mlp"
    assert {"python", "jax", "jaxbound", "flax"} <= results["versions"].keys()
    assert results["device"]["platform"] and results["seconds"]["train"] > 0

    rows = metrics.read(tmp_path)
    assert [row["epoch"] for row in rows] == list(range(1, EPOCHS + 1))
    assert rows[0]["radius"] == 0 and rows[-1]["radius"] == pytest.approx(0.02)
    assert rows[-1]["kappa"] == pytest.approx(0.5)
    assert rows[-1]["learning_rate"] == pytest.approx(0.1 * rows[0]["learning_rate"])
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
    assert list((tmp_path / "tensorboard").glob("events.*"))
    assert "crown_ibp" in capsys.readouterr().out


def test_the_same_seed_gives_the_same_numbers(tiny, uninterrupted, tmp_path):
    results = tiny_runs.train(tmp_path)
    assert_same(tiny_runs.saved(tmp_path), tiny_runs.saved(uninterrupted))
    assert without_seconds(metrics.read(tmp_path)) == without_seconds(metrics.read(uninterrupted))
    before = json.loads((uninterrupted / "results.json").read_text())
    for name in ("clean_error", "pgd_error", "verified_error", "radii"):
        assert results[name] == before[name]


def test_resuming_at_an_epoch_changes_nothing(tiny, uninterrupted, tmp_path, capsys):
    tiny_runs.train(tmp_path, max_steps=3 * STEPS_PER_EPOCH)
    tiny_runs.train(tmp_path)
    assert "resuming" in capsys.readouterr().out
    assert_same(tiny_runs.saved(tmp_path), tiny_runs.saved(uninterrupted))
    assert without_seconds(metrics.read(tmp_path))[3:] == without_seconds(metrics.read(uninterrupted))[3:]


def test_a_finished_run_is_only_evaluated(tiny, uninterrupted, tmp_path):
    def no_training(network, config):
        def bound(variables, batch, knobs):
            raise AssertionError("a finished run must not be trained")

        return bound

    before = tiny_runs.saved(uninterrupted)
    results = tiny_runs.train(uninterrupted, bound=no_training)
    assert results["epoch"] == EPOCHS
    assert_same(tiny_runs.saved(uninterrupted), before)


def test_sigterm_saves_and_stops(tiny, uninterrupted, tmp_path, monkeypatch, capsys):
    live, stop_at = run._live, 2 * STEPS_PER_EPOCH + 2  # in the middle of an epoch

    def signalled(row):
        if row["step"] == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return live(row)

    monkeypatch.setattr(run, "_live", signalled)
    assert tiny_runs.train(tmp_path) is None
    assert f"stopped at step {stop_at}" in capsys.readouterr().out
    assert not (tmp_path / "results.json").exists()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    monkeypatch.setattr(run, "_live", live)
    assert tiny_runs.train(tmp_path)["step"] == EPOCHS * STEPS_PER_EPOCH
    assert_same(tiny_runs.saved(tmp_path), tiny_runs.saved(uninterrupted))
    assert without_seconds(metrics.read(tmp_path)) == without_seconds(metrics.read(uninterrupted))


KILLED = """
import os, pathlib, signal, sys, time
import jax
from experiments.common import data, run
from tests.experiments import tiny_runs

jax.config.update("jax_num_cpu_devices", 8)  # as in these tests: XLA's sums depend on it
data.load = lambda *_: tiny_runs.make_dataset()
live = run._live

def killed(row):
    if row["step"] == 14:  # in the middle of the third epoch, two steps after the record of the second one
        while not (pathlib.Path(sys.argv[1]) / "checkpoints" / "10").exists():  # it is written in the background
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    return live(row)

run._live = killed
tiny_runs.train(sys.argv[1], checkpoint_epochs=2)
"""


def test_kill_9_and_resume_change_nothing(tiny, uninterrupted, tmp_path):
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["10"]
    half_written = tmp_path / "checkpoints" / "15.orbax-checkpoint-tmp"
    (half_written / "state").mkdir(parents=True)
    with open(tmp_path / metrics.FILE, "a") as file:
        file.write('{"epoch": 3, "step": 15, "lo')
    tiny_runs.train(tmp_path)
    assert not half_written.exists()
    assert_same(tiny_runs.saved(tmp_path), tiny_runs.saved(uninterrupted))
    assert [row["epoch"] for row in metrics.read(tmp_path)] == list(range(1, EPOCHS + 1))


def test_eval_only_trains_nothing(tiny, uninterrupted):
    before, rows = tiny_runs.saved(uninterrupted), metrics.read(uninterrupted)
    results = tiny_runs.train(uninterrupted, eval_only=True, eval_size=10, radius=0.9, epochs=99, eval_radii=(0.01,))
    assert results["examples"] == 10 and results["step"] == EPOCHS * STEPS_PER_EPOCH
    assert results["radii"][0]["radius"] == 0.01
    assert_same(tiny_runs.saved(uninterrupted), before)
    assert metrics.read(uninterrupted) == rows


def test_the_best_checkpoint_is_kept_and_evaluated(tiny, tmp_path):
    def forgetting(network, config):
        """Trains as usual until the ramp ends, then to be wrong."""
        usual = methods.ibp(network, config)

        def bound(variables, batch, knobs):
            found = usual(variables, batch, knobs)
            return found._replace(loss=jnp.where(knobs.radius < 0.0199, found.loss, -found.loss))

        return bound

    flags = {"validation_size": 64, "grad_clip": 10.0}
    tiny_runs.train(tmp_path, bound=forgetting, lr_milestones=(), kappa_end=0.0, **flags)
    rows = metrics.read(tmp_path)
    best = min(rows, key=lambda row: row["test_verified_error"])
    assert best["step"] < rows[-1]["step"]
    kept = {int(path.name) for path in (tmp_path / "checkpoints").iterdir()}
    assert kept == {best["step"], rows[-1]["step"]}
    results = tiny_runs.train(tmp_path, eval_only=True, eval_checkpoint="best", **flags)
    assert results["step"] == best["step"] and results["checkpoint_chosen_on"] == "validation"


def test_a_loss_that_turns_nan_stops_training(tiny, tmp_path):
    def breaking(network, config):
        usual = methods.ibp(network, config)

        def bound(variables, batch, knobs):
            found = usual(variables, batch, knobs)
            return found._replace(loss=jnp.where(knobs.radius > 0.0165, jnp.nan, found.loss))

        return bound

    with pytest.raises(train.Diverged, match=r"not finite at step 18 \(epoch 4\)"):
        tiny_runs.train(tmp_path, bound=breaking)
    (kept,) = [path for path in (tmp_path / "checkpoints").iterdir() if path.name == "15"]
    assert all(np.isfinite(leaf).all() for leaf in tiny_runs.saved(tmp_path, step=kept.name).values())


def test_a_checkpoint_of_another_model(tiny, uninterrupted):
    with pytest.raises(checkpoints.CheckpointError, match="--model=mlp, not kw.*Name another --workdir"):
        tiny_runs.train(uninterrupted, model="kw")
    with pytest.raises(checkpoints.CheckpointError, match="--model=mlp, not kw"):
        tiny_runs.train(uninterrupted, model="kw", eval_only=True)
    with pytest.raises(checkpoints.CheckpointError, match="--activation=relu, not leaky"):
        tiny_runs.train(uninterrupted, activation="leaky", eval_only=True)
    for flags in ({"num_seeds": 2}, {"accumulation": 2}):
        with pytest.raises(checkpoints.CheckpointError, match="of another run: it has --.*=1, not 2"):
            tiny_runs.train(uninterrupted, eval_only=True, **flags)


def test_a_checkpoint_of_other_flags(tiny, uninterrupted):
    with pytest.raises(checkpoints.CheckpointError, match=r"--lr_milestones=\[4\], not \[\]; --radius=0.02, not 0.2"):
        tiny_runs.train(uninterrupted, radius=0.2, lr_milestones=())


def test_nothing_to_evaluate(tiny, tmp_path):
    with pytest.raises(checkpoints.CheckpointError, match="has no last checkpoint: train first"):
        tiny_runs.train(tmp_path / "new", eval_only=True)


def test_a_workdir_that_is_not_writable(tiny, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="--workdir=.*file/run is not writable"):
        tiny_runs.train(tmp_path / "file" / "run")


def test_a_batch_larger_than_the_data(tiny, tmp_path):
    with pytest.raises(UserError, match="--batch_size=99 is too large.*160 training examples, of which.*=100 are held"):
        tiny_runs.train(tmp_path, batch_size=99, validation_size=100)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--epocs=3"], "Unknown command line flag 'epocs'"),
        (["--eval_radii=0.1,far"], "float values separated by commas"),
        (["--model=vgg"], "mnist_ibp: --model=vgg is unknown: choose from dm_small, "),
        (["--dataset=mnist", "--data_dir=nowhere"], "mnist_ibp: mnist is not prepared in nowhere"),
        (["radius"], "mnist_ibp: unexpected argument 'radius'"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_clear_error(arguments, message, tmp_path):
    command = [sys.executable, "-m", "experiments.mnist_ibp", f"--workdir={tmp_path}", *arguments]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 1
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr
