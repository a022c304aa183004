"""The comparison of training steps runs; `compare` itself fails where two steps' new parameters differ."""

import argparse

import jax
import jax.numpy as jnp

from benchmarks import models, training
from benchmarks.bounds import inputs


def test_jaxbound_steps_equal_hand_written_steps():
    flags = argparse.Namespace(batch=2, models=["mlp"], rounds=1)
    comparisons = list(training.measure(flags))
    assert [comparison.quantity for comparison in comparisons] == list(training.quantities(None))
    assert all(comparison.timings[-1].name == "plain training step" for comparison in comparisons)


def test_steps_descend():
    params, x, y = inputs(models.MLP, 4)
    step = jax.jit(training.sgd_step(lambda params, x, y: training.cross_entropy(models.MLP, params, x, labels=y)))
    losses = []
    for _ in range(3):
        params, loss = step(params, x, y)
        losses.append(float(loss))
    assert losses[0] > losses[1] > losses[2] and jnp.isfinite(losses[2])
