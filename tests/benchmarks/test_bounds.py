"""The comparison of bounds runs; `compare` itself fails where jaxbound and the hand-written bounds differ."""

import argparse

from benchmarks import bounds


def test_jaxbound_equals_hand_written_bounds():
    flags = argparse.Namespace(batch=2, models=["mlp"], rounds=1)
    comparisons = list(bounds.measure(flags))
    assert [comparison.quantity for comparison in comparisons] == list(bounds.quantities(None))
    assert all([t.name for t in c.timings] == ["jaxbound", "hand-written", "plain forward pass"] for c in comparisons)
