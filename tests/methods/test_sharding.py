"""Bounds on eight devices are those on one: under `jit` with shardings, `pmap`, `shard_map`, `scan`, with donation."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxbound

pytestmark = pytest.mark.usefixtures("double")

METHODS = {
    "ibp": jaxbound.ibp,
    "crown_ibp": jaxbound.crown_ibp,
    "lbp": jaxbound.lbp,
    "crown": functools.partial(jaxbound.crown, chunk=10),
}
BATCH = 16


def mesh(**axes):
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * len(axes))


def placed(tree, mesh, *axes):
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(*axes)))


def parameters(width=12):
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = [(3, 3, 1, 4), (4 * 4 * 4, width), (width, 5)]
    return [jax.random.normal(k, s, float) / s[-2] ** 0.5 for k, s in zip(keys, shapes, strict=True)]


def network(params, x):
    kernel, hidden, last = params
    x = jax.lax.conv_general_dilated(x[None], kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jnp.tanh(jax.nn.relu(x).ravel() @ hidden) @ last


def images():
    return jax.random.uniform(jax.random.key(1), (BATCH, 8, 8, 1), float)


def margins(method, params, image):
    return method(network)(params, jaxbound.linf_ball(image, 0.03), spec=jaxbound.margin_spec(2, 5, float))


def batched(method):
    return jax.vmap(functools.partial(margins, method), (None, 0))


def loss(method, params, images):
    return jnp.mean(jax.nn.softplus(-batched(method)(params, images)))


def assert_close(found, expected):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-13), found, expected)


def with_methods(*names, slow=()):
    marks = pytest.mark.slow(reason="a variant of another method")
    cases = [pytest.param(METHODS[name], id=name, marks=marks if name in slow else ()) for name in (*names, *slow)]
    return pytest.mark.parametrize("method", cases)


@with_methods("ibp", "crown", slow=["crown_ibp", "lbp"])
def test_jit_of_sharded_arrays(method):
    data = mesh(data=8)
    arguments = placed(parameters(), data), placed(images(), data, "data")
    found = jax.jit(batched(method))(*arguments)
    assert found.sharding.spec == PartitionSpec("data")
    assert_close(found, jax.jit(batched(method))(parameters(), images()))


@with_methods("crown_ibp", slow=["crown"])
def test_gradients_over_sharded_arrays(method):
    data = mesh(data=8)
    grad = jax.jit(jax.grad(functools.partial(loss, method)))
    found = grad(placed(parameters(), data), placed(images(), data, "data"))
    assert_close(found, grad(parameters(), images()))


@with_methods("crown_ibp", slow=["ibp"])
def test_parameters_sharded_over_a_second_axis(method):
    both = mesh(data=2, model=4)
    grad = jax.jit(jax.grad(functools.partial(loss, method)))
    params = [placed(p, both, *[None] * (p.ndim - 1), "model") for p in parameters(width=8)[:2]]
    params.append(placed(parameters(width=8)[2], both))
    assert_close(grad(params, placed(images(), both, "data")), grad(parameters(width=8), images()))


@with_methods("crown_ibp", slow=["ibp"])
def test_pmap(method):
    split = images().reshape(8, BATCH // 8, 8, 8, 1)
    found = jax.pmap(batched(method), in_axes=(None, 0))(parameters(), split)
    assert_close(found.reshape(BATCH, -1), jax.jit(batched(method))(parameters(), images()))

    def averaged(params, images):
        return jax.lax.pmean(jax.grad(functools.partial(loss, method))(params, images), "devices")

    gradients = jax.pmap(averaged, "devices", in_axes=(None, 0))(parameters(), split)
    expected = jax.jit(jax.grad(functools.partial(loss, method)))(parameters(), images())
    assert_close(jax.tree.map(lambda g: g[3], gradients), expected)


@with_methods("crown", slow=["lbp"])
@pytest.mark.slow(reason="compiles full CROWN twice, and its gradient")
def test_shard_map_with_its_checks_on(method):
    whole, split = PartitionSpec(), PartitionSpec("data")
    spread = functools.partial(jax.shard_map, mesh=mesh(data=8), in_specs=(whole, split))
    found = jax.jit(spread(batched(method), out_specs=split))(parameters(), images())
    assert_close(found, jax.jit(batched(method))(parameters(), images()))

    def averaged(params, images):
        return jax.lax.pmean(loss(method, params, images), "data")

    gradients = jax.jit(jax.grad(spread(averaged, out_specs=whole)))(parameters(), images())
    assert_close(gradients, jax.jit(jax.grad(functools.partial(loss, method)))(parameters(), images()))


@with_methods("crown_ibp")
def test_scan_over_sharded_batches(method):
    data, split = mesh(data=8), images().reshape(2, 8, 8, 8, 1)

    def accumulate(total, batch):
        value, gradient = jax.value_and_grad(functools.partial(loss, method))(params, batch)
        return jax.tree.map(jnp.add, total, gradient), value

    params = placed(parameters(), data)
    zeros = jax.tree.map(jnp.zeros_like, params)
    found, _ = jax.jit(lambda zeros, split: jax.lax.scan(accumulate, zeros, split))(
        zeros, placed(split, data, None, "data")
    )
    expected = jax.jit(jax.grad(functools.partial(loss, method)))(parameters(), images())
    assert_close(jax.tree.map(lambda g: g / 2, found), expected)


@with_methods("crown_ibp")
@pytest.mark.slow(reason="a use of what the gradients test")
def test_donated_parameters(method):
    def step(params, images):
        gradients = jax.grad(functools.partial(loss, method))(params, images)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradients)

    data = mesh(data=8)
    given, batch = placed(parameters(), data), placed(images(), data, "data")
    found = jax.jit(step, donate_argnums=0)(given, batch)
    assert all(leaf.is_deleted() for leaf in given)
    assert_close(found, jax.jit(step)(parameters(), images()))


# Rows spread over devices.

SPREAD = {"crown_ibp": jaxbound.crown_ibp, "crown": functools.partial(jaxbound.crown, chunk=50)}


@pytest.mark.parametrize(
    "name, axes",
    [
        ("crown", {"data": 2, "model": 3}),
        pytest.param("crown_ibp", {"model": 8}, marks=pytest.mark.slow(reason="the last rows of crown")),
    ],
)
def test_rows_spread_over_devices(name, axes):
    """Four rows of margins and two for each of 64 and 12 neurons: numbers that eight or three do not divide."""
    where = mesh(**axes)
    spread = functools.partial(SPREAD[name], sharding=NamedSharding(where, PartitionSpec("model")))
    arguments = placed(parameters(), where), placed(images(), where, *(["data"] if "data" in axes else []))
    assert_close(jax.jit(batched(spread))(*arguments), jax.jit(batched(SPREAD[name]))(parameters(), images()))
    grad, expected = (jax.jit(jax.grad(functools.partial(loss, m))) for m in (spread, SPREAD[name]))
    assert_close(grad(*arguments), expected(parameters(), images()))


@pytest.mark.parametrize("name", SPREAD)
def test_what_spreads_no_rows(name):
    where = mesh(model=8)
    with pytest.raises(TypeError, match="sharding must be a jax.sharding.NamedSharding.*got P"):
        SPREAD[name](network, sharding=PartitionSpec("model"))
    for spec in (PartitionSpec(), PartitionSpec(None), PartitionSpec("model", None)):
        with pytest.raises(ValueError, match="sharding spreads rows, which are one axis"):
            SPREAD[name](network, sharding=NamedSharding(where, spec))
    explicit = jax.make_mesh((8,), ("model",), axis_types=(AxisType.Explicit,))
    with pytest.raises(ValueError, match=r"axis_types=\(jax.sharding.AxisType.Auto,\)"):
        SPREAD[name](network, sharding=NamedSharding(explicit, PartitionSpec("model")))


@pytest.mark.slow(reason="every operation is compiled on its own")
def test_rows_spread_without_jit():
    where = mesh(data=2, model=4)
    spread = functools.partial(SPREAD["crown_ibp"], sharding=NamedSharding(where, PartitionSpec("model")))
    found = margins(spread, parameters(), images()[0])
    assert_close(found, margins(SPREAD["crown_ibp"], parameters(), images()[0]))


@pytest.mark.slow(reason="compiles full CROWN twice")
def test_an_output_without_a_spec_is_spread_as_well():
    spread = functools.partial(SPREAD["crown"], sharding=NamedSharding(mesh(model=8), PartitionSpec("model")))
    found, expected = (
        jax.jit(lambda x, m=m: m(network)(parameters(), jaxbound.linf_ball(x, 0.03)))(images()[0])
        for m in (spread, SPREAD["crown"])
    )
    assert_close(found, expected)


def test_memory_falls_with_the_number_of_devices():
    where = mesh(model=8)
    crown = functools.partial(jaxbound.crown, chunk=1024)
    spread = functools.partial(crown, sharding=NamedSharding(where, PartitionSpec("model")))
    params, image = parameters(width=512), images()[0]
    one = jax.jit(functools.partial(margins, crown)).lower(params, image).compile()
    eight = jax.jit(functools.partial(margins, spread)).lower(placed(params, where), placed(image, where)).compile()
    first, second = (compiled.memory_analysis().temp_size_in_bytes for compiled in (one, eight))
    assert second < 0.2 * first


def test_the_only_collective_of_a_sharded_gradient_is_its_sum():
    data = mesh(data=8)
    grad = jax.jit(jax.grad(functools.partial(loss, jaxbound.crown_ibp)))
    text = grad.lower(placed(parameters(), data), placed(images(), data, "data")).compile().as_text()
    found = re.findall(r" (all-\w+|collective-\w+|reduce-scatter)(?:-start)?\(", text)
    assert found and set(found) == {"all-reduce"}
