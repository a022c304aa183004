"""Bounds are ordinary JAX functions: jit, vmap, grad, jvp and hessian; and what is left unchanged by rewriting."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxbound
from jaxbound import relax
from jaxbound.bounds import lower_value
from jaxbound.methods.interval import propagate
from jaxbound.methods.problem import prepare
from jaxbound.methods.replay import _evaluate, choose_lines

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


@pytest.mark.parametrize(
    "method, activation, ball",
    [
        *(("crown_ibp", f, ball) for f in (jax.nn.relu, jnp.tanh) for ball in BALLS),
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
    first, second = (METHODS[method](fn)(box) for fn in (looped, unrolled))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12), first, second)


RULES = {
    "conv": lambda x: lax.conv_general_dilated(
        jnp.tanh(x).reshape(1, 2, 2, 1),
        jnp.ones((2, 2, 1, 3)),
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    ),
    "concatenate": lambda x: jnp.concatenate([jnp.ones(2), jnp.exp(x), jnp.full(1, 3.0)]),
    "pad": lambda x: lax.pad(jnp.exp(x), 2.0, [(1, 0, 1)]),
    "select": lambda x: jnp.where(jnp.arange(4) > 1, jnp.sin(x), 5.0),
    "scatter": lambda x: jnp.full(6, 2.0).at[jnp.array([0, 3, 4, 5])].set(jnp.exp(x)),
    "update": lambda x: lax.dynamic_update_slice(jnp.full(6, 2.0), jnp.exp(x), (1,)),
    "product": lambda x: jnp.exp(x) * jnp.sin(x) + 1,
    "quotient": lambda x: (jnp.sin(x) - 2) / jnp.exp(x),
    "pool": lambda x: lax.reduce_window(jnp.sin(3 * x), -jnp.inf, lax.max, (2,), (1,), "VALID") - 1,
    "scan": lambda x: lax.scan(lambda c, w: (jnp.tanh(c + w), c * 2 + 1), jnp.ones(4), jnp.stack([x, x]))[1],
    "constant": lambda x: (jnp.exp(x), jnp.full(2, 7.0)),
}


@pytest.mark.parametrize("name", RULES)
def test_coefficients_and_evaluation_agree(name):
    """The two halves of `graft` compute the same number; a constant that misses the tap would lose bias in one."""
    problem = prepare(RULES[name], (jaxbound.linf_ball(center(), 0.1),), {})
    relaxations = propagate(problem.program, problem.sets, relax.adaptive).relaxations
    spec = [
        jax.random.normal(key, (3, *shape.shape), float)
        for key, shape in zip(KEYS, jax.tree.leaves(problem.output), strict=False)
    ]
    coeffs, bias, signs = choose_lines(problem.program, relaxations, problem.sets, spec)
    evaluate = jax.vmap(lambda row, c, s: _evaluate(problem.program, relaxations, problem.sets, row, c, s))
    np.testing.assert_allclose(lower_value(coeffs, bias, problem.sets), evaluate(spec, coeffs, signs), rtol=1e-12)


def test_elision_is_the_margin_of_a_fused_last_layer():
    params, box = parameters(), jaxbound.linf_ball(center(), 0.1)
    spec = jaxbound.margin_spec(2, 3, float)
    w1, b1, w2, b2 = params
    fused = jaxbound.ibp(functools.partial(network, [w1, b1, spec @ w2, spec @ b2]))(box).lower
    np.testing.assert_allclose(jaxbound.ibp(network)(params, box, spec=spec), fused, rtol=1e-12)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("eps", [0.02, 0.2])
def test_tight_lines_order_the_methods(seed, eps):
    keys = jax.random.split(jax.random.key(seed), 4)
    weights = [jax.random.normal(k, s, float) for k, s in zip(keys, [(6, 4), (6, 6), (6, 6), (3, 6)], strict=True)]

    def fn(x):
        for w in weights[:-1]:
            x = jax.nn.relu(w @ x)
        return weights[-1] @ x

    box, spec = jaxbound.linf_ball(center(), eps), jaxbound.margin_spec(0, 3, float)
    ibp = jaxbound.ibp(fn)(box, spec=spec)
    crown_ibp = jaxbound.crown_ibp(fn, relu=relax.tight)(box, spec=spec)
    crown = jaxbound.crown(fn, relu=relax.tight)(box, spec=spec)
    slack = 1e-10 * (1 + jnp.abs(ibp))
    assert (ibp <= crown_ibp + slack).all() and (crown_ibp <= crown + slack).all()
    corners = jnp.stack(jnp.meshgrid(*[jnp.array([0.0, 1.0])] * 4), -1).reshape(-1, 4)
    values = jax.vmap(fn)(box.lower + corners * (box.upper - box.lower)) @ spec.T
    assert (crown <= values.min(axis=0) + slack).all()
    np.testing.assert_allclose(jaxbound.crown(fn, relu=relax.constant)(box, spec=spec), ibp, rtol=1e-10)


def test_weight_perturbation_and_pytrees():
    params = parameters()
    perturbed = [jaxbound.Interval(p - 0.01, p + 0.01) for p in params]
    for method in METHODS.values():
        out = method(lambda params, x: {"logits": network(params, x["image"])})(
            perturbed, {"image": jaxbound.linf_ball(center(), 0.05)}
        )["logits"]
        rng = np.random.default_rng(0)
        for _ in range(50):
            sample = [p + rng.uniform(-0.01, 0.01, p.shape) for p in params]
            y = network(sample, center() + rng.uniform(-0.05, 0.05, 4))
            assert (y >= out.lower - 1e-12).all() and (y <= out.upper + 1e-12).all()
