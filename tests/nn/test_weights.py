"""Weight perturbation: parameters of Flax layers that are sets."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree

import jaxbound
from tests import soundness

METHODS = {
    "ibp": jaxbound.ibp,
    "crown_ibp": jaxbound.crown_ibp,
    "crown": functools.partial(jaxbound.crown, chunk=16),
    "lbp": jaxbound.lbp,
}
QUICK = ("ibp", "crown_ibp", "crown")
SLOW = pytest.mark.slow(reason="forward bounds take a walk for each parameter")


class Dense(nn.Module):
    """Two dense layers."""

    @nn.compact
    def __call__(self, x):
        """Maps one example."""
        return nn.Dense(2)(nn.relu(nn.Dense(4)(x)))


class Convolutions(nn.Module):
    """A strided convolution, one of groups, and a dense layer."""

    @nn.compact
    def __call__(self, x):
        """Maps one image."""
        x = nn.relu(nn.Conv(4, (3, 3), strides=2)(x[None]))
        x = nn.relu(nn.Conv(2, (2, 2), feature_group_count=2)(x))
        return nn.Dense(2)(x.ravel())


class Words(nn.Module):
    """Embedded words, a dense layer for each, their mean."""

    @nn.compact
    def __call__(self, tokens):
        """Maps one sentence."""
        return jnp.mean(nn.relu(nn.Dense(3)(nn.Embed(5, 2)(tokens))), axis=0)


class NnxNetwork(nnx.Module):
    """A convolution and a dense layer in NNX."""

    def __init__(self, rngs):
        self.conv, self.head = nnx.Conv(1, 2, (2, 2), rngs=rngs), nnx.Linear(18, 2, rngs=rngs)

    def __call__(self, x):
        """Maps one image."""
        return self.head(nnx.relu(self.conv(x[None])).ravel())


def linen(module, example):
    return module.apply, soundness.as_float(module.init(jax.random.key(0), example))


def in_nnx():
    graph, state = nnx.split(NnxNetwork(nnx.Rngs(0)))
    return (lambda state, x: nnx.merge(graph, state)(x)), soundness.as_float(state)


def around(tree, radius):
    """An Interval for every array of a pytree."""
    return jax.tree.map(lambda x: soundness.box(x, radius), tree)


def check(fn, args, methods):
    """Values at random points and random corners of all sets at once lie inside the bounds."""
    regions, rng = soundness.sets_of(args), np.random.default_rng(0)
    units = [rng.uniform(size=(200, *r.lower.shape)) for r in regions]
    for unit in units:
        unit[::2] = np.round(unit[::2])
    points = [
        jax.vmap(soundness.point, (None, 0))(r, u) for r, u in zip(regions, soundness.as_float(units), strict=True)
    ]
    values = np.asarray(jax.jit(jax.vmap(lambda *arrays: fn(*soundness.with_arrays(args, arrays))))(*points))
    for name, method in methods.items():
        lower, upper = map(np.asarray, jax.jit(method(fn))(*args))
        slack = soundness.tolerance() * (1 + np.abs(values))
        assert np.isfinite([lower, upper]).all()
        assert (lower <= values + slack).all() and (values <= upper + slack).all(), name


IMAGE, VECTOR = np.linspace(-1, 1, 16).reshape(4, 4, 1), np.linspace(-1, 1, 3)
TOKENS = jnp.array([1, 3, 3])
# A function of parameters and one input, its parameters, and an input; tokens are no set.
NETWORKS = {
    "dense": lambda: (*linen(Dense(), VECTOR), VECTOR),
    "convolutions": lambda: (*linen(Convolutions(), IMAGE), IMAGE),
    "words": lambda: (*linen(Words(), TOKENS), TOKENS),
    "nnx": lambda: (*in_nnx(), IMAGE[:3, :3]),
}


@pytest.mark.parametrize("method", [pytest.param(name, marks=() if name in QUICK else SLOW) for name in METHODS])
@pytest.mark.parametrize("name", NETWORKS)
def test_sound_for_every_parameter(name, method, double):
    """Of weights alone, and of weights and the input at once."""
    fn, params, x = NETWORKS[name]()
    inputs = [x] if x is TOKENS else [x, soundness.box(x, 0.05)]
    for x in inputs:
        check(fn, (around(params, 0.02), x), {method: METHODS[method]})


@pytest.mark.parametrize("name", ["dense", "convolutions"])
def test_sound_in_single_precision(name):
    fn, params, x = NETWORKS[name]()
    methods = {key: METHODS[key] for key in ("ibp", "crown_ibp")}
    check(fn, (around(params, 0.02), soundness.box(x, 0.05)), methods)


@pytest.mark.parametrize(
    "module, example",
    [(nn.Dense(3), VECTOR), (nn.Conv(2, (3, 3), strides=2), IMAGE), (nn.Embed(5, 2), TOKENS)],
    ids=["dense", "convolution", "embedding"],
)
def test_one_layer_is_exact_in_its_parameters(module, example, double):
    """A linear function of them: the radius times the sum of its coefficients' absolute values."""
    fn, params = linen(module, jnp.asarray(example))
    value = fn(params, example)
    slopes = jax.tree.leaves(jax.jacobian(fn)(params, example))
    width = 0.1 * sum(jnp.abs(s).reshape(*value.shape, -1).sum(-1) for s in slopes)
    for name, method in METHODS.items():
        found = jax.jit(method(fn))(around(params, 0.1), example)
        np.testing.assert_allclose(found.lower, value - width, rtol=1e-10, atol=1e-12, err_msg=name)
        np.testing.assert_allclose(found.upper, value + width, rtol=1e-10, atol=1e-12, err_msg=name)


