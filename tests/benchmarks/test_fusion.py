"""The comparison of many classes with few, and of several radii with one, runs."""

import numpy as np

from benchmarks import fusion, models

BODY = models.hidden_and_relu((models.Dense("dense1", 8), models.Dense("dense2", 6)))


def test_many_classes_beside_few():
    timings = fusion.of_classes(fusion.fused, 3, 12, batch=2, rounds=1, body=BODY)
    assert [timing.name for timing in timings] == ["12 classes", "3 classes"]


def test_losses_are_ordered():
    net = fusion.network(4, BODY)
    args = models.init(net, fusion.KEY), *fusion.inputs(3, 4)
    fused, by_rows, by_intervals = (
        loss(net, *args, 0.0) for loss in (fusion.fused, fusion.by_rows, fusion.by_intervals)
    )
    np.testing.assert_allclose(fused, by_intervals, rtol=1e-5)
    np.testing.assert_allclose(by_rows, by_intervals, rtol=1e-5)
    assert (fusion.by_rows(net, *args, 1.0) < by_intervals).all()


def test_several_radii_have_the_gradients_of_a_loop():
    timings, error = fusion.of_radii(2, 1, BODY)
    assert [timing.name for timing in timings] == ["4 radii", "1 radius"]
    assert error < 1e-5
