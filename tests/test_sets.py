import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbound


@pytest.mark.parametrize("ball", [jaxbound.linf_ball, jaxbound.l2_ball, jaxbound.l1_ball])
def test_radius_for_all_for_each_example_or_for_each_pixel(ball):
    x = jnp.full((3, 2, 2), 0.5)
    for eps in (0.1, jnp.array([0.1, 0.2, 0.3]), jnp.full((1, 2, 2), 0.1), jnp.linspace(0, 0.3, 12).reshape(3, 2, 2)):
        region = ball(x, eps)
        size = np.asarray(eps).reshape((3, 1, 1) if np.shape(eps) == (3,) else np.shape(eps))
        box = region if isinstance(region, jaxbound.Interval) else jaxbound.sets.bounding_box(region)
        assert box.lower.shape == x.shape
        np.testing.assert_allclose(box.upper - x, np.broadcast_to(size, x.shape), rtol=1e-5, atol=1e-7)


def test_clipping_and_normalisation():
    x, mean, std = jnp.array([[0.05, 0.5], [0.95, 0.2]]), jnp.array([0.4, 0.5]), jnp.array([0.5, 0.25])
    box = jaxbound.linf_ball(x, 0.1, mean=mean, std=std)
    np.testing.assert_allclose(box.lower, (np.maximum(x - 0.1, 0) - mean) / std, rtol=1e-6)
    np.testing.assert_allclose(box.upper, (np.minimum(x + 0.1, 1) - mean) / std, rtol=1e-6)
    ball = jaxbound.l2_ball(x, 0.1, clip=(0.0, 1.0), mean=mean, std=std)
    np.testing.assert_allclose(ball.center, (x - mean) / std, rtol=1e-6)
    np.testing.assert_allclose(ball.radius, np.broadcast_to(0.1 / std, x.shape), rtol=1e-6)
    np.testing.assert_allclose(ball.clip.upper, np.broadcast_to((1 - mean) / std, x.shape), rtol=1e-6)


def test_std_must_be_positive():
    with pytest.raises(ValueError, match="std must be positive"):
        jaxbound.linf_ball(jnp.ones(2), 0.1, std=jnp.array([1.0, 0.0]))


def test_pytrees_of_inputs():
    boxes = jaxbound.linf_ball({"a": jnp.zeros(2), "b": jnp.ones(3)}, 0.5)
    assert isinstance(boxes["a"], jaxbound.Interval) and boxes["b"].lower.shape == (3,)


@pytest.mark.parametrize("p, inside", [(1, 0.4), (2, 0.6), (np.inf, 0.9)])
def test_contains(p, inside):
    ball = jaxbound.Ball(jnp.zeros(2), jnp.array([1.0, 2.0]), p)
    assert jaxbound.contains(ball, jnp.array([inside, 2 * inside]))
    assert not jaxbound.contains(ball, jnp.array([1.1, 0.0]))
    flat = jaxbound.Ball(jnp.zeros(2), jnp.array([1.0, 0.0]), p)
    assert jaxbound.contains(flat, jnp.array([0.5, 0.0])) and not jaxbound.contains(flat, jnp.array([0.5, 0.1]))


def test_midpoint_radius_and_tightest():
    first, second = jaxbound.Interval(jnp.zeros(2), jnp.ones(2)), jaxbound.Interval(jnp.full(2, 0.5), jnp.full(2, 3.0))
    assert (jaxbound.midpoint(first) == 0.5).all() and (jaxbound.radius(first) == 0.5).all()
    assert (jaxbound.tightest(first, second).lower == 0.5).all() and (jaxbound.tightest(first, second).upper == 1).all()
    np.testing.assert_array_equal(
        jaxbound.tightest(jnp.array([1.0, jnp.nan]), jnp.array([0.0, -jnp.inf])), [1, -jnp.inf]
    )


def test_sets_are_pytrees_that_vmap():
    balls = jaxbound.l2_ball(jnp.zeros((3, 2)), jnp.array([1.0, 2.0, 3.0]), clip=(-1.0, 1.0))
    sizes = jax.vmap(lambda ball: jaxbound.LinearBound(jnp.ones((1, 2)), jnp.zeros(1)).concretize(ball))(balls)
    np.testing.assert_allclose(sizes[:, 0], [-np.sqrt(2), -2, -2], rtol=1e-6)


def test_an_input_outside_of_the_pixel_range_is_refused():
    """Normalised inputs, clipped like pixels, would make boxes that leave the inputs out."""
    x = jnp.array([-0.05, 0.5, 2.0])
    with pytest.raises(ValueError, match=r"2 of the 3 elements .* outside of clip=\(0.0, 1.0\)"):
        jaxbound.linf_ball(x, 0.1)
    np.testing.assert_allclose(jaxbound.linf_ball(x, 0.1, clip=(-1, 2)).upper, [0.05, 0.6, 2.0], rtol=1e-6)
    np.testing.assert_allclose(jaxbound.linf_ball(x, 0.1, clip=None).upper, x + 0.1)
    np.testing.assert_allclose(jaxbound.linf_ball(jnp.array([1.0001]), 0.1).upper, 1)
    np.testing.assert_allclose(jax.jit(lambda eps: jaxbound.linf_ball(jnp.ones(1, jnp.bfloat16), eps).upper)(0.1), 1)
