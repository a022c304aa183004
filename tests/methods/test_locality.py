"""Rows that units share: the bounds are those of a row for each unit, and only units that read nothing alike share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxbound
from jaxbound import relax
from jaxbound.methods.interval import propagate
from jaxbound.methods.problem import prepare
from tests import soundness

pytestmark = pytest.mark.usefixtures("double")

SIZE = 8
OUT = 3


def conv(x, features, *, window=3, seed=0, padding="SAME", **options):
    """A convolution of an image [H, W, C] with fixed weights and a bias."""
    channels = x.shape[-1] // options.get("feature_group_count", 1)
    kernel = jnp.asarray(soundness.weights(window, window, channels, features, seed=seed), x.dtype) / window
    options = {"window_strides": (1, 1), **options}
    y = lax.conv_general_dilated(
        x[None], kernel, padding=padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options
    )
    return y[0] + jnp.asarray(soundness.weights(features, seed=seed + 9), x.dtype)


def pool(x, init, reduce, window=2):
    return lax.reduce_window(x, init, reduce, (window, window, 1), (2, 2, 1), "VALID")


def gathered(x):
    return x[::-1] + jnp.take(x, jnp.array([1, 0, 3, 2, 5, 4, 7, 6]), axis=1)


# Arrays of units [...] of an image [8, 8, 2], whose bounds are found by rows, and the spacing of those that share one;
# None where every unit needs its own.
UNITS = {
    "strided": (lambda x: conv(jnp.tanh(conv(x, 4)), 4, window_strides=(2, 2)), (3, 3, 4)),
    "one_sided_padding": (
        lambda x: conv(jax.nn.relu(conv(x, 2, window=2, padding=[(1, 0), (2, 1)])), 3, window=2, padding=[(0, 2)] * 2),
        (3, 3, 3),
    ),
    "dilated": (lambda x: conv(jnp.sin(conv(x, 2)), 2, window=2, rhs_dilation=(1, 2)), (4, 5, 2)),
    "transposed": (
        lambda x: conv(jnp.tanh(conv(x[::2, ::2], 2)), 2, lhs_dilation=(2, 2), padding=[(1, 2), (2, 1)]),
        (7, 7, 2),
    ),
    "grouped": (lambda x: conv(jax.nn.relu(conv(x, 4, feature_group_count=2)), 4, feature_group_count=2), (5, 5, 2)),
    "depthwise": (lambda x: conv(jax.nn.relu(conv(x, 2, feature_group_count=2)), 2, feature_group_count=2), (5, 5, 1)),
    "average_pool": (lambda x: conv(pool(jnp.exp(conv(x, 4)), 0.0, lax.add) / 4, 5, window=1), (2, 2, 5)),
    "max_pool": (lambda x: conv(pool(conv(x, 4), -jnp.inf, lax.max), 5, window=1), (2, 2, 5)),
    "residual": (lambda x: jnp.concatenate([x] * 2, -1) + conv(jax.nn.relu(conv(x, 4)), 4), (5, 5, 4)),
    "skip_of_a_layer": (lambda x: (lambda y: y + conv(jax.nn.relu(y), 4))(conv(x, 4, seed=1)), (5, 5, 4)),
    "moved": (
        lambda x: jnp.transpose(jnp.concatenate([x, conv(jnp.abs(x), 2)[::-1]], 2), (2, 0, 1)).reshape(4, 8, 8, 1),
        (4, 8, 3, 1),
    ),
    "padded_and_masked": (
        lambda x: conv(jnp.where(jnp.arange(8)[:, None, None] > 2, jnp.pad(jnp.cos(x[1:]), ((0, 1), (0, 0), (0, 0)),
                       constant_values=0.7), 0.3), 2, padding="VALID"),
        (3, 3, 2),
    ),
    "flattened": (lambda x: jnp.ravel(conv(jnp.tanh(x), 2)), (2 * 16 + 6,)),
    "elementwise": (lambda x: 2 * jnp.tanh(x) * jnp.exp(x) - 1, (1, 1, 1)),
    "mean_subtracted": (lambda x: jnp.tanh(x) - jnp.mean(x), None),
    "cumulative": (lambda x: jnp.cumsum(jnp.tanh(x).ravel()), None),
    "dense": (lambda x: soundness.weights(64, 128) @ jnp.tanh(x.ravel()), None),
    "dense_in_part": (lambda x: jnp.tanh(x) + jnp.tanh(x.ravel() @ soundness.weights(128, 2)), None),
    "flipped": (lambda x: conv(jax.nn.relu(x + x[::-1]), 2), (8, 3, 2)),
    "gathered": (lambda x: gathered(jnp.tanh(x)), (8, 2, 1)),
    "loop": (lambda x: lax.fori_loop(0, 2, lambda _, y: jnp.tanh(conv(y, 2)), x), None),
}  # fmt: skip


def through(units):
    """A network of three outputs whose last nonlinear operation takes these units."""

    def fn(x):
        y = units(x).ravel()
        return jnp.tanh(y) @ jnp.asarray(soundness.weights(y.size, OUT), y.dtype) / 4

    return fn


def image_box(seed=0, radius=0.2):
    center = jax.random.uniform(jax.random.key(seed), (SIZE, SIZE, 2), float)
    return jaxbound.linf_ball(center, radius, clip=None)


def sharing(units, box):
    """What `shared_rows` says of the units."""
    problem = prepare(units, (box,), {})
    relaxations = propagate(problem.program, problem.sets, relax.adaptive).relaxations
    return jaxbound.shared_rows(problem.program, problem.sets, relaxations)


def bounds(fn, **options):
    """CROWN's bounds, with intermediate ones by CROWN alone, so that they depend on the rows."""
    return jaxbound.crown(fn, combine=lambda _, found: found, **options)


