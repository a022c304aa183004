"""The timing of the trainer's steps runs."""

import argparse

from benchmarks import throughput

FLAGS = argparse.Namespace(
    dataset="mnist", model="mlp", batch=8, radius=0.01, mesh="data:4", precision="highest", steps=2, rounds=2
)


def test_kinds_of_training():
    samples = throughput.of_methods(FLAGS)
    assert list(samples) == [throughput.PLAIN, throughput.IBP, throughput.FUSED]
    assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in samples.values())
    assert len(throughput.table(samples, FLAGS).splitlines()) == 4


def test_the_trainer_around_a_step():
    assert len(throughput.of_trainers(FLAGS)) == 3
