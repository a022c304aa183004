"""LBP, CROWN-LBP and Relaxed-CROWN: soundness, their order, and that they are ordinary JAX functions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxbound
from jaxbound import relax
from tests import soundness
from tests.methods.test_transforms import KEYS, center, margins, network, parameters
from tests.programs import MIXING
from tests.soundness import assert_shard_map_is_vmap

pytestmark = pytest.mark.usefixtures("double")


def found_only(propagated, found):
    """A `combine` that leaves out interval propagation."""
    del propagated
    return found


def propagated_only(propagated, found):
    """A `combine` that leaves out linear bounds."""
    del found
    return propagated


METHODS = {
    "lbp": jaxbound.lbp,
    "crown_lbp": jaxbound.crown_lbp,
    "relaxed_crown": functools.partial(jaxbound.relaxed_crown, depth=1, chunk=8),
}
ALONE = {name: functools.partial(m, combine=found_only, relu=relax.adaptive) for name, m in METHODS.items()}
BALLS = {"linf": jaxbound.linf_ball, "l2": jaxbound.l2_ball, "l1": jaxbound.l1_ball}
LAYOUT = ("NHWC", "HWIO", "NHWC")
W = soundness.weights(4, 4).astype(float)


# Soundness.


def twice(name):
    return lambda x: MIXING[name](jax.nn.relu(MIXING[name](x, 1) + 0.2), 1)


CASES = {
    **{name: twice(name) for name in ("residual", "max_pool", "conv_stride")},
    **{name: functools.partial(MIXING[name], k=1) for name in ("scan", "softmax")},
    "loop without sets": lambda x: lax.fori_loop(
        0, 2, lambda _, c: (c[0] + 1, jnp.sin(c[1])), (jnp.ones(4), x * jnp.tanh(x))
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_values_lie_inside(name):
    methods = {"lbp": jaxbound.lbp, "relaxed_crown": ALONE["relaxed_crown"]}
    soundness.check(CASES[name], *soundness.boxes(4)[:3], methods=methods, count=50)


def test_values_lie_inside_for_a_ball_without_interval_propagation():
    soundness.check(CASES["residual"], jaxbound.l2_ball(jnp.array(W[0]), 0.7), methods=ALONE, count=100)


def test_values_lie_inside_for_two_sets_and_constants():
    def fn(weight, inputs, scale):
        hidden = jax.nn.relu(weight @ inputs["a"] - inputs["b"])
        return scale * hidden + inputs["b"] * jax.nn.relu(hidden - inputs["c"])

    inputs = {"a": soundness.boxes(4)[0], "b": soundness.boxes(4, seed=1)[0], "c": jnp.arange(4.0) / 4}
    soundness.check(fn, (jnp.array(W), inputs, 2.0), methods=METHODS, count=100)


def test_a_function_of_no_set():
    box = soundness.box([0.5], 0.25)
    for method in METHODS.values():
        bound = method(lambda x: jnp.arange(2.0))
        np.testing.assert_allclose(bound(box), [np.arange(2.0)] * 2)
        np.testing.assert_allclose(bound(box, spec=jnp.eye(2)), np.arange(2.0))


@pytest.mark.parametrize("method", ALONE)
def test_what_is_invalid_verifies_nothing(method):
    @jax.jit
    def bounds(weight, eps):
        bound = ALONE[method](lambda x: 2 - jax.nn.relu(jax.nn.relu(weight @ x) - 1))
        box = jaxbound.linf_ball(center(), eps)
        return bound(box), bound(box, spec=jnp.ones((2, 4)))

    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(bounds(jnp.array(W), 0.1)))
    for invalid in ((jnp.array(W), jnp.nan), (jnp.array(W), -1.0), (jnp.full((4, 4), jnp.nan), 0.1)):
        box, rows = bounds(*invalid)
        assert (box.lower == -jnp.inf).all() and (box.upper == jnp.inf).all() and (rows == -jnp.inf).all()


# Order.


def mlp(params, x):
    *hidden, last = params
    for w in hidden:
        x = jax.nn.relu(w @ x + 0.1)
    return last @ x


def convnet(params, x):
    first, second, last = params
    x = jax.nn.relu(lax.conv_general_dilated(x.reshape(1, 2, 2, 1), first, (1, 1), "SAME", dimension_numbers=LAYOUT))
    x = jax.nn.relu(lax.conv_general_dilated(x, second, (2, 1), "SAME", dimension_numbers=LAYOUT) - 0.1)
    return last @ x.ravel()


MODELS = {
    "mlp": (mlp, [(5, 4), (5, 5), (5, 5), (3, 5)]),
    "convnet": (convnet, [(2, 2, 1, 2), (2, 2, 2, 3), (3, 6)]),
}
TIGHT = {
    "ibp": jaxbound.ibp,
    "crown_ibp": functools.partial(jaxbound.crown_ibp, relu=relax.tight),
    "lbp alone": functools.partial(jaxbound.lbp, combine=found_only),
    "lbp": jaxbound.lbp,
    "crown_lbp": jaxbound.crown_lbp,
    "crown": functools.partial(jaxbound.crown, relu=relax.tight),
}


def lower_bounds(model, methods, ball="linf", count=4):
    """Lower bounds [count, S] of all margins by several methods, for random weights, inputs and growing radii."""
    apply, shapes = MODELS[model]
    params = [jax.random.normal(jax.random.fold_in(KEYS[0], k), (count, *s), float) for k, s in enumerate(shapes)]
    regions = BALLS[ball](jax.random.uniform(KEYS[1], (count, 4), float), jnp.linspace(0.1, 0.5, count))
    spec = jnp.concatenate([jaxbound.margin_spec(label, 3, float) for label in range(3)])

    def bounds(params, region):
        return [method(functools.partial(apply, params))(region, spec=spec) for method in methods.values()]

    return dict(zip(methods, jax.jit(jax.vmap(bounds))(params, regions), strict=True))


def check_chain(bounds, *names):
    """Each method's bounds are at most the next one's, and not all the same."""
    for looser, tighter in zip(names, names[1:], strict=False):
        slack = 1e-10 * (1 + jnp.abs(bounds[looser]))
        assert (bounds[looser] <= bounds[tighter] + slack).all(), (looser, tighter)
        assert (bounds[looser] < bounds[tighter] - 1e-6).any(), (looser, tighter)


def same(first, second):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9), first, second)


@pytest.mark.parametrize("model, ball", [("mlp", "linf"), ("convnet", "l2")])
def test_tight_lines_order_the_methods(model, ball):
    bounds = lower_bounds(model, TIGHT, ball)
    check_chain(bounds, "ibp", "lbp", "crown_lbp")
    check_chain(bounds, "ibp", "crown_ibp", "crown_lbp")
    if model == "mlp":  # two hidden layers are too few for a difference between these
        check_chain(bounds, "ibp", "lbp alone")
        check_chain(bounds, "crown_lbp", "crown")


@pytest.mark.parametrize("model", MODELS)
def test_constant_lines_are_interval_bounds(model):
    methods = {name: functools.partial(METHODS[name], relu=relax.constant) for name in ("lbp", "crown_lbp")}
    bounds = lower_bounds(model, methods | {"ibp": jaxbound.ibp})
    same(bounds["lbp"], bounds["ibp"])
    same(bounds["crown_lbp"], bounds["ibp"])


@pytest.mark.parametrize("model, lines", [("mlp", relax.adaptive), ("convnet", relax.tight)])
def test_depth_leads_from_lbp_to_crown(model, lines):
    options = {"relu": lines, "combine": found_only}
    methods = {
        "lbp": functools.partial(jaxbound.lbp, **options),
        "crown": functools.partial(jaxbound.crown, **options),
        "one": functools.partial(jaxbound.relaxed_crown, depth=1, chunk=5, **options),
        "all": functools.partial(jaxbound.relaxed_crown, depth=3, **options),
    }
    bounds = lower_bounds(model, methods)
    same(bounds["one"], bounds["lbp"])
    same(bounds["all"], bounds["crown"])
    assert (jnp.abs(bounds["one"] - bounds["all"]) > 1e-6).any(), "the two ends of the scale differ here"


def test_no_depth_is_tighter_than_crown_with_tight_lines():
    """In between there is no order: a tight interval may meet a loose function."""
    check_chain(lower_bounds("mlp", {k: functools.partial(jaxbound.relaxed_crown, depth=k) for k in (2, 3)}), 2, 3)


def test_without_a_spec_the_bounds_are_those_of_unit_rows():
    bound = jaxbound.lbp(lambda x: jax.nn.relu(W @ jax.nn.relu(W @ x)) @ W)
    spec = jnp.concatenate([jnp.eye(4), -jnp.eye(4)])
    box, rows = jax.jit(lambda box: (bound(box), bound(box, spec=spec)))(jaxbound.linf_ball(center(), 0.2))
    same(jnp.concatenate([box.lower, -box.upper]), rows)


def test_a_spec_is_pulled_back_through_all_last_linear_layers():
    """Forwards, each linear layer of a pair would lose what cancels in their product."""

    def fn(x):
        return jnp.array([[1.0, 1.0], [1.0, -1.0]]) @ (jnp.array([[1.0, 1.0], [1.0, -1.0]]) @ jax.nn.relu(x))

    box = soundness.box([0.0, 0.0], 1.0)
    np.testing.assert_allclose(jaxbound.lbp(fn)(box, spec=jnp.array([[1.0, 0.0]])), [0.0], atol=1e-12)
    assert jaxbound.lbp(fn)(box).lower[0] < -0.5


def test_combine_decides_on_the_hidden_intervals():
    methods = {
        "propagated": functools.partial(jaxbound.crown_lbp, combine=propagated_only),
        "crown_ibp": TIGHT["crown_ibp"],
        "tightest": jaxbound.crown_lbp,
    }
    bounds = lower_bounds("mlp", methods)
    same(bounds["propagated"], bounds["crown_ibp"])
    check_chain(bounds, "propagated", "tightest")


@pytest.mark.parametrize("options", [{"depth": 0}, {"depth": 1, "chunk": 0}])
def test_depth_or_chunk_below_one(options):
    with pytest.raises(ValueError, match="depth and chunk must be at least 1"):
        jaxbound.relaxed_crown(jnp.tanh, **options)


# Ordinary JAX functions.


def random_direction(arguments):
    leaves, tree = jax.tree.flatten(arguments)
    keys = jax.random.split(KEYS[0], len(leaves))
    normal = [jax.random.normal(key, jnp.shape(leaf), float) for key, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, normal)


def difference(fn, arguments, direction, step=1e-6):
    """The difference quotient of a function that returns its value first."""
    plus, minus = (fn(jax.tree.map(lambda p, d, s=s: p + s * d, arguments, direction))[0] for s in (step, -step))
    return (plus - minus) / (2 * step)


@pytest.mark.parametrize("method, ball", [("lbp", "l2"), ("crown_lbp", "l1"), ("relaxed_crown", "linf")])
def test_gradients_are_those_of_finite_differences(method, ball):
    def activation(x):
        return jax.nn.relu(0.5 - jax.nn.relu(x))

    def loss(arguments):
        params, eps = arguments
        return jnp.sum(margins(METHODS[method], activation, BALLS[ball], params, eps) * jnp.array([1, 0.5]))

    arguments, fn = (parameters(), jnp.full(4, 0.07)), jax.jit(jax.value_and_grad(loss))
    direction = random_direction(arguments)
    products = jax.tree.map(jnp.vdot, fn(arguments)[1], direction)
    np.testing.assert_allclose(difference(fn, arguments, direction), sum(jax.tree.leaves(products)), rtol=1e-6)


@pytest.mark.parametrize("method", ["lbp", "relaxed_crown"])
def test_forward_derivatives_with_respect_to_a_strided_kernel(method):
    def loss(kernel):
        def fn(x):
            for _ in range(2):
                x = jax.nn.relu(lax.conv_general_dilated(x, kernel, (2, 2), [(1, 1)] * 2, dimension_numbers=LAYOUT))
            return x.ravel()

        box = jaxbound.linf_ball(jnp.full((1, 2, 2, 2), 0.5), 0.3)
        return jnp.sum(METHODS[method](fn)(box, spec=jnp.array([[1.0, -2.0], [-1.0, 1.0]])))

    kernel = jnp.array(soundness.weights(3, 3, 2, 2, seed=3), float)
    direction = random_direction(kernel)
    fn = jax.jit(lambda kernel: jax.jvp(loss, (kernel,), (direction,)))
    np.testing.assert_allclose(difference(fn, kernel, direction), fn(kernel)[1], rtol=1e-6)
    assert jnp.abs(fn(kernel)[1]) > 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_vmap_is_a_loop_and_jit_changes_nothing(method):
    boxes = jaxbound.linf_ball(jax.random.uniform(KEYS[0], (2, 4), float), jnp.array([0.02, 0.2]))
    bound = jax.jit(METHODS[method](functools.partial(network, parameters())))
    together = jax.jit(jax.vmap(bound))(boxes)
    for k in range(2):
        alone = bound(jax.tree.map(lambda leaf, k=k: leaf[k], boxes))
        jax.tree.map(lambda a, b, k=k: np.testing.assert_allclose(a[k], b, rtol=1e-12), together, alone)


@pytest.mark.parametrize("method", METHODS)
def test_shard_map_is_vmap(method):
    boxes = jaxbound.linf_ball(jax.random.uniform(KEYS[0], (2, 4), float), 0.1)
    assert_shard_map_is_vmap(METHODS[method](network), parameters(), boxes)
