import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxbound
from jaxbound.nn import batch_norm

X = np.random.default_rng(0).normal(1.0, 3.0, (16, 3)).astype(np.float32)
W = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)


class Normed(nn.Module):
    """Dense layers and batch norms of different momenta."""

    momenta: tuple[float, ...] = (0.99, 0.5)
    eval_mode: bool = False

    @nn.compact
    def __call__(self, x, train=False):
        for momentum in self.momenta:
            x = nn.Dense(4)(x)
            x = nn.BatchNorm(use_running_average=self.eval_mode or not train, momentum=momentum, epsilon=1e-5)(x)
            x = nn.relu(x)
        return x


def variables_of(model, x=X):
    return model.init(jax.random.key(0), x)


def training(model):
    return batch_norm.batch_statistics(functools.partial(model.apply, train=True))


def by_hand(variables, x):
    """Outputs and statistics of `Normed`, in NumPy."""
    params, statistics = jax.tree.map(np.asarray, variables["params"]), {}
    for k in range(2):
        x = x @ params[f"Dense_{k}"]["kernel"] + params[f"Dense_{k}"]["bias"]
        mean, var = x.mean(axis=0), x.var(axis=0)
        statistics[f"BatchNorm_{k}"] = {"mean": mean, "var": var}
        x = np.maximum((x - mean) / np.sqrt(var + 1e-5), 0)
    return x, statistics


@pytest.mark.parametrize("momenta", [(0.99, 0.5), (0.0, 0.999)])
def test_statistics_are_exactly_the_batchs(momenta):
    model = Normed(momenta)
    variables = variables_of(model)
    variables["batch_stats"] = jax.tree.map(lambda leaf: leaf + 1e6, variables["batch_stats"])
    output, statistics = training(model)(variables, X)
    expected_output, expected = by_hand(variables, X)
    np.testing.assert_allclose(output, expected_output, rtol=1e-4, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=3e-6, atol=1e-6), statistics, expected)


def test_evaluation_with_them_is_the_training_pass():
    model = Normed()
    variables = variables_of(model)
    output, statistics = training(model)(variables, X)
    np.testing.assert_allclose(model.apply({**variables, "batch_stats": statistics}, X), output, rtol=1e-5, atol=1e-5)


def test_gradients_flow_through_the_statistics(double):
    model = Normed()
    variables = jax.tree.map(lambda leaf: leaf.astype(float), variables_of(model))
    x = jnp.asarray(X, float)

    def total(params):
        _, statistics = training(model)({**variables, "params": params}, x)
        return jnp.sum(statistics["BatchNorm_0"]["var"]) + jnp.sum(statistics["BatchNorm_1"]["mean"])

    gradient = jax.grad(total)(variables["params"])
    direction = jax.tree.map(lambda leaf: jnp.cos(jnp.arange(leaf.size, dtype=float)).reshape(leaf.shape), gradient)
    move = lambda h: jax.tree.map(lambda p, d: p + h * d, variables["params"], direction)  # noqa: E731
    numeric = (total(move(1e-6)) - total(move(-1e-6))) / 2e-6
    exact = sum(jnp.vdot(g, d) for g, d in zip(*map(jax.tree.leaves, (gradient, direction)), strict=True))
    assert abs(exact) > 0.1
    np.testing.assert_allclose(exact, numeric, rtol=1e-6)


def test_bounds_of_every_example_are_differentiable_with_respect_to_what_the_statistics_depend_on():
    model = Normed()
    variables = variables_of(model)

    def loss(params, x):
        _, statistics = training(model)({**variables, "params": params}, x)
        apply = functools.partial(model.apply, {"params": params, "batch_stats": statistics})
        box = jaxbound.linf_ball(x, 0.1, clip=None)
        lower, upper = jax.vmap(jaxbound.ibp(apply))(box)
        assert lower.shape == (16, 4)
        return jnp.mean(upper - lower), jnp.all((lower <= apply(x)) & (apply(x) <= upper))

    gradient, sound = jax.jit(jax.grad(loss, has_aux=True))(variables["params"], X)
    assert sound
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    # Batch normalisation undoes a shift of what it gets: without the statistics' gradient this would not vanish.
    np.testing.assert_allclose(gradient["Dense_0"]["bias"], 0, atol=1e-5)


