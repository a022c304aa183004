import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxbound
from tests import soundness

W = soundness.weights(4, 4)
TABLE = soundness.weights(4, 3)

# Linear bounds of every kind know these by the same constants.
METHODS = {name: soundness.METHODS[name] for name in ("ibp", "crown_ibp")}
CASES = {
    "sort": lambda x: jnp.sort(W @ x) + jnp.sort(jnp.tanh(x).reshape(2, 2), axis=0).ravel(),
    "sort_integers": lambda x: jnp.sort((3 * x).astype(int)).astype(float),
    "argsort": lambda x: jnp.argsort(W @ x).astype(float) + jnp.argsort(-x, stable=False),
    "sort_together": lambda x: jnp.stack(lax.sort((W @ x, jnp.floor(x), x), num_keys=2)),
    "median": lambda x: jnp.median(W @ x),
    "top_k": lambda x: jnp.concatenate([lax.top_k(W @ x, 2)[0], lax.top_k(x, 3)[1].astype(float)]),
    "element": lambda x: x[jnp.argmax(W @ x)],
    "dynamic_slice": lambda x: lax.dynamic_slice(jnp.outer(x, W @ x), (jnp.argmax(x), jnp.argmin(x)), (2, 3)),
    "slice_of_a_constant": lambda x: lax.dynamic_slice(TABLE, (jnp.argmax(x), 1), (1, 2)),
    "gather": lambda x: jnp.outer(x, TABLE[0])[jnp.argsort(x)[:2]],
    "gather_of_two": lambda x: jnp.outer(x, TABLE[0])[jnp.argsort(x)[:2], jnp.argmin(x[:3])],
    "embedding": lambda x: jnp.asarray(TABLE, x.dtype)[(x > 0).astype(int)],
    "clipped": lambda x: x.at[(2 * x).astype(int)].get(mode="clip"),
    "filled": lambda x: x.at[(5 * x).astype(int)].get(mode="fill", fill_value=7.0, wrap_negative_indices=False),
    "take_along": lambda x: jnp.take_along_axis(x.reshape(2, 2), jnp.argsort(x.reshape(2, 2), axis=1), axis=1),
}


@pytest.mark.parametrize("name", CASES)
def test_sound(name, double):
    soundness.check(CASES[name], *soundness.boxes(4)[:3], methods=METHODS, gradient=None)


def test_a_certain_order_is_exact():
    box = jaxbound.Interval(jnp.array([0.5, -2.0, 3.0, 1.0]), jnp.array([0.9, -1.0, 4.0, 2.5]))

    def ordered(x):
        return jnp.argsort(x) + lax.top_k(-x, 4)[1] * 10.0, x[jnp.argsort(x)]

    for method in METHODS.values():
        order, values = jax.jit(method(ordered))(box)
        np.testing.assert_array_equal(order, [[11, 0, 33, 22]] * 2)
        np.testing.assert_array_equal(values, [jnp.sort(end) for end in box])


def test_a_position_outside_of_the_array_reads_what_is_filled_in():
    box = jaxbound.Interval(jnp.array([2.0]), jnp.array([5.0]))
    values = jnp.arange(4.0)
    assert jaxbound.ibp(lambda x: values.at[x.astype(int)].get(mode="fill", fill_value=-3.0))(box) == (-3, 3)
    assert jaxbound.ibp(lambda x: values.at[x.astype(int)].get(mode="fill"))(box) == (-jnp.inf, jnp.inf)
    assert jaxbound.ibp(lambda x: values.at[x.astype(int)].get(mode="clip"))(box) == (2, 3)


def test_both_zeros_may_be_the_largest():
    zero = jnp.zeros(1)
    found = jaxbound.ibp(lambda x: lax.top_k(jnp.concatenate([-x, x]), 1)[1].astype(float))(
        jaxbound.Interval(zero, zero)
    )
    np.testing.assert_array_equal(found, [[0.0], [1.0]])
