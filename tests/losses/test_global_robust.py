import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import jaxbound
from jaxbound import losses
from tests import soundness

INF, NAN = np.inf, np.nan
RADII = (0.05, 0.1, 0.3)
KERNELS = [soundness.weights(*shape) for shape in ((6, 4), (4, 6))]
DECREASING = [
    losses.arithmetic_weights,
    losses.harmonic_weights,
    losses.geometric_weights,
    losses.exponential_weights,
    losses.polynomial_weights,
]


def by_loops(margins, weights):
    """The loss of margins [k, B, K-1] in plain Python: [B]."""
    per_example = []
    for example in range(margins.shape[1]):
        total = 0.0
        for weight, rows in zip(weights, margins, strict=True):
            total += weight * math.log(1 + sum(math.exp(-float(m)) for m in rows[example]))
        per_example.append(total)
    return per_example


def margins_of(kernels, inputs):
    """radius -> IBP margins [B, 3] of a small network."""

    def margins_at(radius):
        bound = jaxbound.ibp(lambda x: kernels[1] @ jax.nn.relu(kernels[0] @ x))
        spec = jaxbound.margin_spec(1, 4, inputs.dtype)
        return jax.vmap(lambda x: bound(jaxbound.linf_ball(x, radius, clip=None), spec=spec))(inputs)

    return margins_at


def problem():
    """(kernels, inputs [3, 4])."""
    return [jnp.asarray(k, float) for k in KERNELS], jnp.asarray(soundness.weights(3, 4), float)


def test_it_is_the_weighted_sum_over_the_radii(double):
    margins_at, weights = margins_of(*problem()), losses.arithmetic_weights(3)
    expected = by_loops(np.stack([margins_at(radius) for radius in RADII]), weights)
    loss = jax.jit(functools.partial(losses.global_robust_loss, margins_at))
    for radii in (RADII, list(RADII), np.array(RADII)):
        np.testing.assert_allclose(losses.global_robust_loss(margins_at, radii, weights), expected, rtol=1e-10)
    np.testing.assert_allclose(loss(jnp.array(RADII), jnp.array(weights)), expected, rtol=1e-10)


def test_one_radius_is_the_usual_loss(double):
    margins_at = margins_of(*problem())
    found = losses.global_robust_loss(margins_at, [0.1], losses.arithmetic_weights(1))
    np.testing.assert_allclose(found, losses.robust_cross_entropy(margins_at(0.1)), rtol=1e-10)


def test_the_loss_grows_with_the_radius(double):
    margins_at = margins_of(*problem())
    each = [losses.global_robust_loss(margins_at, RADII, np.eye(3)[i]) for i in range(3)]
    assert (each[0] < each[1]).all() and (each[1] < each[2]).all()


def test_gradients_are_those_of_finite_differences(double):
    kernels, inputs = problem()

    def loss(kernels, radii, weights):
        return losses.global_robust_loss(margins_of(kernels, inputs), radii, weights).sum()

    args = kernels, jnp.array(RADII), jnp.array(losses.harmonic_weights(3))
    check_grads(jax.jit(loss), args, order=1, modes=["rev"], atol=1e-6, rtol=1e-6)


def test_gradients_are_those_of_a_loop(double):
    kernels, inputs = problem()
    weights = losses.geometric_weights(3)

    def at_once(kernels):
        return losses.global_robust_loss(margins_of(kernels, inputs), RADII, weights).sum()

    def looped(kernels):
        each = [losses.robust_cross_entropy(margins_of(kernels, inputs)(radius)).sum() for radius in RADII]
        return sum(w * loss for w, loss in zip(weights, each, strict=True))

    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-10), *(jax.grad(f)(kernels) for f in (at_once, looped))
    )


def test_the_radii_are_one_program():
    def equations(k):
        loss = functools.partial(losses.global_robust_loss, margins_of(*problem()))
        return str(jax.make_jaxpr(loss)(jnp.linspace(0.1, 0.2, k), jnp.ones(k) / k)).count(" = ")

    assert equations(2) == equations(7)


def test_margins_at_hand():
    margins = np.random.default_rng(0).normal(size=(3, 2, 4))
    weights = losses.polynomial_weights(3)
    found = losses.weighted_robust_cross_entropy(jnp.array(margins), weights)
    np.testing.assert_allclose(found, by_loops(margins, weights), rtol=1e-5)


@pytest.mark.parametrize("bad", [-INF, NAN])
def test_an_invalid_margin_costs_an_infinite_loss_if_it_has_a_weight(bad):
    margins = jnp.array([[0.5, 1.0], [bad, 1.0]])
    assert losses.weighted_robust_cross_entropy(margins, [0.5, 0.5]) == INF
    assert losses.weighted_robust_cross_entropy(margins, [1.0, 0.0]) == losses.robust_cross_entropy(margins[0])


