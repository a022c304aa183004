"""The hand-written side of `benchmarks.alpha` is what it is timed as."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbound
from benchmarks import alpha, bounds, models

NETWORK = models.Network(
    "tiny",
    (6,),
    (*models.hidden_and_relu((models.Dense("dense1", 8), models.Dense("dense2", 7))), models.Dense("out", 10)),
)


def test_the_hand_written_bounds_start_as_crown_ibp():
    params, x, labels = bounds.inputs(NETWORK, 3)
    value, gradient = alpha.by_hand(NETWORK, params, x, labels)
    expected = bounds.jaxbound_margins(jaxbound.crown_ibp, NETWORK, params, x=x, labels=labels).sum()
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert {name: slopes.shape for name, slopes in gradient.items()} == {
        "dense1_relu": (3, 9, 8),
        "dense2_relu": (3, 9, 7),
    }
    assert sum(float(jnp.abs(slopes).sum()) for slopes in jax.tree.leaves(gradient)) > 0


def test_no_step_is_crown():
    args = bounds.inputs(NETWORK, 2)
    found = alpha.by_jaxbound(NETWORK, *args, steps=0)
    expected = bounds.jaxbound_margins(jaxbound.crown, NETWORK, args[0], x=args[1], labels=args[2])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name, batch", [("dm_small", 8), ("residual_cnn", 2)])
def test_optimised_lines_are_never_looser_on_networks(name, batch):
    network = models.NETWORKS[name]
    args = bounds.inputs(network, batch)
    crown = functools.partial(jaxbound.crown, chunk=64)
    before = jax.jit(lambda params, x, y: bounds.jaxbound_margins(crown, network, params, x=x, labels=y))(*args)
    after = {n: jax.jit(functools.partial(alpha.by_jaxbound, network, steps=n, chunk=64))(*args) for n in (20, 100)}
    slack = 1e-5 * jnp.abs(before)
    assert (after[20] >= before - slack).all() and (after[20] > before + slack).mean() > 0.9
    assert (after[100] >= after[20] - slack).all()
