import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxbound
from tests import soundness


def spread(axis_type):
    """Over a mesh of one device."""
    return NamedSharding(jax.make_mesh((1,), ("devices",), axis_types=(axis_type,)), PartitionSpec("devices"))


CASES = {
    "gather": lambda x: jnp.tanh(x)[jnp.array([0, 2, 2, 1])],
    "scatter_add": lambda x: jnp.zeros(6).at[jnp.array([1, 3, 5, 1])].add(jnp.tanh(x)),
    "scatter_set": lambda x: jnp.ones(6).at[jnp.array([1, 3, 5, 2])].set(jnp.tanh(x)),
    "dynamic_update_slice": lambda x: lax.dynamic_update_slice(jnp.ones(6), jnp.tanh(x), (1,)),
    "dynamic_slice": lambda x: lax.dynamic_slice(jnp.tanh(x), (1,), (2,)),
    "pad": lambda x: lax.pad(jnp.tanh(x), jnp.array(2.0), [(1, 2, 1)]),
    "concatenate_stack_tile": lambda x: jnp.tile(
        jnp.stack([jnp.concatenate([jnp.tanh(x), x * 0 + 1]), jnp.ones(8)]), 2
    ),
    "select": lambda x: jnp.where(jnp.array([True, False, True, False]), jnp.tanh(x), x * 2 + 1),
    "split_rev_roll": lambda x: jnp.roll(jnp.flip(jnp.split(jnp.tanh(x), 2)[1]), 1),
    "reshape_transpose_squeeze": lambda x: jnp.squeeze(jnp.tanh(x).reshape(1, 2, 2).transpose(2, 0, 1)),
    "broadcast": lambda x: jnp.broadcast_to(jnp.tanh(x)[:, None], (4, 3)),
    "slice_strided": lambda x: jnp.tanh(x)[::2],
    "unstack": lambda x: sum(jnp.unstack(jnp.tanh(x).reshape(2, 2))),
    "copy": lambda x: jnp.copy(jnp.tanh(x)) + lax.stop_gradient(x),
    "barrier": lambda x: sum(lax.optimization_barrier((jnp.tanh(x), 2 * x, jnp.ones(4)))),
    "device_put": lambda x: jax.device_put(jnp.tanh(x)),
    "sharded": lambda x: lax.with_sharding_constraint(jnp.tanh(x), spread(AxisType.Auto)),
    "resharded": lambda x: jax.sharding.reshard(jnp.tanh(x), spread(AxisType.Explicit)),
}


@pytest.mark.parametrize("name", CASES)
def test_sound(name, double):
    soundness.check(CASES[name], *soundness.boxes(4)[:3])


@pytest.mark.parametrize("name", ["gather", "select", "pad"])
def test_sound_in_single_precision(name):
    soundness.check(CASES[name], *soundness.boxes(4)[:3])


def test_a_ball_stays_a_ball_where_no_element_is_read_twice(double):
    weights, ball = soundness.weights(2, 6).astype(float), jaxbound.l2_ball(jnp.full(4, 0.5), 0.25, clip=None)
    grown = jaxbound.ibp(lambda x: weights @ jnp.concatenate([jnp.zeros(1), x, jnp.zeros(1)]))(ball)
    cut = jaxbound.ibp(lambda x: weights[:, 1:5] @ x)(ball)
    np.testing.assert_allclose(grown, cut, rtol=1e-12)