@pytest.mark.parametrize("weights", [[1.5, -0.5], [NAN, 1.0]])
def test_traced_weights_that_are_invalid_cost_an_infinite_loss(weights):
    margins = jnp.ones((2, 3))
    assert jax.jit(losses.weighted_robust_cross_entropy)(margins, jnp.array(weights)) == INF


@pytest.mark.parametrize(
    "radii, weights, message",
    [
        ([0.1, 0.2], [1.0], "1 weights for 2 radii"),
        ([], [], "radii must be a list of at least one number"),
        (0.1, [1.0], "radii must be a list of at least one number"),
        ([0.1], 1.0, "weights must be a list of at least one number"),
        ([0.2, 0.1], [0.5, 0.5], "increase strictly"),
        ([0.1, 0.1], [0.5, 0.5], "increase strictly"),
        ([-0.1, 0.1], [0.5, 0.5], ">= 0"),
        ([0.1, NAN], [0.5, 0.5], "finite"),
        ([0.1, 0.2], [1.5, -0.5], "weights must be finite and >= 0"),
        ([0.1, 0.2], [NAN, 0.5], "weights must be finite and >= 0"),
        ([0.1, 0.2], [0.5, 0.4], "sum to 0.9; divide them by their sum"),
    ],
)
def test_bad_radii_and_weights(radii, weights, message):
    with pytest.raises(ValueError, match=message):
        losses.global_robust_loss(lambda radius: jnp.ones(3) - radius, radii, weights)


def test_a_list_may_hold_traced_numbers():
    loss = jax.jit(lambda r: losses.global_robust_loss(lambda radius: jnp.ones(3) - radius, [r, 2 * r], [0.5, 0.5]))
    assert loss(0.25) > loss(0.125)


# Families of weights.


@pytest.mark.parametrize("family", DECREASING)
@pytest.mark.parametrize("k", [1, 2, 7])
def test_families_decrease_and_sum_to_one(family, k):
    weights = family(k)
    assert isinstance(weights, np.ndarray) and weights.shape == (k,)
    np.testing.assert_array_equal(losses.decreasing_weights(weights), weights)


@pytest.mark.parametrize(
    "weights, proportions",
    [
        (losses.arithmetic_weights(3), [3, 2, 1]),
        (losses.harmonic_weights(3), [6, 3, 2]),
        (losses.geometric_weights(3), [4, 2, 1]),
        (losses.geometric_weights(3, 0.1), [100, 10, 1]),
        (losses.exponential_weights(2), [math.exp(0.5), 1]),
        (losses.exponential_weights(2, rate=4.0), [math.exp(2), 1]),
        (losses.polynomial_weights(3), [36, 9, 4]),
        (losses.polynomial_weights(2, power=3), [8, 1]),
        (losses.uniform_weights(4), [1, 1, 1, 1]),
        (losses.increasing_weights(3), [1, 2, 3]),
    ],
)
def test_proportions(weights, proportions):
    np.testing.assert_allclose(weights, np.array(proportions) / sum(proportions), rtol=1e-12)


@pytest.mark.parametrize("family", [*DECREASING, losses.uniform_weights, losses.increasing_weights])
def test_no_radius(family):
    with pytest.raises(ValueError, match="at least 1 radius, got k = 0"):
        family(0)


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.5, NAN])
def test_ratio_out_of_range(ratio):
    with pytest.raises(ValueError, match="ratio must lie between 0 and 1"):
        losses.geometric_weights(3, ratio)


@pytest.mark.parametrize("value", [0.0, -1.0, INF, NAN])
def test_rate_and_power_out_of_range(value):
    with pytest.raises(ValueError, match="rate must be positive"):
        losses.exponential_weights(3, value)
    with pytest.raises(ValueError, match="power must be positive"):
        losses.polynomial_weights(3, value)


@pytest.mark.parametrize(
    "values, message",
    [
        ([0.5, 0.5], "must decrease strictly"),
        ([0.25, 0.75], "must decrease strictly"),
        ([1.0, 0.0], "must be positive"),
        ([0.7, NAN], "must be positive"),
        ([0.7, 0.2], "divide them by their sum"),
        ([], "at least one number"),
        ([[0.7, 0.3]], "at least one number"),
    ],
)
def test_own_weights_are_checked(values, message):
    with pytest.raises(ValueError, match=message):
        losses.decreasing_weights(values)