def test_all_parameters_in_one_euclidean_ball(double):
    """A set over several arrays is a set of the flat vector of them."""
    fn, params = linen(nn.Dense(3), VECTOR)
    flat, unravel = ravel_pytree(params)
    ball = jaxbound.Ball(flat, jnp.full_like(flat, 0.1), 2)
    found = jaxbound.crown_ibp(lambda z: fn(unravel(z), VECTOR))(ball)
    width = 0.1 * np.sqrt(np.sum(VECTOR**2) + 1)  # each output has weights of its own
    np.testing.assert_allclose(found.upper, fn(params, VECTOR) + width, rtol=1e-10)
    np.testing.assert_allclose(found.lower, fn(params, VECTOR) - width, rtol=1e-10)


@pytest.mark.parametrize("method", ["ibp", "crown_ibp"])
def test_gradients_over_a_batch_are_those_of_finite_differences(method, double):
    """With respect to the parameters and to the radius of their perturbation."""
    fn, params = linen(Dense(), VECTOR)
    images = jnp.stack([VECTOR, -VECTOR])
    bound = jax.vmap(METHODS[method](fn, **({} if method == "ibp" else {"relu": jaxbound.relax.tight})), (None, 0))

    def lowest(params, radius):
        perturbed = jax.tree.map(lambda p: jaxbound.Interval(p - radius, p + radius), params)
        return jnp.sum(bound(perturbed, jaxbound.linf_ball(images, 0.01, clip=None)).lower)

    args = (params, jnp.array(0.02))
    slopes = jax.jit(jax.grad(lowest, (0, 1)))(*args)
    steps = jax.tree.map(lambda x: jnp.asarray(soundness.weights(*x.shape), float), args)
    expected = sum(jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(slopes), jax.tree.leaves(steps), strict=True))

    def moved(size):
        return jax.jit(lowest)(*jax.tree.map(lambda x, d: x + size * d, args, steps))

    np.testing.assert_allclose((moved(1e-6) - moved(-1e-6)) / 2e-6, expected, rtol=1e-5)
