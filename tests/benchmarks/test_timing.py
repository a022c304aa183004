"""The measuring itself, on functions whose answers are known; how long they take is not asserted."""

import argparse
import json

import jax.numpy as jnp
import pytest

from benchmarks.timing import Comparison, Timing, compare, report, table


def test_compare_times_every_candidate():
    x = jnp.ones((4, 4))
    timings = compare({"a": lambda x: x @ x, "b": lambda x: x.T @ x}, {"c": jnp.sum}, (x,), rounds=3)
    assert [timing.name for timing in timings] == ["a", "b", "c"]
    assert all(len(timing.seconds) == 3 and min(timing.seconds) > 0 for timing in timings)
    assert all(timing.compile_seconds > 0 and timing.temp_bytes >= 0 for timing in timings)


def test_compare_refuses_different_results():
    with pytest.raises(AssertionError, match="b and a differ by 5.0e-01"):
        compare({"a": lambda x: 2 * x, "b": lambda x: x}, {}, (jnp.ones(3),), rounds=1)


def test_compare_refuses_nan():
    with pytest.raises(AssertionError, match="differ by nan"):
        compare({"a": lambda x: x, "b": lambda x: x / 0 - x / 0}, {}, (jnp.ones(3),), rounds=1)


def comparison():
    ours, theirs = Timing("jaxbound", (1.0, 4.0, 9.0), 0.5, 2**20), Timing("other", (2.0, 2.0, 3.0), 0.25, None)
    return Comparison("net", "bounds", (ours, theirs))


def test_ratio_is_the_median_of_the_rounds():
    assert comparison().ratio(comparison().timings[1]) == 2.0


def test_table():
    assert [line.split() for line in table(comparison()).splitlines()] == [
        ["net:", "bounds"],
        ["ms", "ratio", "compile", "s", "temp", "MiB"],
        ["jaxbound", "4000.00", "1.00", "0.50", "1.0"],
        ["other", "2000.00", "2.00", "0.25", "-"],
    ]


def test_report_saves_every_sample(tmp_path, capsys):
    path = tmp_path / "out.json"
    report([comparison()], argparse.Namespace(batch=8, rounds=3, json=path))
    assert "net: bounds" in capsys.readouterr().out
    saved = json.loads(path.read_text())
    assert saved["settings"]["batch"] == 8
    assert [(r["name"], r["seconds"], r["jaxbound_over_it"]) for r in saved["results"]] == [
        ("jaxbound", [1.0, 4.0, 9.0], 1.0),
        ("other", [2.0, 2.0, 3.0], 2.0),
    ]
