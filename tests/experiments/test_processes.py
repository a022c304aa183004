"""Several processes over loopback: what they compute, and what happens when one of them is lost."""

import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest

from experiments.common import processes
from experiments.common.errors import UserError
from experiments.common.flags import Config
from tests.experiments import tiny_runs

ROOT = pathlib.Path(__file__).parents[2]
PROGRAM = [sys.executable, "-m", "tests.experiments.tiny_program", "--mesh=", "--process_timeout=20"]


def launched(workdir, *flags, processes=2, devices=4, **environment):
    """Runs the tiny program in so many processes."""
    launcher = [sys.executable, "-m", "experiments.launch_local", f"--processes={processes}", f"--devices={devices}"]
    return subprocess.run(
        [*launcher, "--", *PROGRAM, f"--workdir={workdir}", *flags],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )


def alone(workdir, *flags, devices=8):
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices)}
    command = [*PROGRAM, f"--workdir={workdir}", *flags]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, timeout=300)


def parameters(workdir):
    found = tiny_runs.saved(workdir)
    return {name: leaf for name, leaf in found.items() if "params" in name}


def distance(first, second):
    """The relative distance of two sets of parameters."""
    total = sum(np.sum((first[name] - second[name]) ** 2) for name in first)
    return np.sqrt(total / sum(np.sum(leaf**2) for leaf in first.values()))


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder of a run by two processes."""
    workdir = tmp_path_factory.mktemp("two")
    found = launched(workdir)
    assert found.returncode == 0, found.stdout
    return workdir, found.stdout


def test_two_processes_train_as_one(two, tmp_path):
    workdir, output = two
    assert sum("errors in percent" in line for line in output.splitlines()) == 1  # one of them writes and prints
    assert {path.name for path in workdir.iterdir()} == {
        "checkpoints",
        "metrics.jsonl",
        "report.png",
        "results.json",
        "tensorboard",
    }
    alone(tmp_path)
    assert distance(parameters(workdir), parameters(tmp_path)) < 1e-5


@pytest.mark.slow(reason="trains three times")
def test_one_that_is_killed_ends_all_and_a_restart_changes_nothing(two, tmp_path):
    killed = launched(tmp_path, KILL_STEP="18", KILL_PROCESS="1")  # in the middle of the fourth epoch
    assert "process 1 ended with status -9" in killed.stdout and "process 0 ended with status -" in killed.stdout
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit())
    assert kept and int(kept[-1]) <= 15
    again = launched(tmp_path)
    assert again.returncode == 0 and "resuming" in again.stdout, again.stdout
    first, second = tiny_runs.saved(two[0]), tiny_runs.saved(tmp_path)
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


@pytest.mark.slow(reason="each starts processes")
def test_a_run_goes_on_with_another_number_of_devices(two, tmp_path):
    launched(tmp_path, "--epochs=5", processes=1, devices=2)
    again = launched(tmp_path, "--mesh=data:4,model:2")
    assert again.returncode == 0 and "resuming" in again.stdout, again.stdout
    assert distance(parameters(two[0]), parameters(tmp_path)) < 1e-5


@pytest.mark.slow(reason="each starts processes")
def test_other_flags(tmp_path):
    choose = 'exec "$@" $(case "$*" in *--process_id=1*) echo --learning_rate=0.25;; esac)'
    launcher = [sys.executable, "-m", "experiments.launch_local", "--patience=20", "--", "bash", "-c", choose, "-"]
    found = subprocess.run([*launcher, *PROGRAM, f"--workdir={tmp_path}"], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 1
    for index in (0, 1):
        assert (
            f"[{index}] mnist_ibp: the processes have different flags: process 0 has --learning_rate=0.005, "
            "process 1 has --learning_rate=0.25. Start all with the same ones"
        ) in found.stdout


@pytest.mark.slow(reason="a process is killed and started twenty times")
def test_killed_at_twenty_random_moments(tmp_path):
    flags = ["--epochs=60", "--ramp_epochs=40"]  # a checkpoint every five steps
    alone(tmp_path / "whole", *flags, devices=1)
    random, workdir = np.random.default_rng(0), tmp_path / "killed"
    command = [*PROGRAM, *flags, f"--workdir={workdir}"]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1"}
    kills, resumed = 0, 0
    while kills < 20:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        output = b""
        while b"step/s" not in output:  # the progress bar: training begins
            output += os.read(process.stdout.fileno(), 1 << 16)
        time.sleep(random.uniform(0, 4))
        assert process.poll() is None, "the run ended before it was killed twenty times"
        process.kill()
        process.wait()
        kills, resumed = kills + 1, resumed + (b"resuming" in output)
    alone(workdir, *flags, devices=1)
    assert resumed >= 15  # the first ones may come before the first checkpoint
    first, second = tiny_runs.saved(tmp_path / "whole"), tiny_runs.saved(workdir)
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
    kept = [
        sorted(path.name for path in (folder / "checkpoints").iterdir()) for folder in (tmp_path / "whole", workdir)
    ]
    assert kept[0] == kept[1] and all(name.isdigit() for name in kept[1])


def test_nobody_answers():
    nowhere = {"coordinator": "127.0.0.1:9", "num_processes": 2, "process_timeout": 1}
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9 did not answer within --process_timeout=1 seconds"):
        processes.start(Config(**nowhere, process_id=1))
    with pytest.raises(UserError, match="--process_id=2 is too large"):
        processes.start(Config(**nowhere, process_id=2))
    for index, address in enumerate(("here", "here:99999")):
        with pytest.raises(UserError, match=f"--coordinator={address} is no address"):
            processes.start(Config(coordinator=address, num_processes=2, process_id=index))


def test_one_process_needs_no_other():
    processes.start(Config())
    assert processes.is_first() and processes.any_of(True) and not processes.any_of(False)


@pytest.mark.slow(reason="each starts processes")
def test_a_signal_to_one_process_stops_all(two, tmp_path):
    """As a preemption does: it comes to one host, in the middle of an epoch."""
    stopped = launched(tmp_path, "--log_steps=1", TERM_STEP="18", KILL_PROCESS="1")
    assert stopped.returncode == 0 and "stopped at step 18, which is saved" in stopped.stdout, stopped.stdout
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} >= {"18"}
    assert launched(tmp_path).returncode == 0
    assert distance(parameters(two[0]), parameters(tmp_path)) == 0
