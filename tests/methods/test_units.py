"""Units that intervals know to be stable need no backward pass."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxbound
from jaxbound.methods.chunks import Chunks
from tests import soundness

pytestmark = pytest.mark.usefixtures("double")


def network(x):
    """Of an image [8, 8, 2]: 128 units that share rows, 12 that do not."""
    for seed, offset in enumerate((0.0, jnp.array([1.2, -0.5]))):
        kernel = jnp.asarray(soundness.weights(3, 3, 2, 2, seed=seed), float) / 3
        x = lax.conv_general_dilated(x[None], kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))[0]
        x = jax.nn.relu(x + offset)
    x = jaxbound.ramp(x.ravel() @ jnp.asarray(soundness.weights(128, 12), float) / 8, top=0.7)
    return x @ jnp.asarray(soundness.weights(12, 3), float)


def box(radius=0.02, seed=0):
    return jaxbound.linf_ball(jax.random.uniform(jax.random.key(seed), (8, 8, 2), float), radius, clip=None)


def masks(fn, region):
    """What `unstable_units` says of each intermediate array."""
    found = []

    def units(*args):
        found.append(jaxbound.unstable_units(*args))
        return found[-1]

    jaxbound.crown(fn, units=units)(region)
    return found


SLOW = pytest.mark.slow(reason="compiles full CROWN twice")


@pytest.mark.parametrize("rows", [jaxbound.shared_rows, pytest.param(jaxbound.single_rows, marks=SLOW)])
def test_bounds_by_lines_stay_the_same(rows):
    """Also where nothing else is used, and for a batch, of which each example has units of its own to leave out."""
    boxes = jax.vmap(lambda seed: box(seed=seed))(jnp.arange(2))

    def bounds(**options):
        bound = jaxbound.crown(network, rows=rows, combine=lambda _, lines: lines, **options)
        return jax.jit(jax.vmap(bound))(boxes)

    found, expected = bounds(units=jaxbound.unstable_units, chunk=6), bounds()
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-11), found, expected)


def test_some_units_are_stable_and_some_are_not():
    second, third = masks(network, box())
    assert second.shape == (8, 8, 2) and 0 < second.sum() < second.size / 2
    assert third.shape == (12,) and 0 < third.sum() < third.size


def hidden(x):
    """Of 0.5 -+ 0.1 and 0.4 -+ 0.1 it makes 1.05 -+ 0.35 and 0.05 -+ 0.35."""
    weights = jnp.array([[1.0, 1.0], [1.0, -1.0]])
    return weights @ jnp.abs(weights @ x) - jnp.array([0.0, 0.7])


@pytest.mark.parametrize(
    "fn, marked",
    [
        (lambda x: jax.nn.relu(hidden(x)), [False, True]),
        (lambda x: jax.nn.relu(hidden(x)) + jnp.abs(hidden(x) - 1.3), [False, True]),
        (lambda x: (lambda y: jax.nn.relu(y) + jnp.maximum(y, 1.3))(hidden(x)), [True, True]),
        (lambda x: jnp.tanh(hidden(x)), [True, True]),
        (lambda x: jnp.prod(hidden(x)), None),
        (lambda x: lax.cumsum(lax.sort(hidden(x))), None),
    ],
)
def test_a_unit_is_stable_where_all_that_meets_it_has_one_line(fn, marked):
    found = masks(fn, soundness.box([0.5, 0.4], 0.1))[0]
    assert found is None if marked is None else found.tolist() == marked


def test_chunks_of_what_is_needed():
    """Counted while the program runs; in a batch the example that needs the most decides."""
    ran = []

    def bound(rows):
        jax.debug.callback(lambda rows: ran.append(rows.tolist()), rows)
        return -1.0 * rows

    def some(needed):
        return Chunks(2).map_some(bound, jnp.arange(5), needed)

    found = jax.jit(some)(jnp.array([False, True, False, True, True]))
    jax.effects_barrier()
    assert ran == [[1, 3], [4, 0]]
    np.testing.assert_array_equal(found, [0, -1, -np.inf, -3, -4])
    del ran[:]
    needed = jnp.array([[False, True, False, False, False], [True] * 5, [False] * 5])
    found = jax.jit(jax.vmap(some))(needed)
    jax.effects_barrier()
    assert len(ran) == 3 * 3 and (jnp.where(needed, found, 0) == jnp.where(needed, -jnp.arange(5.0), 0)).all()


def test_sound():
    bound = functools.partial(jaxbound.crown, units=jaxbound.unstable_units)
    soundness.Subject(network, {"crown": bound}, gradient=None).check((box(0.1),), 50)
