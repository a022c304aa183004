import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbound
from jaxbound.bounds import worst_input
from tests import soundness

pytestmark = pytest.mark.usefixtures("double")

COEFFS, BIAS = (soundness.weights(*shape).astype(float) for shape in ((5, 2, 3), (5,)))
COEFFS[0] *= 0.01  # the sign alone decides on the worst end
CENTER, RADIUS = (soundness.weights(2, 3, seed=k).astype(float) for k in (1, 2))
RADIUS = np.abs(RADIUS)
PLANE = jaxbound.LinearBound(COEFFS, BIAS)


def ball(p, clip=None):
    return jaxbound.Ball(CENTER, RADIUS, p, clip)


def around(low, high):
    """A box that contains the centre and, where a factor is below 1, cuts the ball."""
    return jaxbound.Interval(CENTER - low * RADIUS, CENTER + high * RADIUS)


def sampled(p, clip, count=20_000):
    """The lowest values of the plane's rows over points of a clipped ball."""
    rng = np.random.default_rng(0)
    steps = rng.normal(size=(count, CENTER.size)) ** 3
    steps *= rng.uniform(size=(count, 1)) ** 0.1 / np.linalg.norm(steps, p, axis=1, keepdims=True)
    points = np.clip(CENTER + RADIUS * steps.reshape(count, *CENTER.shape), *clip)
    assert jax.vmap(lambda x: jaxbound.contains(ball(p, clip), x, tolerance=1e-9))(points).all()
    return (np.einsum("sij,nij->ns", COEFFS, points) + BIAS).min(axis=0)


@pytest.mark.parametrize("p, dual", [(1, np.inf), (2, 2), (3, 1.5), (np.inf, 1)])
def test_lowest_value_over_a_ball_is_the_dual_norm(p, dual):
    expected = jnp.sum(COEFFS * CENTER, (1, 2)) + BIAS
    expected -= np.linalg.norm((COEFFS * RADIUS).reshape(5, -1), dual, axis=1)
    np.testing.assert_allclose(PLANE.concretize(ball(p)), expected, rtol=1e-12)


@pytest.mark.parametrize("p", [1, 2, 3, np.inf])
def test_worst_input_is_in_the_set_and_attains_the_bound(p):
    worst = jax.vmap(worst_input, (0, None))(COEFFS, ball(p))
    assert jax.vmap(lambda x: jaxbound.contains(ball(p), x, tolerance=1e-12))(worst).all()
    np.testing.assert_allclose(jnp.sum(COEFFS * worst, (1, 2)) + BIAS, PLANE.concretize(ball(p)), rtol=1e-12)


def test_a_box_is_a_ball_of_infinite_exponent():
    box = jaxbound.Interval(CENTER - RADIUS, CENTER + RADIUS)
    np.testing.assert_allclose(PLANE.concretize(box), PLANE.concretize(ball(np.inf)), rtol=1e-12)
    worst = jax.vmap(worst_input, (0, None))(COEFFS, box)
    np.testing.assert_allclose(jnp.sum(COEFFS * worst, (1, 2)) + BIAS, PLANE.concretize(box), rtol=1e-12)


@pytest.mark.parametrize("p", [1, 2, 3, np.inf])
@pytest.mark.parametrize("low, high", [(0.2, 0.9), (0.05, 0.05), (2.0, 2.0), (0.0, 0.5)])
def test_a_clipped_ball_is_bounded_by_the_better_of_ball_and_box(p, low, high):
    clip = around(low, high)
    found, inner = PLANE.concretize(ball(p, clip)), jaxbound.Interval(*(jnp.clip(end, *around(1, 1)) for end in clip))
    assert (found <= sampled(p, clip) + 1e-12).all()
    np.testing.assert_allclose(found, jnp.maximum(PLANE.concretize(ball(p)), PLANE.concretize(inner)), rtol=1e-12)


def test_where_clipping_cuts_nothing_the_bound_is_that_of_the_ball():
    np.testing.assert_array_equal(PLANE.concretize(ball(2, around(1.0, 1.0))), PLANE.concretize(ball(2)))


def test_several_sets_add_up_and_constants_are_left_out():
    plane = jaxbound.LinearBound(({"a": COEFFS, "b": None}, COEFFS[:, 0]), BIAS)
    first, second = ball(2), jaxbound.Interval(CENTER[0], CENTER[0] + 1)
    lowest = [jaxbound.LinearBound(c, 0.0).concretize(s) for c, s in ((COEFFS, first), (COEFFS[:, 0], second))]
    np.testing.assert_allclose(plane.concretize({"a": first, "b": 3.0}, second), sum(lowest) + BIAS, rtol=1e-12)


def test_at_no_radius_it_is_the_value_at_the_centre():
    value = jnp.sum(COEFFS * CENTER, (1, 2)) + BIAS
    for p in (1, 2, 3, np.inf):
        np.testing.assert_allclose(PLANE.concretize(jaxbound.Ball(CENTER, 0 * RADIUS, p)), value, rtol=1e-12)


def test_invalid_numbers_bound_nothing():
    plane = jaxbound.LinearBound(jnp.array([[jnp.nan, 1.0], [1.0, 1.0]]), jnp.zeros(2))
    np.testing.assert_array_equal(plane.concretize(jaxbound.l2_ball(jnp.zeros(2), 0.0)), [-np.inf, 0])
    assert np.isneginf(PLANE.concretize(jaxbound.Ball(CENTER, RADIUS * jnp.nan, 2))).all()


@pytest.mark.parametrize("p", [1, 2, 3, np.inf])
def test_derivative_with_respect_to_the_set(p):
    """The coefficients with respect to the centre; minus the dual norm with respect to a common radius."""

    def lowest(center, size):
        return PLANE.concretize(jaxbound.Ball(center, size * RADIUS, p))

    by_center, by_size = jax.jacobian(lowest, (0, 1))(CENTER, 0.7)
    np.testing.assert_allclose(by_center, COEFFS, rtol=1e-9)
    np.testing.assert_allclose(by_size, lowest(CENTER, 1.0) - lowest(CENTER, 0.0), rtol=1e-9)
