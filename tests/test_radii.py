import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbound

W1, W2 = np.random.default_rng(0).normal(size=(6, 3)), np.random.default_rng(1).normal(size=(2, 6))
CENTERS = jnp.asarray(np.random.default_rng(2).normal(size=(5, 3)), jnp.float32)


def model(x):
    return W2 @ jax.nn.relu(W1 @ x)


def verifies(method, x, radius):
    label = jnp.argmax(model(x))
    spec = jaxbound.margin_spec(label, 2)
    return jnp.all(method(model)(jaxbound.linf_ball(x, radius, clip=None), spec=spec) > 0)


@pytest.mark.parametrize("method", [jaxbound.ibp, jaxbound.crown])
def test_the_radius_found_is_verified_itself(method):
    def found(x):
        return jaxbound.certified_radius(lambda radius: verifies(method, x, radius), 2.0, halvings=14)

    @jax.jit
    def check(centers):
        radii = jax.vmap(found)(centers)
        held = jax.vmap(lambda x, r: (verifies(method, x, r), verifies(method, x, r + 2 / 2**14)))(centers, radii)
        return radii, held

    radii, (at, beyond) = check(CENTERS)
    assert (radii > 0).all() and at.all()
    assert not beyond.any()  # up to the resolution it is also the largest, for bounds as monotone as these


def test_a_batch_is_bisected_together():
    limits = jnp.array([0.3, 0.0, 0.75, 5.0])
    calls = []

    def holds(radii):
        calls.append(radii.shape)
        return radii < limits

    found = jaxbound.certified_radius(holds, jnp.ones(4), halvings=10)
    assert len(calls) == 1
    np.testing.assert_array_less(np.abs(found - np.minimum(limits, 1)), 2 / 2**10)
    assert found[1] == 0
    each = [jaxbound.certified_radius(lambda r, limit=limit: r < limit, 1.0, halvings=10) for limit in limits]
    np.testing.assert_array_equal(found, each)


def test_of_what_is_not_monotone_only_what_held_is_returned():
    """Verified in two bands: the result lies in one of them, whichever the bisection meets."""

    def holds(radius):
        return (radius < 0.2) | ((radius > 0.45) & (radius < 0.6))

    found = jaxbound.certified_radius(holds, jnp.array([0.3, 0.8, 1.0]))
    assert holds(found).all()


def test_what_never_holds_has_no_radius():
    nothing = jaxbound.certified_radius(lambda radius: jnp.isnan(radius), jnp.array([0.5, 1.0]))
    assert nothing.tolist() == [0, 0]


def test_no_halvings():
    with pytest.raises(ValueError, match="halvings must be at least 1, got 0"):
        jaxbound.certified_radius(lambda radius: radius < 1, 1.0, halvings=0)
