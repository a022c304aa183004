import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.test_util import check_grads

import jaxbound
from jaxbound import relax
from jaxbound.methods.backward import blend
from tests import soundness

pytestmark = pytest.mark.usefixtures("double")

W = soundness.weights(4, 4).astype(float)
TOP = soundness.weights(2, 3, 4).astype(float)
SPEC = soundness.weights(5, 2, 3).astype(float)
STRATEGIES = [relax.adaptive, relax.tight, relax.one, relax.same_slope, relax.constant]


def network(x):
    """[4] -> [2, 3]."""
    return TOP @ jnp.tanh(W @ jax.nn.relu(W @ x + 0.2)) + 1


def samples(region, count=500):
    return jax.vmap(lambda unit: soundness.point(region, unit))(jnp.array(soundness.units(region, count)))


def heights(plane, xs):
    """Values of linear bounds, of the shape of the bias, at many inputs [N, 4]."""
    return jnp.einsum("...k,nk->n...", plane.coeffs, xs) + plane.bias


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("region", [soundness.box([0.3, -0.2, 1.0, 0.5], 0.3), jaxbound.Ball(W[0], W[1] ** 2, 2)])
def test_planes_enclose_the_function(region, strategy):
    region = jax.tree.map(lambda leaf: jnp.array(leaf, float), region)
    planes = jax.jit(jaxbound.linear_bounds(network, relu=strategy))(region)
    assert planes.lower.coeffs.shape == (2, 3, 4) and planes.upper.bias.shape == (2, 3)
    xs = samples(region)
    values = jax.vmap(network)(xs)
    assert (heights(planes.lower, xs) <= values + 1e-12).all()
    assert (values <= heights(planes.upper, xs) + 1e-12).all()


@pytest.mark.parametrize("strategy", [relax.adaptive, relax.same_slope])
def test_planes_become_the_bounds_of_crown_ibp(strategy):
    box = soundness.boxes(4)[0]

    def results(method):
        bound = method(network, relu=strategy)
        return jax.jit(lambda box: (bound(box), bound(box, spec=SPEC)))(box)

    (planes, plane), (interval, lowest) = results(jaxbound.linear_bounds), results(jaxbound.crown_ibp)
    rows = jax.tree.map(lambda x: x.reshape(6, *x.shape[2:]), planes)
    negative = jax.tree.map(jnp.negative, rows.upper)
    np.testing.assert_allclose(rows.lower.concretize(box), interval.lower.ravel(), rtol=1e-10)
    np.testing.assert_allclose(-negative.concretize(box), interval.upper.ravel(), rtol=1e-10)
    assert plane.coeffs.shape == (5, 4) and plane.bias.shape == (5,)
    np.testing.assert_allclose(plane.concretize(box), lowest, rtol=1e-10)


def test_coefficients_are_arranged_as_the_arguments_are():
    def fn(weight, inputs, scale):
        return scale * jnp.tanh(weight @ inputs["a"]) + inputs["b"][0] * inputs["c"]

    a, b = soundness.boxes(4)[0], soundness.box([0.5], 0.25)
    arguments = (jnp.array(W), {"a": a, "b": b, "c": jnp.arange(4.0)}, 2.0)
    planes, bound = jax.jit(lambda args: (jaxbound.linear_bounds(fn)(*args), jaxbound.crown_ibp(fn)(*args)))(arguments)
    weight, inputs, scale = planes.lower.coeffs
    assert weight is None and scale is None and inputs["c"] is None
    assert inputs["a"].shape == (4, 4) and inputs["b"].shape == (4, 1)
    np.testing.assert_allclose(inputs["b"][:, 0], jnp.arange(4.0))
    np.testing.assert_allclose(planes.lower.concretize(*arguments), bound.lower, rtol=1e-10)


def test_an_affine_function_is_its_own_plane():
    planes = jaxbound.linear_bounds(lambda x: (W @ x)[::-1] * 2 - 1)(soundness.boxes(4)[0])
    for plane in planes:
        np.testing.assert_allclose(plane.coeffs, 2 * W[::-1], rtol=1e-12)
        np.testing.assert_allclose(plane.bias, -np.ones(4), rtol=1e-12)


def test_several_outputs_need_a_spec():
    box = soundness.boxes(4)[0]
    with pytest.raises(ValueError, match="returns 2 arrays needs a spec"):
        jaxbound.linear_bounds(lambda x: (x, x))(box)
    plane = jaxbound.linear_bounds(lambda x: (x, 2 * x))(box, spec=(jnp.ones((1, 4)), jnp.ones((1, 4))))
    np.testing.assert_allclose(plane.coeffs, jnp.full((1, 4), 3.0))