def assert_same(found, expected):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-11), found, expected)


QUICK = {"strided", "max_pool", "skip_of_a_layer"}
TOLD = {
    "one_sided_padding",
    "dilated",
    "depthwise",
    "average_pool",
    "moved",
    "flattened",
    "dense",
    "cumulative",
    "loop",
}
SLOW = pytest.mark.slow(reason="each compiles full CROWN, or a network's Jacobian")


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in TOLD else SLOW) for name in UNITS])
def test_the_spacing_and_that_units_of_a_row_read_no_input_in_common(name):
    units, spacing = UNITS[name]
    box = image_box()
    found = sharing(units, box)
    assert (found and found.spacing) == spacing
    if found is None:
        return
    jacobian = np.asarray(jax.jit(jax.jacrev(units))(box.lower))
    reads = (jacobian != 0).reshape(*found.shape, -1)
    for corner in np.ndindex(found.spacing):
        row = reads[tuple(slice(at, None, step) for at, step in zip(corner, found.spacing, strict=True))]
        assert (row.reshape(-1, row.shape[-1]).sum(axis=0) <= 1).all()


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in QUICK else SLOW) for name, (_, spacing) in UNITS.items() if spacing],
)
def test_shared_rows_give_the_bounds_of_single_rows(name):
    fn, box = through(UNITS[name][0]), image_box()
    shared, single = (bounds(fn, rows=rows) for rows in (jaxbound.shared_rows, jaxbound.single_rows))
    found, expected = jax.jit(lambda box: (shared(box), single(box)))(box)
    assert_same(found, expected)
    xs = jax.vmap(lambda unit: soundness.point(box, unit))(jnp.array(soundness.units(box, 100)))
    values = jax.vmap(fn)(xs)
    assert (found.lower <= values + 1e-9).all() and (values <= found.upper + 1e-9).all()


@SLOW
def test_chunks_of_shared_rows_change_nothing():
    few, all_at_once = (bounds(through(UNITS["elementwise"][0]), chunk=chunk) for chunk in (1, 512))
    assert_same(*jax.jit(lambda box: (few(box), all_at_once(box)))(image_box()))
    few, all_at_once = (bounds(through(UNITS["max_pool"][0]), chunk=chunk) for chunk in (7, 512))
    assert_same(*jax.jit(lambda box: (few(box), all_at_once(box)))(image_box()))


def test_units_on_a_ball_have_rows_of_their_own():
    units, center = UNITS["strided"][0], image_box().lower
    ball = jaxbound.l2_ball(center, 0.3)
    assert sharing(units, ball) is None
    found = jax.jit(bounds(through(units)))(ball)
    assert np.isfinite(found.lower).all() and (found.lower <= through(units)(center)).all()


