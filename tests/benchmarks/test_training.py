"""The comparison of training steps runs; `compare` itself fails where two steps' new parameters differ."""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import models, training
from benchmarks.bounds import inputs


def test_jaxbound_steps_equal_hand_written_steps():
    flags = argparse.Namespace(batch=2, models=["mlp"], rounds=1)
    comparisons = list(training.measure(flags))
    assert [comparison.quantity for comparison in comparisons] == list(training.quantities(None))
    assert all(comparison.timings[-1].name == "plain training step" for comparison in comparisons)


def test_a_step_goes_down_the_gradient():
    step = training.sgd_step(lambda params, x, y: jnp.sum((params["w"] * x - y) ** 2))
    params, loss = step({"w": jnp.array(3.0)}, jnp.array([1.0, 2.0]), jnp.array([1.0, 1.0]))
    assert loss == 29.0
    np.testing.assert_allclose(params["w"], 3.0 - training.LEARNING_RATE * 24.0, rtol=1e-6)


def test_cross_entropy_of_the_plain_network():
    params, x, y = inputs(models.MLP, 3)
    logits = models.forward(models.MLP.layers, params, x)
    expected = -jnp.mean(jnp.log(jax.nn.softmax(logits))[jnp.arange(3), y])
    np.testing.assert_allclose(training.cross_entropy(models.MLP, params, x, labels=y), expected, rtol=1e-5)
