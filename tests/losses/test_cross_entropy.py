import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads

import jaxbound
from jaxbound import losses

INF, NAN = np.inf, np.nan


@pytest.mark.parametrize("label", [0, 2, 4])
def test_robust_cross_entropy_is_that_of_the_worst_case_logits(label):
    margins = jax.random.normal(jax.random.key(0), (4,)) * 3
    logits = jaxbound.worst_case_logits(margins, label)
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(label))
    np.testing.assert_allclose(losses.robust_cross_entropy(margins), expected, rtol=1e-6)


def test_robust_cross_entropy_keeps_leading_axes():
    margins = jax.random.normal(jax.random.key(0), (2, 3, 4))
    each = [[math.log(1 + sum(math.exp(-float(m)) for m in row)) for row in rows] for rows in margins]
    np.testing.assert_allclose(losses.robust_cross_entropy(margins), np.array(each), rtol=1e-6)


@pytest.mark.parametrize("margins", [(1.0, -INF), (1.0, NAN), (NAN, INF), (-INF, INF), (-INF, NAN)])
def test_an_invalid_margin_costs_an_infinite_loss(margins):
    assert losses.robust_cross_entropy(jnp.array(margins)) == INF


def test_a_certain_margin_costs_nothing():
    assert losses.robust_cross_entropy(jnp.array([INF, INF])) == 0


def test_no_overflow():
    np.testing.assert_allclose(losses.robust_cross_entropy(jnp.array([-1e30, 1e30])), 1e30)


def test_gradient_is_minus_the_worst_case_probability():
    margins = jnp.array([0.5, -1.0, 2.0])
    expected = -jax.nn.softmax(jnp.array([0.0, -0.5, 1.0, -2.0]))[1:]
    np.testing.assert_allclose(jax.grad(losses.robust_cross_entropy)(margins), expected, rtol=1e-5)


@pytest.mark.parametrize("kappa", [0, 0.25, 1, jnp.array(0.25), jnp.array(0.0)])
def test_mixed_is_the_weighted_mean(kappa):
    natural, robust = jnp.array([1.0, 2.0]), jnp.array([3.0, 5.0])
    np.testing.assert_allclose(losses.mixed(natural, robust, kappa), kappa * natural + (1 - kappa) * robust)


@pytest.mark.parametrize("kappa, expected", [(0, 3.0), (1, 1.0)])
def test_mixed_leaves_out_what_has_no_weight(kappa, expected):
    losses_ = (jnp.array(1.0), jnp.array(INF)) if kappa else (jnp.array(INF), jnp.array(3.0))
    assert losses.mixed(*losses_, kappa) == expected


def test_gradients_are_those_of_finite_differences(double):
    margins = jax.random.normal(jax.random.key(0), (2, 4), float) * 3
    check_grads(jax.jit(losses.robust_cross_entropy), (margins,), order=2, atol=1e-6, rtol=1e-6)
    check_grads(losses.mixed, (margins[0], margins[1], jnp.array(0.3)), order=1, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kappa", [-0.1, 1.1, np.nan, 2, jnp.array([0.5, -1.0])])
def test_a_mixture_is_a_mean(kappa):
    with pytest.raises(ValueError, match=r"kappa, the weight of the natural loss, must lie in \[0, 1\]"):
        losses.mixed(jnp.ones(2), jnp.zeros(2), kappa)
