import contextlib
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import certified_radius, mnist_ibp, verify
from experiments.common import cascade, data, evaluate, job, placement
from experiments.common.errors import UserError
from experiments.common.models import Network
from experiments.common.records import Records
from tests.experiments import tiny_runs

# What each stage says of nine examples: 0 is wrong, 1 falsified, and so on. NaN decides nothing, but no image is right.
NAN = float("nan")
MARGINS = {
    "clean": [-1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, NAN, 2.0],
    "pgd": [9.0, -0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 9.0, 0.0],
    "ibp": [9.0, 9.0, 0.5, -3.0, -3.0, -3.0, NAN, 9.0, 9.0],
    "crown": [9.0, 9.0, 9.0, 0.25, -1.0, -1.0, 0.125, 9.0, 9.0],
}
STATUS = ["wrong", "falsified", "verified", "verified", "unknown", "unknown", "verified", "wrong", "falsified"]
METHOD = ["clean", "pgd", "ibp", "crown", "crown", "crown", "crown", "clean", "pgd"]
SIZE = len(STATUS)


def stage(name, status):
    @jax.jit
    def check(variables, examples, radius, indices):
        found = {"margin": jnp.array(MARGINS[name])[indices]}
        return {**found, "prediction": indices % 10} if name == "clean" else found

    return cascade.Stage(name, status, status == "verified", check, 4)


STAGES = [stage("clean", "wrong"), stage("pgd", "falsified"), stage("ibp", "verified"), stage("crown", "verified")]
SPLIT = data.Split(np.zeros((SIZE, 1, 1, 1), np.uint8), np.arange(SIZE, dtype=np.int32))
JOB = types.SimpleNamespace(test=SPLIT, placement=placement.make("data:1"))


@pytest.fixture
def decide(monkeypatch, tmp_path):
    """Runs the made-up stages of these names over the first so many examples, and notes whom each was asked about."""

    def run(names=tuple(MARGINS), size=SIZE):
        asked = []
        batches = evaluate.Examples.batches

        def noted(self, check, *, chosen, title, **options):
            asked.append((title.split()[0], chosen.tolist()))
            return batches(self, check, chosen=chosen, title=title, **options)

        monkeypatch.setattr(evaluate.Examples, "batches", noted)
        monkeypatch.setattr(cascade, "stages", lambda this, names: [s for s in STAGES if s.name in names])
        this = types.SimpleNamespace(test=data.Split(*(leaf[:size] for leaf in SPLIT)), placement=JOB.placement)
        records = Records(tmp_path / "rows", {"radius": 0.1})
        try:
            return cascade.run(this, {}, names, radius=0.1, records=records), asked, final(tmp_path / "rows")
        finally:
            monkeypatch.undo()

    return run


def final(path):
    """The last line of every example, without seconds."""
    rows = {row["index"]: row for row in Records(path, {"radius": 0.1}).rows}
    return [{**rows[i], "seconds": sorted(rows[i]["seconds"])} for i in sorted(rows)]


def test_each_stage_sees_what_is_left(decide):
    summary, asked, rows = decide()
    assert asked == [
        ("clean", [*range(9)]),
        ("pgd", [1, 2, 3, 4, 5, 6, 8]),
        ("ibp", [2, 3, 4, 5, 6]),
        ("crown", [3, 4, 5, 6]),
    ]
    assert [row["status"] for row in rows] == STATUS
    assert [row["method"] for row in rows] == METHOD
    assert [row["label"] for row in rows] == [row["prediction"] for row in rows] == [*range(9)]
    assert [row["margin"] for row in rows] == [-1.0, -0.5, 0.5, 0.25, -1.0, -1.0, 0.125, None, 0.0]
    counts = {name: stage["decided"] for name, stage in summary["stages"].items()}
    assert counts == {"clean": 2, "pgd": 2, "ibp": 1, "crown": 2}
    assert summary["verified_error"] == pytest.approx(100 * 6 / 9, abs=1e-3)
    assert summary["pgd_error"] == pytest.approx(100 * 4 / 9, abs=1e-3)
    assert "3 verified, 2 unknown" in cascade.table(summary)


def test_it_goes_on_wherever_it_was_interrupted(decide, tmp_path):
    """After any line, whole or torn, with nothing done twice that was written down."""
    path = tmp_path / "rows"
    expected, _, rows = decide()
    lines = path.read_bytes().splitlines(keepends=True)
    for count in range(len(lines)):
        for torn in (b"", lines[count][:-1]):
            path.write_bytes(b"".join(lines[:count]) + torn)
            done = [json.loads(line) for line in lines[1:count]]
            summary, asked, found = decide()
            assert found == rows
            assert summary["verified"] == expected["verified"]
            for name, chosen in asked:
                assert not {row["index"] for row in done if name in row["seconds"]} & set(chosen)


def test_what_was_verified_needs_no_second_run(decide):
    decide()
    _, asked, _ = decide()
    assert not asked


