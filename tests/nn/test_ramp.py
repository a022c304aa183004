import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxbound
from jaxbound.methods.problem import prepare
from jaxbound.nn import ramp as ramps
from tests import soundness

RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(size=(10, 6, 6, 1)).astype(np.float32)
LABELS = np.arange(10) % 3
LAYERS = ("ParamRamp_0", "dense")


class Net(nn.Module):
    """A convolution and two dense layers; the second ramp has a name of its own."""

    slope: float = 0.0

    @nn.compact
    def __call__(self, x):
        x = ramps.ParamRamp(3, self.slope)(nn.Conv(2, (3, 3), strides=2)(x))
        x = ramps.ParamRamp(slope=self.slope, name="dense")(nn.Dense(5)(x.reshape(*x.shape[:-3], -1)))
        return nn.Dense(3)(x)


@functools.cache
def initial(slope=0.0):
    return jax.jit(Net(slope).init)(jax.random.key(0), IMAGES)


@functools.cache
def started(slope=0.0):
    return jaxbound.nn.start_ramps(Net(slope).apply, initial(slope), [IMAGES[:4], IMAGES[4:]])


def tops(variables):
    return {name: variables["params"][name]["top"] for name in LAYERS}


def loss(params, model, radius):
    """Cross-entropy of the worst logits, as training has it."""

    def one(x, label):
        fn = jaxbound.per_example(lambda x: model.apply({"params": params}, x))
        lower = jaxbound.crown_ibp(fn)(jaxbound.linf_ball(x, radius), spec=jaxbound.margin_spec(label, 3))
        return jnp.logaddexp.reduce(jnp.append(-lower, 0.0))

    return jax.vmap(one)(IMAGES, LABELS).mean()


@functools.cache
def trained_once(slope=0.0):
    """The parameters, their gradients, and what a step of Adam makes of them."""
    params = initial(slope)["params"]

    @jax.jit
    def step(params):
        optimizer = optax.adam(1e-2)
        gradients = jax.grad(loss)(params, Net(slope), 0.05)
        updates, _ = optimizer.update(gradients, optimizer.init(params), params)
        return gradients, optax.apply_updates(params, updates)

    return params, *step(params)


def test_without_a_top_it_is_the_leaky_relu():
    x = jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32)
    layer = ramps.ParamRamp(slope=0.1)
    variables = layer.init(jax.random.key(0), x)
    assert variables["params"]["top"].shape == (3,) and np.isinf(variables["params"]["top"]).all()
    np.testing.assert_allclose(layer.apply(variables, x), jax.nn.leaky_relu(x, 0.1), rtol=1e-6)


def test_a_top_for_each_neuron():
    layer = ramps.ParamRamp(3)
    x = jnp.full((2, 2, 1, 3), 9.0)
    top = jnp.arange(6.0).reshape(2, 1, 3)
    assert jax.eval_shape(layer.init, jax.random.key(0), x)["params"]["top"].shape == (2, 1, 3)
    for batch in (x, x[0], x[None]):
        np.testing.assert_array_equal(layer.apply({"params": {"top": top}}, batch), np.broadcast_to(top, batch.shape))


def test_too_few_axes():
    with pytest.raises(ValueError, match="set neuron_ndim to 1"):
        ramps.ParamRamp(3).init(jax.random.key(0), jnp.ones((2, 4)))


def test_a_scheduled_slope_takes_the_place_of_the_attribute():
    variables, x = started(0.01), IMAGES[0]
    schedule = jaxbound.nn.ramp_slopes(variables["params"], 0.3)
    assert jax.tree.structure(schedule) == jax.tree.structure({name: {"slope": 0} for name in LAYERS})
    scheduled = jax.jit(Net(0.01).apply)({**variables, "schedule": schedule}, x)
    np.testing.assert_allclose(scheduled, Net(0.3).apply(variables, x), rtol=1e-6)
    assert not np.allclose(scheduled, Net(0.01).apply(variables, x))
    gradient = jax.grad(lambda slope: loss_of_schedule(variables, slope))(0.3)
    assert np.isfinite(gradient) and gradient != 0


def loss_of_schedule(variables, slope):
    schedule = jaxbound.nn.ramp_slopes(variables["params"], slope)
    return Net(0.01).apply({**variables, "schedule": schedule}, IMAGES).sum()


def test_ramps_of_a_nested_model_get_their_slopes():
    top = jnp.ones(2)
    params = {"block": {"ramp": {"top": top}, "Dense_0": {"kernel": top}}, "top": {"kernel": top}}
    assert jaxbound.nn.ramp_slopes(params, 0.5) == {"block": {"ramp": {"slope": 0.5}}}