def test_chunks_change_nothing():
    def bounds(chunk):
        bound = jaxbound.crown(network, chunk=chunk)
        return jax.jit(lambda box: (bound(box), bound(box, spec=SPEC)))(soundness.boxes(4)[0])

    expected = bounds(512)
    for chunk in (1, 3):
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-10), bounds(chunk), expected)


def test_chunk_below_one():
    with pytest.raises(ValueError, match="chunk must be at least 1, got 0"):
        jaxbound.crown(jnp.tanh, chunk=0)


def test_combine_decides_on_the_intermediate_bounds():
    box = soundness.boxes(4)[1]
    chosen = {
        "propagated": lambda propagated, crown: propagated,
        "crown": lambda propagated, crown: crown,
        "tightest": jaxbound.tightest,
    }
    found = {name: jax.jit(jaxbound.crown(network, relu=relax.tight, combine=c))(box) for name, c in chosen.items()}
    np.testing.assert_allclose(found["propagated"], jax.jit(jaxbound.crown_ibp(network, relu=relax.tight))(box))
    assert all((found[name].lower != found["propagated"].lower).any() for name in ("crown", "tightest"))
    values = jax.vmap(network)(samples(box))
    for bound in found.values():
        assert (bound.lower <= values + 1e-12).all() and (values <= bound.upper + 1e-12).all()


def test_crown_tightens_what_enters_a_loop():
    def looped(x):
        return lax.fori_loop(0, 2, lambda _, c: jax.nn.relu(W @ c), W @ jax.nn.relu(W @ x))

    box = soundness.boxes(4)[0]
    loose, tight = (jax.jit(make(looped, relu=relax.tight))(box) for make in (jaxbound.crown_ibp, jaxbound.crown))
    assert (tight.lower >= loose.lower - 1e-12).all() and (tight.upper <= loose.upper + 1e-12).all()
    assert (tight.upper - tight.lower < loose.upper - loose.lower).any()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("eps", [0.02, 0.2])
def test_tight_lines_order_the_methods(seed, eps):
    keys = jax.random.split(jax.random.key(seed), 4)
    weights = [jax.random.normal(k, s, float) for k, s in zip(keys, [(6, 4), (6, 6), (6, 6), (3, 6)], strict=True)]

    def fn(x):
        for w in weights[:-1]:
            x = jax.nn.relu(w @ x)
        return weights[-1] @ x

    box, spec = jaxbound.linf_ball(jnp.array([0.3, 0.8, 0.45, 0.6]), eps), jaxbound.margin_spec(0, 3, float)
    methods = {
        "ibp": jaxbound.ibp(fn),
        "crown_ibp": jaxbound.crown_ibp(fn, relu=relax.tight),
        "crown": jaxbound.crown(fn, relu=relax.tight),
        "constant": jaxbound.crown(fn, relu=relax.constant),
    }
    bounds = jax.jit(lambda box: {name: bound(box, spec=spec) for name, bound in methods.items()})(box)
    slack = 1e-10 * (1 + jnp.abs(bounds["ibp"]))
    assert (bounds["ibp"] <= bounds["crown_ibp"] + slack).all()
    assert (bounds["crown_ibp"] <= bounds["crown"] + slack).all()
    assert (bounds["crown"] <= (jax.vmap(fn)(samples(box)) @ spec.T).min(axis=0) + slack).all()
    np.testing.assert_allclose(bounds["constant"], bounds["ibp"], rtol=1e-10)


# Mixtures with IBP.


@functools.partial(jax.jit, static_argnames="spec")
def mixtures(beta, box, spec):
    """(mixture, CROWN-IBP, IBP) of the network."""
    options = {"spec": SPEC} if spec else {}
    bound = jaxbound.crown_ibp(network, beta=beta)
    return bound(box, **options), jaxbound.crown_ibp(network)(box, **options), jaxbound.ibp(network)(box, **options)


@pytest.mark.parametrize("spec", [True, False])
def test_beta_mixes_with_ibp(spec):
    for beta in (0.0, 0.3, 1.0):
        mixture, linear, interval = mixtures(beta, soundness.boxes(4)[1], spec)
        expected = jax.tree.map(lambda a, b, beta=beta: beta * a + (1 - beta) * b, linear, interval)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-10), mixture, expected)


@pytest.mark.parametrize("spec", [True, False])
def test_known_betas_give_what_traced_ones_give(spec):
    box, options = soundness.boxes(4)[1], {"spec": SPEC} if spec else {}
    for beta in (0, 1, 0.0, 1.0, np.float32(0), 0.25):
        found = jaxbound.crown_ibp(network, beta=beta)(box, **options)
        expected = mixtures(float(beta), box, spec)[0]
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-10), found, expected)


