"""A three-layer ReLU network whose bounds were computed independently, in NumPy: every method to 1e-6 in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbound
from jaxbound import relax

W1, B1 = [[1, -1], [0.5, 2], [-1.5, 0.5]], [0.1, -0.9, 0.6]
W2, B2 = [[1, -1, 0.5], [-0.5, 1, 1], [0.25, 0.75, -1]], [0.2, -0.3, 0.05]
W3, B3 = [[1, -1, 0.5], [-1, 0.5, 1]], [0.1, -0.1]
RELU = {"adaptive": relax.adaptive, "tight": relax.tight, "one": relax.one, "same": relax.same_slope}
MARGIN = {
    "ibp": {0.1: 0.56875, 0.2: -0.6875},
    "crown_ibp adaptive": {0.1: 0.651875, 0.2: -0.627576},
    "crown_ibp tight": {0.1: 0.651875, 0.2: -0.460568},
    "crown_ibp one": {0.1: 0.815625, 0.2: -0.356269},
    "crown_ibp same": {0.1: 0.757148, 0.2: -0.484398},
    "lbp_alone adaptive": {0.1: 0.656771, 0.2: -0.793183},
    "lbp_alone tight": {0.1: 0.656771, 0.2: -0.495},
    "crown_lbp_alone adaptive": {0.1: 0.656771, 0.2: -0.587162},
    "crown_lbp_alone tight": {0.1: 0.656771, 0.2: -0.390833},
    "crown_alone adaptive": {0.1: 0.656771, 0.2: -0.587162},
    "crown_alone tight": {0.1: 0.656771, 0.2: -0.390833},
    "crown_alone one": {0.1: 0.787922, 0.2: -0.388772},
    "crown_alone same": {0.1: 0.755189, 0.2: -0.483497},
    "crown adaptive": {0.1: 0.656771, 0.2: -0.586421},
    "crown tight": {0.1: 0.656771, 0.2: -0.390833},
    "crown one": {0.1: 0.815625, 0.2: -0.314848},
    "crown same": {0.1: 0.757148, 0.2: -0.455262},
}
METHODS = {
    "ibp": lambda fn, **_: jaxbound.ibp(fn),
    "crown_ibp": jaxbound.crown_ibp,
    "crown": jaxbound.crown,
    # Intermediate bounds as the method gives them, not intersected with interval bounds.
    "crown_alone": functools.partial(jaxbound.crown, combine=lambda propagated, found: found),
    "lbp_alone": functools.partial(jaxbound.lbp, combine=lambda propagated, found: found),
    "crown_lbp_alone": functools.partial(jaxbound.crown_lbp, combine=lambda propagated, found: found),
}
LAYERS = {
    0.1: [([0.15, -0.4, -0.225], [0.55, 0.1, 0.175]), ([0.25, -0.575, -0.0875], [0.8375, -0.1, 0.2625])],
    0.2: [([-0.05, -0.65, -0.425], [0.75, 0.35, 0.375]), ([-0.15, -0.675, -0.325], [1.1375, 0.425, 0.5])],
}


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def network(x):
    for weight, bias in ((W1, B1), (W2, B2)):
        x = jax.nn.relu(jnp.array(weight) @ x + jnp.array(bias))
    return jnp.array(W3) @ x + jnp.array(B3)


def box(eps):
    return jaxbound.linf_ball(jnp.array([0.5, 0.25]), eps)


def test_clean_logits():
    np.testing.assert_allclose(network(jnp.array([0.5, 0.25])), [0.71875, -0.5125], atol=1e-12)


@pytest.mark.parametrize("eps", [0.1, 0.2])
@pytest.mark.parametrize("name", MARGIN)
def test_margin(name, eps):
    method, *lines = name.split()
    bound = METHODS[method](network, **({"relu": RELU[lines[0]]} if lines else {}))
    margin = bound(box(eps), spec=jnp.array([[1.0, -1.0]]))
    np.testing.assert_allclose(margin, [MARGIN[name][eps]], atol=1e-6)


@pytest.mark.parametrize("eps, expected", [(0.1, 0.4375), (0.2, -0.9375)])
def test_margin_without_elision(eps, expected):
    logits = jaxbound.ibp(network)(box(eps))
    np.testing.assert_allclose(logits.lower[0] - logits.upper[1], expected, atol=1e-12)


@pytest.mark.parametrize("eps", [0.1, 0.2])
def test_layers(eps):
    for (lower, upper), layer in zip(LAYERS[eps], jaxbound.layer_bounds(network)(box(eps)).values(), strict=True):
        np.testing.assert_allclose(layer.lower, lower, atol=1e-12)
        np.testing.assert_allclose(layer.upper, upper, atol=1e-12)


@pytest.mark.parametrize("eps", [0.1, 0.2])
def test_constant_lines_are_interval_bounds(eps):
    spec = jnp.array([[1.0, -1.0], [-1.0, 1.0]])
    expected = jaxbound.ibp(network)(box(eps), spec=spec)
    np.testing.assert_allclose(jaxbound.crown(network, relu=relax.constant)(box(eps), spec=spec), expected, atol=1e-12)