def test_a_network_without_batch_norm_has_none():
    model = nn.Dense(2)
    variables = model.init(jax.random.key(0), X)
    output, statistics = batch_norm.batch_statistics(model.apply)(variables, X)
    assert statistics == {}
    np.testing.assert_array_equal(output, model.apply(variables, X))


class Looped(nn.Module):
    """A batch norm in a loop's body, and others behind transforms."""

    @nn.compact
    def __call__(self, x, train=False):
        class Body(nn.Module):
            @nn.compact
            def __call__(self, x, _):
                return nn.BatchNorm(use_running_average=not train)(nn.Dense(3)(x)), None

        variable_axes = {"params": 0, "batch_stats": 0}
        x, _ = nn.scan(Body, variable_axes=variable_axes, split_rngs={"params": True}, length=2)()(x, None)
        x = nn.remat(nn.BatchNorm)(use_running_average=not train)(x)
        return nn.SpectralNorm(nn.Dense(2), collection_name="batch_stats")(x, update_stats=train)


def test_statistics_inside_transforms_and_of_other_modules():
    model = Looped()
    variables = variables_of(model)
    _, statistics = training(model)(variables, X)
    dense = jax.tree.map(np.asarray, variables["params"]["ScanBody_0"]["Dense_0"])
    first = X @ dense["kernel"][0] + dense["bias"][0]
    second = (first - first.mean(0)) / np.sqrt(first.var(0) + 1e-5) @ dense["kernel"][1] + dense["bias"][1]
    found = statistics["ScanBody_0"]["BatchNorm_0"]
    np.testing.assert_allclose(found["mean"], [first.mean(0), second.mean(0)], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found["var"], [first.var(0), second.var(0)], rtol=1e-5)
    # What else lives in the collection is that module's own business.
    _, plain = model.apply(variables, X, train=True, mutable=["batch_stats"])
    (name,) = (name for name in statistics if name.startswith("SpectralNorm"))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), statistics[name], plain["batch_stats"][name])


