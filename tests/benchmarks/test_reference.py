"""The hand-written bounds: against numbers worked out elsewhere, each other, and sampled inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import reference
from benchmarks.convolutions import DERIVED, WRITTEN
from benchmarks.models import Conv, Dense, Network, Relu, Residual, forward, init

TINY_CNN = Network(
    "tiny_cnn",
    (7, 7, 1),
    (
        Conv("stem", 3, 4, 2, 1),
        Relu("stem_relu"),
        Residual((Conv("body", 3, 3, 1, 1),)),
        Relu("residual_relu"),
        Conv("down", 4, 3, 2, 1),
        Relu("down_relu"),
        Dense("dense", 5),
        Relu("dense_relu"),
        Dense("out", 4),
    ),
)
TINY_MLP = Network(
    "tiny_mlp", (5,), (Dense("dense1", 8), Relu("relu1"), Dense("dense2", 7), Relu("relu2"), Dense("out", 4))
)
FORMS = {
    "recursion": (reference.crown_ibp_margins, DERIVED),
    "own rules": (reference.crown_ibp_margins, WRITTEN),
    "envelope": (reference.crown_ibp_margins_envelope, WRITTEN),
}
BOTH_NETWORKS = pytest.mark.parametrize("network", [TINY_CNN, TINY_MLP], ids=lambda network: network.name)
# The 3-layer ReLU net with bounds worked out independently: expected margins z_0 - z_1 at radius 0.1 and 0.2.
KNOWN = Network("known", (2,), (Dense("1", 3), Relu("first"), Dense("2", 3), Relu("second"), Dense("3", 2)))
KNOWN_PARAMS = {
    "1": {"kernel": [[1, 0.5, -1.5], [-1, 2, 0.5]], "bias": [0.1, -0.9, 0.6]},
    "2": {"kernel": [[1, -0.5, 0.25], [-1, 1, 0.75], [0.5, 1, -1]], "bias": [0.2, -0.3, 0.05]},
    "3": {"kernel": [[1, -1], [-1, 0.5], [0.5, 1]], "bias": [0.1, -0.1]},
}


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def bounds(function, network, params, *args, **options):
    """A bound of the reference, compiled: step by step the many small operations take far longer."""
    return jax.jit(lambda params, *args: function(network, params, *args, **options))(params, *args)


def problem(network, *, radius, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(3), 2)
    images = jax.random.uniform(keys[1], (2, *network.input_shape), dtype)
    box = (jnp.maximum(images - radius, 0), jnp.minimum(images + radius, 1))
    return init(network, keys[0], dtype), box, jnp.array([1, 3])


def clean_margins(logits, labels):
    return jnp.stack(
        [logits[..., k, y, None] - jnp.delete(logits[..., k, :], y, axis=-1) for k, y in enumerate(labels)], axis=-2
    )


def relative_error(tree, other):
    errors = jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b)), tree, other)
    return max(float(error) for error in jax.tree.leaves(errors))


def test_margins_of_a_known_network(float64):
    params = jax.tree.map(jnp.array, KNOWN_PARAMS, is_leaf=lambda leaf: isinstance(leaf, list))
    radius, labels = jnp.array([[0.1], [0.2]]), jnp.array([0, 0])
    box = (jnp.array([0.5, 0.25]) - radius, jnp.array([0.5, 0.25]) + radius)
    ibp = bounds(reference.ibp_margins, KNOWN, params, box, labels=labels)
    np.testing.assert_allclose(ibp, [[0.56875], [-0.6875]], atol=1e-12)
    for function, ops in FORMS.values():
        crown_ibp = bounds(function, KNOWN, params, box, labels=labels, ops=ops)
        np.testing.assert_allclose(crown_ibp, [[0.651875], [-0.627576]], atol=1e-6)


def test_hidden_bounds_of_a_known_network(float64):
    params = jax.tree.map(jnp.array, KNOWN_PARAMS, is_leaf=lambda leaf: isinstance(leaf, list))
    box = (jnp.array([[0.3, 0.05]]), jnp.array([[0.7, 0.45]]))
    _, hidden = reference.interval_bounds(KNOWN.layers, params, box)
    np.testing.assert_allclose(hidden["first"], [[[-0.05, -0.65, -0.425]], [[0.75, 0.35, 0.375]]], atol=1e-12)
    np.testing.assert_allclose(hidden["second"], [[[-0.15, -0.675, -0.325]], [[1.1375, 0.425, 0.5]]], atol=1e-12)


@pytest.mark.parametrize("dtype, values, gradients", [("float32", 1e-5, 1e-4), ("float64", 1e-13, 1e-9)])
def test_forms_agree(float64, dtype, values, gradients):
    params, box, labels = problem(TINY_CNN, radius=0.05, dtype=dtype)

    def loss(params, form):
        margins, ops = FORMS[form]
        margins = margins(TINY_CNN, params, box, labels=labels, ops=ops)
        return reference.robust_loss(margins), margins

    grad = jax.value_and_grad(loss, has_aux=True)
    results = jax.jit(lambda params: {form: grad(params, form) for form in FORMS})(params)
    (_, expected), expected_grads = results["recursion"]
    assert expected.dtype == dtype
    for (_, margins), grads in results.values():
        assert relative_error(margins, expected) < values
        assert relative_error(grads, expected_grads) < gradients


def test_interval_gradients_agree(float64):
    params, box, labels = problem(TINY_CNN, radius=0.05, dtype=jnp.float64)

    def loss(params, ops):
        return reference.robust_loss(reference.ibp_margins(TINY_CNN, params, box, labels=labels, ops=ops))

    written, derived = jax.jit(lambda params: [jax.grad(loss)(params, ops) for ops in (WRITTEN, DERIVED)])(params)
    assert relative_error(written, derived) < 1e-9


def test_envelope_gradient_is_the_slope_of_the_loss(float64):
    params, box, labels = problem(TINY_CNN, radius=0.05, dtype=jnp.float64)
    keys = iter(jax.random.split(jax.random.key(5), 20))
    direction = jax.tree.map(lambda p: jax.random.normal(next(keys), p.shape, p.dtype), params)

    @jax.jit
    @jax.value_and_grad
    def loss(step):
        moved = jax.tree.map(lambda p, d: p + step * d, params, direction)
        return reference.robust_loss(reference.crown_ibp_margins_envelope(TINY_CNN, moved, box, labels=labels))

    step = 1e-7
    np.testing.assert_allclose(loss(0.0)[1], (loss(step)[0] - loss(-step)[0]) / (2 * step), rtol=1e-6)


@BOTH_NETWORKS
def test_sampled_margins_are_above_the_bounds(float64, network):
    params, box, labels = problem(network, radius=0.05, dtype=jnp.float64)
    share = jax.random.uniform(jax.random.key(7), (500, *box[0].shape))
    share = jnp.round(share * 4) / 4  # faces too
    points = box[0] + share * (box[1] - box[0])
    logits = jax.jit(jax.vmap(lambda x: forward(network.layers, params, x)))(points)
    low, high = bounds(lambda n, p, box: reference.interval_bounds(n.layers, p, box)[0], network, params, box)
    assert jnp.all((logits >= low - 1e-12) & (logits <= high + 1e-12))
    for function in (reference.ibp_margins, reference.crown_ibp_margins):
        margins = bounds(function, network, params, box, labels=labels)
        assert jnp.all(clean_margins(logits, labels) >= margins - 1e-12)


def test_crown_ibp_is_tighter_at_a_small_radius():
    network = TINY_MLP
    params, box, labels = problem(network, radius=0.01)
    ibp = bounds(reference.ibp_margins, network, params, box, labels=labels)
    assert jnp.all(bounds(reference.crown_ibp_margins, network, params, box, labels=labels) > ibp)


def test_zero_radius_gives_the_margins(float64):
    params, box, labels = problem(TINY_CNN, radius=0.0, dtype=jnp.float64)
    expected = clean_margins(forward(TINY_CNN.layers, params, box[0]), labels)
    for function in (reference.ibp_margins, reference.crown_ibp_margins, reference.crown_ibp_margins_envelope):
        margins = bounds(function, TINY_CNN, params, box, labels=labels)
        np.testing.assert_allclose(margins, expected, atol=1e-12)


def test_robust_loss_is_the_cross_entropy_of_the_worst_logits():
    expected = -jax.nn.log_softmax(jnp.array([-2.0, 0.0, 1.5]))[1]
    np.testing.assert_allclose(reference.robust_loss(jnp.array([[2.0, -1.5]])), expected, rtol=1e-6)
