"""Bounds are ordinary JAX functions: jit, vmap, grad, jvp and hessian; and what is left unchanged by rewriting."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxbound
from tests.soundness import assert_shard_map_is_vmap

pytestmark = pytest.mark.usefixtures("double")

METHODS = {
    "ibp": jaxbound.ibp,
    "crown_ibp": jaxbound.crown_ibp,
    "crown": functools.partial(jaxbound.crown, chunk=8),
}
BALLS = {"linf": jaxbound.linf_ball, "l2": jaxbound.l2_ball, "l1": jaxbound.l1_ball}
KEYS = jax.random.split(jax.random.key(0), 4)


def parameters():
    return [jax.random.normal(k, s, float) for k, s in zip(KEYS, [(5, 4), (5,), (3, 5), (3,)], strict=True)]


def network(params, x, activation=jax.nn.relu):
    w1, b1, w2, b2 = params
    return w2 @ activation(w1 @ x + b1) + b2


def center():
    return jnp.array([0.3, 0.8, 0.45, 0.6])


def margins(method, activation, ball, params, eps):
    fn = functools.partial(network, activation=activation)
    return method(fn)(params, ball(center(), eps), spec=jaxbound.margin_spec(1, 3, float))


VARIANT = pytest.mark.slow(reason="of this activation one ball is enough, of this ball one activation")


@pytest.mark.parametrize(
    "method, activation, ball",
    [
        *(("crown_ibp", jax.nn.relu, ball) for ball in BALLS),
        *(pytest.param("crown_ibp", jnp.tanh, ball, marks=() if ball == "linf" else VARIANT) for ball in BALLS),
        *((method, f, "linf") for method in ("ibp", "crown") for f in (jax.nn.relu, jax.nn.softplus)),
    ],
)
def test_gradients_are_those_of_finite_differences(method, activation, ball):
    fn = jax.jit(
        lambda params, eps: jnp.sum(
            margins(METHODS[method], activation, BALLS[ball], params, eps) * jnp.array([1, 0.5])
        )
    )
    params, eps = parameters(), jnp.full(4, 0.07)
    directions = [jax.random.normal(k, p.shape, float) for k, p in zip(KEYS, params, strict=True)], jnp.ones(4)
    slope = jax.jit(jax.grad(fn, (0, 1)))(params, eps)
    expected = sum(jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(slope), jax.tree.leaves(directions), strict=True))
    step = 1e-6
    shifted = [jax.tree.map(lambda p, d, s=s: p + s * step * d, (params, eps), directions) for s in (1, -1)]
    found = (fn(*shifted[0]) - fn(*shifted[1])) / (2 * step)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)
    _, tangent = jax.jvp(fn, (params, eps), directions)
    np.testing.assert_allclose(tangent, expected, rtol=1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_hessian_is_the_difference_of_gradients(method):
    weight, *others = parameters()

    def fn(scale, eps):
        params = [weight * scale, *others]
        return margins(METHODS[method], jax.nn.relu, jaxbound.linf_ball, params, eps).sum()

    hessian = jax.jit(jax.hessian(fn, (0, 1)))(1.0, 0.07)
    grad, step = jax.jit(jax.grad(fn, (0, 1))), 1e-6
    for row, (ds, de) in zip(hessian, ((step, 0.0), (0.0, step)), strict=True):
        plus, minus = grad(1.0 + ds, 0.07 + de), grad(1.0 - ds, 0.07 - de)
        found = [(a - b) / (2 * step) for a, b in zip(plus, minus, strict=True)]
        np.testing.assert_allclose(found, row, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_vmap_is_a_loop_and_jit_changes_nothing(method):
    params = parameters()
    x = jax.random.uniform(KEYS[0], (3, 4), float)
    boxes = jaxbound.linf_ball(x, jnp.array([0.02, 0.1, 0.2]))
    bound = METHODS[method](functools.partial(network, params))
    together = jax.jit(jax.vmap(bound))(boxes)
    alone = [bound(jax.tree.map(lambda leaf, k=k: leaf[k], boxes)) for k in range(3)]
    for k, box in enumerate(alone):
        np.testing.assert_allclose(together.lower[k], box.lower, rtol=1e-12)
        np.testing.assert_allclose(together.upper[k], box.upper, rtol=1e-12)


@pytest.mark.parametrize("method", ["ibp", "crown_ibp"])
def test_scan_is_the_unrolled_loop(method):
    weights = jax.random.normal(KEYS[0], (3, 4, 4), float) / 2

    def step(x, w):
        x = jax.nn.relu(w @ x + 0.1)
        return x, jnp.tanh(x)

    def looped(x):
        return lax.scan(step, x, weights)

    def unrolled(x):
        ys = []
        for w in weights:
            x, y = step(x, w)
            ys.append(y)
        return x, jnp.stack(ys)

    box = jaxbound.linf_ball(center(), 0.2)
    first, second = (jax.jit(METHODS[method](fn))(box) for fn in (looped, unrolled))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12), first, second)


@pytest.mark.parametrize("method", METHODS)
def test_shard_map_is_vmap(method):
    boxes = jaxbound.linf_ball(jax.random.uniform(KEYS[0], (2, 4), float), 0.1)
    assert_shard_map_is_vmap(METHODS[method](network), parameters(), boxes)


@pytest.mark.parametrize("method", METHODS)
def test_weight_perturbation_and_pytrees(method):
    params, rng = parameters(), np.random.default_rng(0)
    perturbed = [jaxbound.Interval(p - 0.01, p + 0.01) for p in params]

    def fn(params, x):
        return {"logits": network(params, x["image"])}

    box = jaxbound.linf_ball(center(), 0.05)
    out = jax.jit(METHODS[method](fn))(perturbed, {"image": box})["logits"]
    samples = [p + rng.uniform(-0.01, 0.01, (50, *p.shape)) for p in params]
    values = jax.vmap(network)(samples, center() + rng.uniform(-0.05, 0.05, (50, 4)))
    assert (values >= out.lower - 1e-12).all() and (values <= out.upper + 1e-12).all()
