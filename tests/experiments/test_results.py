import json

import pytest

from experiments import results
from experiments.common.published import ROWS, Row

ROW = Row("Someone 2020", "MNIST, net", "mnist_ibp", "mnist_net", (0.3,), (10.0,))


def write(folder, error=9.0, radius=0.3, platform="cpu", **changes):
    folder.mkdir(parents=True)
    content = {
        "radii": [{"radius": radius, "verified_error": {"ibp": error}}],
        "seconds": {"train": 90.0, "evaluate": 30.0},
        "device": {"platform": platform, "kind": "H200", "cpu_cores": 2},
        **changes,
    }
    (folder / "results.json").write_text(json.dumps(content))


def test_a_row_that_was_run(tmp_path):
    write(tmp_path / ROW.name)
    cells = results.cells(ROW, results.read(tmp_path, ROW.name))
    assert cells == [
        *("Someone 2020", "MNIST, net", "0.3", "10.00", "9.00", "-1.00", "1", "2 CPU cores", "2", "`mnist_net`")
    ]


def test_seeds_are_averaged(tmp_path):
    write(tmp_path / ROW.name, error=9.0, platform="gpu")
    write(tmp_path / ROW.name / "seed_1", error=12.0)
    cells = results.cells(ROW, results.read(tmp_path, ROW.name))
    assert cells[4:8] == ["10.50", "+0.50", "2", "H200"]


@pytest.mark.parametrize("radius", [None, 0.2])
def test_a_row_that_was_not_run_says_so(tmp_path, radius):
    if radius:
        write(tmp_path / ROW.name, radius=radius)
    assert results.cells(ROW, results.read(tmp_path, ROW.name))[4] == "not run"


def test_small_radii_are_in_grey_levels():
    assert results.cells(ROW._replace(radii=(0.1, 8 / 255)), [])[2] == "0.1 / 8/255"


def test_finished_runs_are_taken_over_without_weights(tmp_path):
    run = tmp_path / "runs" / ROW.name
    write(run / "seed_1")
    (run / "checkpoints" / "10").mkdir(parents=True)
    (run / "checkpoints" / "10" / "weights").write_text("large")
    (run / "seed_1" / "report.png").write_text("picture")
    (run / "seed_1" / "metrics.jsonl").write_text("{}")
    taken = results.collect(tmp_path / "runs", tmp_path / "results", [ROW.name, "other"])
    assert taken == [f"{ROW.name}/seed_1"]
    copied = sorted(path.name for path in (tmp_path / "results").rglob("*") if path.is_file())
    assert copied == ["report.png", "results.json"]


def test_what_the_drawdown_measured_is_taken_over(tmp_path):
    run = tmp_path / "runs" / ROW.name
    write(run / "seed_1")
    (run / "curve.json").write_text("{}")  # of seeds side by side, whose results lie in their folders
    taken = results.collect(tmp_path / "runs", tmp_path / "results", [ROW.name])
    assert taken == [ROW.name, f"{ROW.name}/seed_1"]
    assert len(results.read(tmp_path / "results", ROW.name)) == 1
    assert (tmp_path / "results" / ROW.name / "curve.json").exists()


def test_the_table_goes_between_its_markers(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{results.BEGIN}\nold\n{results.END}\nafter\n")
    for _ in range(2):
        results.rewrite(readme, results.table(tmp_path, [ROW]))
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert text.count("| Someone 2020 |") == 1
    readme.write_text("no markers")
    with pytest.raises(ValueError, match="must have the lines"):
        results.rewrite(readme, "table")


def test_the_readme_is_what_the_results_say():
    readme = results.HERE.parent / "README.md"
    inside = readme.read_text().split(results.BEGIN)[1].split(results.END)[0]
    assert inside.strip() == results.table(results.HERE / "results")


def test_committed_results_name_no_folders():
    for path in (results.HERE / "results").rglob("results.json"):
        flags = json.loads(path.read_text())["flags"]
        assert not {"workdir", "data_dir"} & flags.keys(), path


def test_several_radii_stand_in_one_cell(tmp_path):
    row = ROW._replace(radii=(0.3, 0.4), errors=(10.0, 20.0))
    write(tmp_path / ROW.name)
    (result,) = results.read(tmp_path, ROW.name)
    assert results.cells(row, [result])[4] == "not run"  # one of the two was not evaluated
    result["radii"].append({"radius": 0.4, "verified_error": {"ibp": 18.0}})
    assert results.cells(row, [result])[2:6] == ["0.3 / 0.4", "10.00 / 20.00", "9.00 / 18.00", "-1.00 / -2.00"]


def test_published_rows_are_distinct():
    assert len({row.name for row in ROWS}) == len(ROWS)
    assert all(len(row.radii) == len(row.errors) for row in ROWS)