def test_an_array_that_a_compiled_function_closes_over_is_a_known_beta():
    box, beta, outside = soundness.boxes(4)[1], jnp.array(0.25), jnp.array(1.25)
    found = jax.jit(lambda box: jaxbound.crown_ibp(network, beta=beta)(box))(box)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-10), found, mixtures(0.25, box, spec=False)[0])
    with pytest.raises(ValueError, match="beta"):
        jax.jit(lambda box: jaxbound.crown_ibp(network, beta=outside)(box))(box)


def test_beta_of_zero_asks_for_no_lines_and_one_for_no_elision():
    def refuse(x, slope=0.0, top=None):
        raise AssertionError("a line was asked for")

    box = soundness.boxes(4)[0]
    jaxbound.crown_ibp(network, relu=refuse, beta=0)(box)
    with pytest.raises(AssertionError, match="a line was asked for"):
        jaxbound.crown_ibp(network, relu=refuse, beta=1e-9)(box)

    def equations(**options):
        return str(jax.make_jaxpr(lambda box: jaxbound.crown_ibp(network, **options)(box, spec=SPEC))(box))

    assert equations(beta=1) == equations() and equations().count(" = ") < equations(beta=0.5).count(" = ")


def test_one_walk_for_both():
    calls = []

    def counted(x, slope=0.0, top=None):
        calls.append(x)
        return relax.adaptive(x, slope)

    jaxbound.crown_ibp(network, relu=counted, beta=0.5)(soundness.boxes(4)[0], spec=SPEC)
    assert len(calls) == 1  # the network has one ReLU


def test_gradients_of_a_mixture_are_those_of_finite_differences():
    def loss(weight, beta):
        bound = jaxbound.crown_ibp(lambda weight, x: TOP @ jnp.tanh(W @ jax.nn.relu(weight @ x + 0.2)), beta=beta)
        return jnp.sin(bound(weight, soundness.boxes(4)[0], spec=SPEC)).sum()

    check_grads(jax.jit(loss), (jnp.array(W), jnp.array(0.4)), order=1, modes=["rev"], atol=1e-5, rtol=1e-5, eps=1e-6)


@pytest.mark.parametrize("beta", [-0.1, 1.5, np.nan, np.array([0.5, 0.5])])
def test_beta_out_of_range(beta):
    with pytest.raises(ValueError, match="beta"):
        jaxbound.crown_ibp(network, beta=beta)


@pytest.mark.parametrize("beta", [-0.1, 1.5, np.nan])
def test_a_traced_beta_out_of_range_verifies_nothing(beta):
    lowest, interval = (mixtures(beta, soundness.boxes(4)[0], spec)[0] for spec in (True, False))
    assert np.isneginf(lowest).all() and np.isneginf(interval.lower).all() and np.isposinf(interval.upper).all()


def test_an_infinite_bound_without_weight_is_left_out():
    first, second = jnp.array([-jnp.inf, 1.0, -jnp.inf]), jnp.array([2.0, -jnp.inf, -jnp.inf])
    np.testing.assert_array_equal(blend(0.0, first, second), [2.0, -np.inf, -np.inf])
    np.testing.assert_array_equal(blend(1.0, first, second), [-np.inf, 1.0, -np.inf])
    np.testing.assert_array_equal(blend(0.5, first, second), [-np.inf] * 3)
    gradient = jax.grad(lambda beta: blend(beta, jnp.array(3.0), jnp.array(1.0)))
    assert gradient(0.0) == gradient(1.0) == gradient(0.5) == 2


def test_layers_by_crown():
    """Each is what crown says of a function that ends there; they come with the bounds of a spec, from one walk."""

    def second(x):
        return W @ jax.nn.relu(W @ x + 0.2)

    @jax.jit
    def results(box):
        expected = jaxbound.crown(network)(box, spec=SPEC), jaxbound.crown(second)(box)
        return jaxbound.crown_layer_bounds(network)(box, spec=SPEC), jaxbound.layer_bounds(network)(box), expected

    (lower, layers), interval, (expected, met) = results(soundness.boxes(4)[0])
    np.testing.assert_allclose(lower, expected, rtol=1e-12)
    assert layers.keys() == interval.keys()
    (first, last), (first_by_ibp, last_by_ibp) = layers.values(), interval.values()
    np.testing.assert_allclose(first, first_by_ibp, rtol=1e-12)  # one linear layer: nothing to gain
    np.testing.assert_allclose(last, jaxbound.tightest(last_by_ibp, met), rtol=1e-10)
    assert (jaxbound.radius(last) < jaxbound.radius(last_by_ibp)).any()
