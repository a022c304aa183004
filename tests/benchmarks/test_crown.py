"""The comparison of shared with single rows runs; `compare` itself fails where their bounds differ."""

from benchmarks import crown, models

SMALL = models.Network(
    "small",
    (12, 12, 1),
    (*models.hidden_and_relu((models.Conv("conv1", 2, 3), models.Conv("conv2", 2, 3))), models.Dense("out", 10)),
)


def test_shared_rows_beside_single_ones():
    assert crown.rows(SMALL) == [(128, 50)]
    comparison = crown.measure(SMALL, batch=2, rounds=1, chunk=64)
    assert [timing.name for timing in comparison.timings] == ["shared rows", "single rows"]
