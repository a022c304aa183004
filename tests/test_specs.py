import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbound

LOGITS = jnp.array([3.0, -1.0, 0.5, 7.0])


@pytest.mark.parametrize("label", range(4))
def test_margins_in_the_order_of_the_other_classes(label):
    others = [k for k in range(4) if k != label]
    expected = [LOGITS[label] - LOGITS[k] for k in others]
    for y in (label, np.int64(label), jnp.array(label)):
        np.testing.assert_array_equal(jaxbound.margin_spec(y, 4) @ LOGITS, expected)


def test_margins_of_a_batch_of_labels():
    labels = jnp.array([2, 0, 3])
    specs = jax.jit(jax.vmap(lambda label: jaxbound.margin_spec(label, 4)))(labels)
    np.testing.assert_array_equal(specs, jnp.stack([jaxbound.margin_spec(label, 4) for label in labels]))


@pytest.mark.parametrize("label", [-1, 3])
def test_label_out_of_range(label):
    with pytest.raises(ValueError, match=rf"label {label} is out of range for 3 classes \(0 to 2\)"):
        jaxbound.margin_spec(label, 3)
    assert jnp.isnan(jax.jit(lambda y: jaxbound.margin_spec(y, 3))(label)).all()


def test_label_that_is_a_batch_or_a_float():
    for label in (jnp.array([0, 1]), 1.0):
        with pytest.raises(ValueError, match="label must be one integer"):
            jaxbound.margin_spec(label, 3)


def test_a_label_out_of_range_in_a_batch_verifies_nothing():
    box = jaxbound.linf_ball(jnp.array([0.2, 0.4, 0.6]), 0.01)

    @jax.jit
    @jax.vmap
    def verified(label):
        return jaxbound.ibp(lambda x: 2 * x)(box, spec=jaxbound.margin_spec(label, 3))

    margins = verified(jnp.array([2, 3, -1]))
    assert (margins[0] > 0).all() and np.isneginf(margins[1:]).all()


@pytest.mark.parametrize("shape, expected", [(3, (3, 3)), ((2, 3), (6, 2, 3)), ((), (1,))])
def test_identity_picks_every_element_once(shape, expected):
    spec = jaxbound.identity_spec(shape)
    assert spec.shape == expected
    x = jnp.arange(1.0, 1 + spec.shape[0]).reshape(spec.shape[1:])
    np.testing.assert_array_equal(jnp.sum(spec * x, range(1, spec.ndim)), jnp.ravel(x))


def test_identity_gives_the_bounds_of_the_outputs():
    def fn(x):
        return jnp.tanh(jnp.outer(x, x[:2]))

    box = jaxbound.linf_ball(jnp.array([0.2, 0.4, 0.6]), 0.1)
    bound, spec = jax.jit(jaxbound.crown_ibp(fn)), jaxbound.identity_spec((3, 2))
    lower, upper = bound(box)
    np.testing.assert_allclose(bound(box, spec=spec), lower.ravel(), rtol=1e-6)
    np.testing.assert_allclose(-bound(box, spec=-spec), upper.ravel(), rtol=1e-6)


@pytest.mark.parametrize("label", range(4))
def test_worst_case_logits_have_these_margins(label):
    margins = jnp.array([2.0, -1.0, 0.25])
    logits = jaxbound.worst_case_logits(margins, label)
    assert logits[label] == 0
    np.testing.assert_array_equal(jaxbound.margin_spec(label, 4) @ logits, margins)


def test_precision_of_the_result(double):
    assert jaxbound.margin_spec(1, 3).dtype == jaxbound.identity_spec(2).dtype == jnp.float32
    assert jaxbound.margin_spec(1, 3, float).dtype == jaxbound.identity_spec(2, float).dtype == jnp.float64


@pytest.mark.parametrize("label", range(4))
def test_runner_up_is_the_smallest_margin(label):
    for y in (label, np.int64(label), jnp.array(label)):
        spec = jaxbound.runner_up_spec(LOGITS, y)
        assert spec.shape == (1, 4)
        np.testing.assert_array_equal(spec @ LOGITS, [(jaxbound.margin_spec(label, 4) @ LOGITS).min()])


def test_runner_up_of_a_batch():
    logits, labels = jax.random.normal(jax.random.key(0), (5, 6)), jnp.array([0, 5, 2, 2, 1])
    specs = jax.jit(jax.vmap(jaxbound.runner_up_spec))(logits, labels)
    each = [jaxbound.runner_up_spec(row, label) for row, label in zip(logits, labels, strict=True)]
    np.testing.assert_array_equal(specs, jnp.stack(each))


@pytest.mark.parametrize("logits", [[-np.inf, 0.0, -np.inf], [0.0, 0.0, 0.0], [np.inf, 0.0, 3.0]])
@pytest.mark.parametrize("label", range(3))
def test_runner_up_is_another_class(logits, label):
    (row,) = jaxbound.runner_up_spec(jnp.array(logits), label)
    assert row[label] == 1 and sorted(row) == [-1, 0, 1]


def test_runner_up_that_is_unknown_verifies_nothing():
    assert jnp.isnan(jaxbound.runner_up_spec(jnp.array([1.0, jnp.nan, 3.0]), 0)).all()
    assert jnp.isnan(jax.jit(jaxbound.runner_up_spec)(LOGITS, 4)).all()


def test_the_choice_of_the_runner_up_has_no_gradient():
    gradient = jax.grad(lambda logits: jaxbound.runner_up_spec(logits, 0).sum() + (logits**2).sum())(LOGITS)
    np.testing.assert_array_equal(gradient, 2 * LOGITS)


@pytest.mark.parametrize("logits", [jnp.zeros((2, 3)), jnp.zeros(1), jnp.array(0.0)])
def test_runner_up_of_something_else(logits):
    with pytest.raises(ValueError, match=r"logits must be \[K\] with K >= 2"):
        jaxbound.runner_up_spec(logits, 0)


def test_runner_up_of_a_label_out_of_range():
    with pytest.raises(ValueError, match="label 4 is out of range for 4 classes"):
        jaxbound.runner_up_spec(LOGITS, 4)
