import json

import numpy as np
import pytest

from experiments.common import report
from experiments.common.flags import Config

RESULTS = {
    "examples": 40,
    "clean_error": 5.0,
    "pgd_error": 7.5,
    "verified_error": {"ibp": 20.0, "crown": 12.3456},
    "radii": [
        {"radius": 0.1, "pgd_error": 7.5, "verified_error": {"ibp": 20.0, "crown": 12.3456}},
        {"radius": 0.25, "pgd_error": 50.0, "verified_error": {"ibp": 100.0}},
    ],
}
ROWS = [{"epoch": 1, "radius": 0.0, "clean_error": 50.0}, {"epoch": 2, "radius": 0.1, "clean_error": 5.0}]


def test_table():
    title, *lines = report.table(RESULTS).splitlines()
    assert "percent of 40 test examples" in title
    assert [line.split() for line in lines] == [
        ["radius", "clean", "PGD", "ibp", "crown"],
        ["0.1", "5.00", "7.50", "20.00", "12.35"],
        ["0.25", "5.00", "50.00", "100.00", "-"],
    ]
    assert len({len(line) for line in lines}) == 1


def test_remarks():
    """Figures that flatter say so."""
    chosen = {"checkpoint": "best", "checkpoint_chosen_on": "test"}
    given = {"radius": 0.1, "precision": "high"}
    text = report.table({**RESULTS, **chosen, "radii_above_training": [0.25], "flags": given})
    assert text.splitlines()[-3:] == [
        "0.25: above the radius that it was trained at, 0.1",
        "trained with matrix products of high precision (TF32 on a GPU); verified with the highest",
        "of the best checkpoint, chosen on the test set",
    ]


def test_surroundings_tell_every_flag(tmp_path):
    found = report.surroundings(Config(radius=0.3))
    assert found["flags"]["radius"] == 0.3
    assert found["flags"].keys() == Config.__dataclass_fields__.keys() - {"workdir", "data_dir", "process_id"}
    assert all(isinstance(version, str) and version for version in found["versions"].values())
    report.write_results(tmp_path, found)
    assert json.loads((tmp_path / "results.json").read_text())["flags"]["eval_radii"] == [0.1]


def test_results_are_numbers(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        report.write_results(tmp_path, {"clean_error": float("nan")})
    assert not (tmp_path / "results.json").exists()


@pytest.mark.parametrize("rows", [ROWS, ROWS[:1], []])
@pytest.mark.parametrize("digits", [8, 3, 1])
def test_picture(tmp_path, rows, digits):
    figures = report.Figures(
        rows=rows,
        results=RESULTS,
        method="ibp",
        radii=[0.0, 0.1, 0.2],
        curve=[5.0, 20.0, 90.0],
        images=np.zeros((digits, 8, 8, 1), np.uint8),
        certified=np.linspace(0, 0.2, digits),
    )
    report.draw(tmp_path / "report.png", figures)
    content = (tmp_path / "report.png").read_bytes()
    assert content.startswith(b"\x89PNG") and len(content) > 10_000
    assert [path.name for path in tmp_path.iterdir()] == ["report.png"]