def test_more_methods_and_examples_are_added(decide):
    _, _, rows = decide(names=("clean", "pgd", "ibp"), size=5)
    assert [row["status"] for row in rows][3:] == ["unknown", "unknown"]
    _, asked, rows = decide()
    assert asked[0] == ("clean", [5, 6, 7, 8]) and asked[-1] == ("crown", [3, 4, 5, 6])
    assert [row["status"] for row in rows] == STATUS
    summary, _, _ = decide(size=5)
    assert summary["examples"] == 5 and summary["verified"] == 2


# Two classes and one pixel p: the margin of class 0 is 2p - 1, so a digit p of class 0 holds up to radius p - 1/2.
PIXELS = np.array([255, 204, 179, 140, 100, 51])
RADII = np.maximum(PIXELS / 255 - 0.5, 0)


def linear_job():
    def apply(variables, x):
        flat = x.reshape(*x.shape[:-3], -1)
        return variables["scale"] * jnp.concatenate([flat, 1 - flat], axis=-1)

    split = data.Split(PIXELS.astype(np.uint8).reshape(-1, 1, 1, 1), np.zeros(6, np.int32))
    config = tiny_runs.config("unused", eval_batch_size=4, pgd_steps=20, pgd_step_size=0.1)
    network = Network(apply, None, {"scale": jnp.array(3.0)}, 2)
    return types.SimpleNamespace(network=network, config=config, test=split, placement=JOB.placement)


def test_stages_of_a_linear_network_are_exact(tmp_path):
    this, path = linear_job(), tmp_path / "rows"
    cascade.run(this, this.network.variables, ["crown_ibp"], radius=0.25, records=Records(path, {"radius": 0.1}))
    rows = final(path)
    assert [row["status"] for row in rows] == [*["verified"] * 2, *["falsified"] * 2, *["wrong"] * 2]
    margins = [row["margin"] for row in rows]
    worst = 3 * (2 * np.maximum(PIXELS / 255 - 0.25, 0) - 1)
    np.testing.assert_allclose(margins[:4], worst[:4], atol=1e-5)
    np.testing.assert_allclose(margins[4:], 3 * (2 * PIXELS[4:] / 255 - 1), atol=1e-5)
    assert [row["prediction"] for row in rows] == [0, 0, 0, 0, 1, 1]


def test_radii_of_a_linear_network(tmp_path):
    this, records = linear_job(), Records(tmp_path / "rows", {})
    bound, size = cascade.bounds(this, ["ibp"])["ibp"]
    variables, method = this.network.variables, ("ibp", bound, size)
    assert certified_radius.find(this, variables, method, halvings=12, records=records) > 0
    found = [row["radius"] for row in sorted(records.rows, key=lambda row: row["index"])]
    np.testing.assert_allclose(found, RADII, atol=1 / 2**11)
    assert certified_radius.find(this, variables, method, halvings=12, records=records) is None  # nothing is left


def test_an_unknown_method_is_named():
    with pytest.raises(UserError, match="--method=crwon is unknown: choose from ibp, crown_ibp"):
        cascade.stages(linear_job(), ["ibp", "crwon"])
    with pytest.raises(UserError, match="--method= is unknown: choose from"):
        cascade.stages(linear_job(), [])


def test_a_folder_without_a_run(tmp_path):
    for program in (verify, certified_radius):
        with pytest.raises(UserError, match="holds no checkpoint"):
            program.run(str(tmp_path), ["ibp"])


def save_untrained(workdir):
    """A run of no steps: what the programs need of one, without the minute that training takes."""
    this = job.make(mnist_ibp.NAME, mnist_ibp.BOUND, tiny_runs.config(workdir, eval_radii=(1e-4,)))
    with contextlib.closing(job.store(this)) as store:
        store.save(this.state)


def test_both_programs_on_a_run(tiny, tmp_path):
    save_untrained(tmp_path)
    options = {"eval_size": 40, "eval_batch_size": 40, "pgd_steps": 2}
    summary = verify.run(str(tmp_path), ["ibp"], **options)
    written = json.loads((tmp_path / "verified_0.0001.json").read_text())
    assert written["radius"] == 1e-4 and list(written["stages"]) == ["clean", "pgd", "ibp"]
    rows = Records(tmp_path / "verified_0.0001.jsonl", {"radius": 1e-4}).rows
    verified = {row["index"] for row in rows if row["status"] == "verified"}
    assert summary["verified"] == len(verified) > 0
    options.pop("pgd_steps")
    content = certified_radius.run(str(tmp_path), ["ibp"], halvings=16, **options)
    radii = {row["index"]: row["radius"] for row in Records(tmp_path / "certified_radius.jsonl", {"halvings": 16}).rows}
    assert content["examples"] == len(radii) == 40
    resolution = 1 / 2**16
    assert verified >= {i for i, radius in radii.items() if radius >= 1e-4}
    assert verified <= {i for i, radius in radii.items() if radius >= 1e-4 - resolution}
    assert (tmp_path / "certified_radius.png").read_bytes().startswith(b"\x89PNG")
    assert "of 40 examples, 16 halvings each" in certified_radius.table(content)