def test_few_units_have_rows_of_their_own():
    assert sharing(lambda x: jnp.tanh(x).ravel()[:63], image_box()) is None
    assert sharing(lambda x: jnp.tanh(x).ravel()[:64], image_box()).spacing == (1,)


def test_an_index_that_is_computed_when_the_program_runs():
    def units(x, first):
        return conv(lax.dynamic_slice(jnp.tanh(x), (first, 0, 0), (6, 8, 2)), 2)

    shared, single = (bounds(lambda x, k: through(lambda x: units(x, k))(x), rows=rows)
                      for rows in (jaxbound.shared_rows, jaxbound.single_rows))  # fmt: skip
    assert sharing(lambda x: units(x, 1), image_box()).spacing == (3, 3, 2)
    assert_same(*jax.jit(lambda box, k: (shared(box, k), single(box, k)))(image_box(), 1))


@SLOW
def test_several_inputs():
    def units(x, y):
        return conv(jnp.tanh(conv(x, 2)) * y, 2)

    def fn(x, y):
        return through(lambda x: units(x, y))(x)

    shared, single = (bounds(fn, rows=rows) for rows in (jaxbound.shared_rows, jaxbound.single_rows))
    assert_same(*jax.jit(lambda x, y: (shared(x, y), single(x, y)))(image_box(), image_box(1)))


def test_a_perturbed_kernel_is_read_by_all_units():
    kernel = jaxbound.linf_ball(jnp.asarray(soundness.weights(3, 3, 2, 2), float), 0.01, clip=None)

    def units(x, kernel):
        return lax.conv_general_dilated(
            jnp.tanh(x)[None], kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    problem = prepare(units, (image_box(), kernel), {})
    relaxations = propagate(problem.program, problem.sets, relax.adaptive).relaxations
    assert jaxbound.shared_rows(problem.program, problem.sets, relaxations) is None


# Composition.


def loss(params, image, **options):
    kernel, last = params

    def fn(x):
        y = jax.nn.relu(conv(x, 3))
        y = lax.conv_general_dilated(y[None], kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return jnp.tanh(y + 0.1).ravel() @ last

    box = jaxbound.linf_ball(image, 0.1, clip=None)
    return jaxbound.crown(fn, **options)(box, spec=jaxbound.margin_spec(1, 4, float))


def parameters():
    return jnp.asarray(soundness.weights(3, 3, 3, 8), float) / 5, jnp.asarray(soundness.weights(128, 4), float) / 8


def images(count=4):
    return jax.random.uniform(jax.random.key(3), (count, SIZE, SIZE, 2), float)


@SLOW
def test_gradients_are_those_of_single_rows():
    def grad(rows):
        return jax.value_and_grad(lambda p, x: jnp.sin(loss(p, x, rows=rows, chunk=40)).sum(), (0, 1))

    found, expected = jax.jit(lambda p, x: [grad(r)(p, x) for r in (jaxbound.shared_rows, jaxbound.single_rows)])(
        parameters(), images()[0]
    )
    assert np.abs(expected[1][1]).max() > 1e-3
    assert_same(found, expected)


@SLOW
def test_a_batch_is_a_loop():
    batched = jax.jit(jax.vmap(loss, (None, 0)))(parameters(), images())
    one = jax.jit(loss)
    assert_same(batched, jnp.stack([one(parameters(), image) for image in images()]))


@SLOW
def test_rows_spread_over_devices_and_batches_in_shard_map():
    types = (AxisType.Auto,)
    spread = NamedSharding(jax.make_mesh((3,), ("rows",), axis_types=types), PartitionSpec("rows"))
    expected = jax.jit(jax.vmap(functools.partial(loss, rows=jaxbound.single_rows), (None, 0)))(parameters(), images())
    found = jax.jit(jax.vmap(functools.partial(loss, chunk=50, sharding=spread), (None, 0)))(parameters(), images())
    assert_same(found, expected)
    whole, split = PartitionSpec(), PartitionSpec("batch")
    mapped = jax.shard_map(
        jax.vmap(loss, (None, 0)), mesh=jax.make_mesh((4,), ("batch",), axis_types=types), in_specs=(whole, split),
        out_specs=split,
    )  # fmt: skip
    assert_same(jax.jit(mapped)(parameters(), images()), expected)