@pytest.mark.parametrize("slope", [0.0, 0.3])
def test_ramps_start_at_mean_activations(slope):
    variables = initial(slope)
    _, state = Net(slope).apply(variables, IMAGES, capture_intermediates=lambda m, _: isinstance(m, ramps.ParamRamp))
    means = {name: state["intermediates"][name]["__call__"][0].mean(axis=0) for name in LAYERS}
    if slope:
        assert (means["dense"] < 0).any()  # else nothing says that negative values are part of the mean
    for name, top in tops(started(slope)).items():
        assert top.shape == {"ParamRamp_0": (3, 3, 2), "dense": (5,)}[name]
        np.testing.assert_allclose(top, np.maximum(means[name], 1e-4), rtol=1e-5)
    others = [jax.tree.map(lambda _: 0, each["params"]["Conv_0"]) for each in (variables, started(slope))]
    assert others[0] == others[1] and np.isinf(tops(variables)["dense"]).all()


def test_starting_a_shared_ramp_takes_all_its_calls():
    class Shared(nn.Module):
        @nn.compact
        def __call__(self, x):
            layer = ramps.ParamRamp()
            return layer(x) + layer(x + 2)

    x = jnp.array([[1.0, 2.0]])
    variables = Shared().init(jax.random.key(0), x)
    assert jaxbound.nn.start_ramps(Shared().apply, variables, [x])["params"]["ParamRamp_0"]["top"].tolist() == [2, 3]


def test_starting_what_has_no_ramp_or_no_batch():
    with pytest.raises(ValueError, match="no ParamRamp was called"):
        jaxbound.nn.start_ramps(nn.Dense(2).apply, nn.Dense(2).init(jax.random.key(0), jnp.ones(3)), [jnp.ones((2, 3))])
    with pytest.raises(ValueError, match="there is no batch"):
        jaxbound.nn.start_ramps(Net().apply, initial(), [])


def test_clamping_changes_tops_alone():
    params = {"a": {"top": jnp.array([-1.0, 3.0, jnp.inf])}, "b": {"kernel": jnp.array([-1.0])}}
    clamped = jaxbound.nn.clamp_ramps(params)
    np.testing.assert_allclose(clamped["a"]["top"], [1e-4, 3, np.inf])
    assert clamped["b"]["kernel"] == -1


def test_noise_is_in_units_of_a_layers_mean():
    size = 20_000
    params = {"a": {"top": jnp.full(size, 3.0)}, "b": {"top": jnp.full(size, 0.1)}, "c": {"bias": jnp.ones(2)}}
    noisy = jax.jit(jaxbound.nn.perturb_ramps)(jax.random.key(0), params)
    steps = [np.asarray(noisy[name]["top"] - params[name]["top"]) for name in "ab"]
    for step, mean in zip(steps, (3.0, 0.1), strict=True):
        np.testing.assert_allclose(step.std(), 0.01 * mean, rtol=0.05)
        assert abs(step.mean()) < 0.001 * mean
    assert abs(np.corrcoef(*steps)[0, 1]) < 0.05 and (noisy["c"]["bias"] == 1).all()


def test_noise_leaves_ramps_that_are_off():
    noisy = jaxbound.nn.perturb_ramps(jax.random.key(0), initial()["params"])
    assert all(np.isinf(top).all() for top in tops({"params": noisy}).values())


@pytest.mark.parametrize("slope", [0.0, 0.3])
def test_adam_leaves_ramps_that_are_off(slope):
    params, gradients, after = trained_once(slope)
    for name in LAYERS:
        assert (gradients[name]["top"] == 0).all() and np.isposinf(after[name]["top"]).all()
    for name in set(params) - set(LAYERS):
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((gradients[name], after[name])))
        assert (after[name]["kernel"] != params[name]["kernel"]).any()


def test_tops_have_gradients_through_the_bound():
    params = started(0.1)["params"]
    gradients = jax.jit(jax.grad(loss), static_argnums=(1,))(params, Net(0.1), 0.05)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    assert all((gradients[name]["top"] != 0).any() for name in LAYERS)


@pytest.mark.parametrize("slope", [0.0, 0.1])
def test_bounds_of_a_network(slope, double):
    variables = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), started(slope))
    fn = jaxbound.per_example(lambda x: Net(slope).apply(variables, x))
    boxes = [soundness.box(IMAGES[k], radius) for k, radius in ((0, 0.05), (1, 0.3), (2, 1e-9))]
    assert [e.name for e in prepare(fn, (boxes[0],), {}).program.equations].count("ramp") == 2
    methods = {name: soundness.METHODS[name] for name in ("ibp", "crown_ibp")}
    soundness.check(fn, *boxes, methods=methods)
    spec = jaxbound.margin_spec(1, 3)
    ibp, crown_ibp = (jax.jit(functools.partial(make(fn), spec=spec)) for make in methods.values())
    assert all((ibp(box) <= crown_ibp(box) + 1e-12).all() for box in boxes)


def test_perturbed_tops(double):
    x, weight = jnp.array([0.3, -1.5]), soundness.weights(2, 2)

    def fn(params, x):
        return ramps.ParamRamp(slope=0.1).apply({"params": params}, x @ weight)

    top = soundness.box([0.5, 1.0], 0.25)
    soundness.check(fn, ({"top": top}, x), nested=False)
    soundness.check(fn, ({"top": top}, soundness.box(x, 0.5)), nested=False)