class Shared(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        norm = nn.BatchNorm(use_running_average=not train)
        return norm(norm(x))


def _without_statistics(model):
    return {"params": variables_of(model)["params"]}


@pytest.mark.parametrize(
    "model, variables, x, message",
    [
        (Normed(eval_mode=True), variables_of, X, "'BatchNorm_0' is in evaluation mode.*pass the training mode"),
        (Normed(), _without_statistics, X, "'BatchNorm_0' has no statistics.*'batch_stats'"),
        (Normed((1.0,)), variables_of, X, "momentum 1"),
        (Shared(), variables_of, X, "'BatchNorm_0' is applied twice"),
        (Normed(), variables_of, X[:1], r"shape \(1, 4\), a batch of one example.*evaluation mode"),
        (Normed(), variables_of, X[0], r"shape \(4,\), a batch of one example"),
    ],
)
def test_errors(model, variables, x, message):
    with pytest.raises(ValueError, match=message):
        training(model)(variables(model), x)


def test_one_example_per_call_is_refused_under_vmap_but_not_over_devices():
    model = Normed()
    variables = variables_of(model)
    with pytest.raises(ValueError, match="a batch of one example"):
        jax.vmap(lambda x: training(model)(variables, x[None])[0][0])(X)
    split = nn.BatchNorm(use_running_average=False, axis_name="batch")
    variables = split.init(jax.random.key(0), X)
    _, statistics = jax.vmap(lambda x: batch_norm.batch_statistics(split.apply)(variables, x[None]), axis_name="batch")(
        X
    )
    np.testing.assert_allclose(statistics["mean"][3], X.mean(0), rtol=1e-5)


class NnxNormed(nnx.Module):
    """A dense layer and a batch norm."""

    def __init__(self):
        self.dense = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
        self.norm = nnx.BatchNorm(4, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.norm(self.dense(x))


def test_nnx():
    model = NnxNormed()
    model.norm.mean[...] = jnp.full(4, jnp.inf)
    hidden = X @ np.asarray(model.dense.kernel[...])
    output, statistics = batch_norm.nnx_batch_statistics(model, X)
    np.testing.assert_allclose(statistics["norm"]["mean"][...], hidden.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(statistics["norm"]["var"][...], hidden.var(0), rtol=1e-5)
    assert np.isinf(model.norm.mean[...]).all() and model.norm.momentum == 0.99  # unchanged
    evaluated = nnx.clone(model)
    evaluated.eval()
    nnx.update(evaluated, statistics)
    np.testing.assert_allclose(evaluated(X), output, rtol=1e-5, atol=1e-5)


def test_nnx_gradients_flow_through_the_statistics():
    graph, params, rest = nnx.split(NnxNormed(), nnx.Param, ...)

    def total(params):
        _, statistics = batch_norm.nnx_batch_statistics(nnx.merge(graph, params, rest), X)
        return jnp.sum(statistics["norm"]["mean"][...])

    gradient = jax.jit(jax.grad(total))(params)
    np.testing.assert_allclose(gradient["dense"]["bias"][...], 1, rtol=1e-6)
    np.testing.assert_allclose(gradient["dense"]["kernel"][...], np.tile(X.mean(0)[:, None], 4), rtol=1e-5)


@pytest.mark.parametrize("options", [{"axis": 0}, {"axis": (0, -1)}, {"dtype": jnp.bfloat16}, {"use_scale": False}])
def test_nnx_statistics_are_those_that_momentum_zero_keeps(options):
    norm = nnx.BatchNorm(16, rngs=nnx.Rngs(0), momentum=0.0, **options)
    x = np.random.default_rng(3).normal(1.0, 2.0, (16, 3, 16)).astype(np.float32)
    if options.get("axis") == (0, -1):
        for name in ("mean", "var", "scale", "bias"):
            setattr(norm, name, type(getattr(norm, name))(jnp.ones((16, 16))))
    output, statistics = batch_norm.nnx_batch_statistics(norm, x)
    expected = norm(x)
    for name in ("mean", "var"):
        np.testing.assert_allclose(statistics[name][...], getattr(norm, name)[...], rtol=2e-6, atol=1e-5)
    np.testing.assert_allclose(output.astype(float), expected.astype(float), rtol=2e-2, atol=2e-3)


def test_nnx_without_batch_norm():
    assert not jax.tree.leaves(batch_norm.nnx_batch_statistics(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), X)[1])


def test_nnx_errors():
    model = NnxNormed()
    with pytest.raises(ValueError, match="'norm' got the shape"):
        batch_norm.nnx_batch_statistics(model, X[:1])
    shared = nnx.Sequential(model.norm, model.norm)
    with pytest.raises(ValueError, match="'layers/0' is applied twice"):
        batch_norm.nnx_batch_statistics(shared, X @ W)
    model.eval()
    with pytest.raises(ValueError, match="'norm' is in evaluation mode"):
        batch_norm.nnx_batch_statistics(model, X)


def test_running_average():
    old, new = {"a": {"mean": jnp.zeros(2), "var": jnp.ones(2)}}, {"a": {"mean": jnp.ones(2), "var": jnp.ones(2) * 3}}
    found = batch_norm.running_average(old, new)
    np.testing.assert_allclose(found["a"]["mean"], 0.1, rtol=1e-6)
    np.testing.assert_allclose(found["a"]["var"], 1.2, rtol=1e-6)


def test_population_statistics_are_those_of_all_examples(double):
    model = nn.BatchNorm(use_running_average=False)
    x = jnp.asarray(np.random.default_rng(2).normal(np.arange(5)[:, None, None], 2.0, (5, 8, 3)))
    variables = model.init(jax.random.key(0), x[0])
    train = batch_norm.batch_statistics(model.apply)
    found = batch_norm.population_statistics(train(variables, batch)[1] for batch in x)
    np.testing.assert_allclose(found["mean"], x.mean((0, 1)), rtol=1e-6)
    np.testing.assert_allclose(found["var"], x.var((0, 1)), rtol=1e-6)


def test_population_statistics_of_nested_trees_keep_what_they_do_not_know():
    batches = [
        {"a": {"mean": jnp.array(m), "var": jnp.array(1.0)}, "var": {"mean": jnp.array(m), "sigma": jnp.array(m)}}
        for m in (0.0, 2.0, 4.0)
    ]
    found = jax.tree.map(float, batch_norm.population_statistics(batches))
    assert found == {"a": {"mean": 2.0, "var": pytest.approx(1 + 8 / 3)}, "var": {"mean": 2.0, "sigma": 4.0}}
    states = [batch_norm.nnx_batch_statistics(NnxNormed(), x)[1] for x in (X[:8], X[8:])]
    whole = batch_norm.nnx_batch_statistics(NnxNormed(), X)[1]
    merged = batch_norm.population_statistics(states)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), merged, whole)


def test_population_statistics_need_a_batch():
    with pytest.raises(ValueError, match="at least one batch"):
        batch_norm.population_statistics(iter(()))
