import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.flatten_util import ravel_pytree

import jaxbound
from jaxbound.methods import images
from jaxbound.testing import check_support
from tests import soundness

METHODS = {
    "ibp": jaxbound.ibp,
    "crown_ibp": jaxbound.crown_ibp,
    "crown": functools.partial(jaxbound.crown, chunk=8),
    "lbp": jaxbound.lbp,
}
COSTLY = {
    "crown_lbp": jaxbound.crown_lbp,
    "relaxed_crown": functools.partial(jaxbound.relaxed_crown, depth=1),
    "alpha_crown": functools.partial(jaxbound.alpha_crown, steps=2),
}
LINEAR = [name for name in METHODS if name != "ibp"]  # exact for an affine function on any set


def as_float(*shape, seed=0):
    return jnp.asarray(soundness.weights(*shape, seed=seed), float)


# Sets.


def of_points(c, points):
    return jnp.max(jnp.tensordot(points, c, c.ndim, precision=jax.lax.Precision.HIGHEST))


def polytope(shape=(2, 3), count=7, seed=0):
    points = as_float(count, *shape, seed=seed)
    return jaxbound.support_set(of_points, points, shape=shape), points


def inside(points, count=400, seed=0):
    """The points and random means of them."""
    shares = np.random.default_rng(seed).dirichlet(np.full(len(points), 0.3), count)
    return jnp.concatenate([points, jnp.tensordot(jnp.asarray(shares, points.dtype), points, 1)])


def disk(c, center, radius):
    return jnp.sum(c * center) + jnp.sqrt(jnp.sum((radius * c) ** 2))


def network(params, x):
    """Reads x along two paths."""
    w, v = params
    return v @ jax.nn.relu(jnp.tensordot(w, x, x.ndim)) + jnp.sum(x)


def parameters(shape=(2, 3)):
    return as_float(4, *shape, seed=1), as_float(3, 4, seed=2)


def enclosed(bound, values):
    slack = soundness.tolerance() * (1 + jnp.abs(values))
    assert np.isfinite(bound.lower).all() and np.isfinite(bound.upper).all()
    assert (bound.lower <= values + slack).all() and (values <= bound.upper + slack).all()


# Sets of one's own.


def curved_network(x):
    return network(parameters(), x) * jnp.tanh(jnp.sum(x)) - jnp.sum(x**2)


@pytest.mark.parametrize("method", [*METHODS, *COSTLY])
def test_sound_on_a_polytope(method, double):
    region, points = polytope()
    fn = curved_network if method in METHODS else functools.partial(network, parameters())
    bound = jax.jit({**METHODS, **COSTLY}[method](fn))(region)
    enclosed(bound, jax.vmap(fn)(inside(points)))


def test_sound_in_single_precision():
    region, points = polytope()
    for method in (jaxbound.ibp, jaxbound.crown_ibp):
        enclosed(jax.jit(method(curved_network))(region), jax.vmap(curved_network)(inside(points)))


@pytest.mark.parametrize("method", LINEAR)
def test_exact_for_affine_functions(method, double):
    region, points = polytope()
    w = as_float(5, 2, 3, seed=3)
    bound = jax.jit(METHODS[method](lambda x: jnp.tensordot(w, x, 2) + 1.0))(region)
    values = jnp.tensordot(points, w, ((1, 2), (1, 2))) + 1.0
    np.testing.assert_allclose(bound.lower, values.min(axis=0), rtol=1e-12)
    np.testing.assert_allclose(bound.upper, values.max(axis=0), rtol=1e-12)


@pytest.mark.parametrize("limit", [2**22, 0])
def test_ibp_takes_the_set_through_the_first_product_where_that_is_cheap(limit, double, monkeypatch):
    monkeypatch.setattr(images, "_LARGEST_MATRIX", limit)
    region, points = polytope()
    np.testing.assert_allclose(region.box.lower, points.min(axis=0), rtol=1e-12)
    np.testing.assert_allclose(region.box.upper, points.max(axis=0), rtol=1e-12)
    w, b = as_float(5, 3, seed=3), as_float(2, 3, seed=4)

    def fn(x):
        """Before the product elements are scaled, shifted, added up, and read once, twice and never."""
        return w @ jnp.sum((x - b) * b, axis=0)[jnp.array([0, 2, 2])] + 1.0

    values = jax.vmap(fn)(points)
    found = jax.jit(jaxbound.ibp(fn))(region)
    if limit:
        np.testing.assert_allclose(found.lower, values.min(axis=0), rtol=1e-12)
        np.testing.assert_allclose(found.upper, values.max(axis=0), rtol=1e-12)
    else:
        boxed = jax.jit(jaxbound.ibp(fn))(region.box)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-12), found, boxed)
        assert (found.lower < values.min(axis=0) - 1e-3).all()
    elided = jaxbound.ibp(fn)(region, spec=jnp.eye(5))
    np.testing.assert_allclose(elided, values.min(axis=0), rtol=1e-12)


LINEAR_OPERATIONS = {
    "gather": lambda x: x[jnp.array([0, 2, 2, 1])],
    "scatter_add": lambda x: jnp.zeros(6).at[jnp.array([1, 3, 5, 1])].add(x),
    "scatter": lambda x: jnp.ones(6).at[jnp.array([1, 3, 5, 2])].set(x),
    "dynamic_slices": lambda x: lax.dynamic_update_slice(jnp.ones(6), lax.dynamic_slice(x, (1,), (2,)), (1,)),
    "pad": lambda x: lax.pad(x, jnp.array(2.0), [(1, 2, 1)]),
    "concatenate": lambda x: jnp.tile(jnp.stack([jnp.concatenate([x, jnp.ones(4)]), jnp.ones(8)]), 2),
    "select": lambda x: jnp.where(jnp.array([True, False, True, False]), x, 3.0),
    "split": lambda x: jnp.roll(jnp.flip(jnp.split(x, 2)[1]), 1),
    "reshape": lambda x: jnp.squeeze(x.reshape(1, 2, 2).transpose(2, 0, 1)),
    "broadcast": lambda x: jnp.broadcast_to(x[:, None], (4, 3))[::2],
    "arithmetic": lambda x: (1.0 - x) * jnp.arange(4.0) / 3.0 + 1.0,
    "sums": lambda x: jnp.cumsum(x) + jnp.sum(jnp.ones(4)),
    "convolution": lambda x: lax.conv_general_dilated(
        x.reshape(1, 2, 2, 1), as_float(2, 2, 1, 2), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    ),
}


@pytest.mark.parametrize("name", LINEAR_OPERATIONS)
def test_intervals_are_exact_through_linear_operations(name, double):
    region, points = polytope((4,))
    operation = LINEAR_OPERATIONS[name]
    w = as_float(3, jax.eval_shape(operation, points[0]).size, seed=3)

    def fn(x):
        return operation(x) if name == "convolution" else w @ operation(x).ravel()

    values = jax.vmap(fn)(points)
    found = jax.jit(jaxbound.ibp(fn))(region)
    np.testing.assert_allclose(found.lower, values.min(axis=0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.upper, values.max(axis=0), rtol=1e-12, atol=1e-12)


def test_a_blocked_derivative_does_not_shrink_the_set(double):
    region, points = polytope()
    w = as_float(5, 2, 3, seed=3)
    fn = lambda x: jnp.tensordot(w, jax.lax.stop_gradient(2 * x), 2)  # noqa: E731
    for method in METHODS.values():
        enclosed(jax.jit(method(fn))(region), jax.vmap(fn)(points))


@pytest.mark.parametrize("method", ["ibp", "crown_ibp"])
def test_shard_map_is_vmap(method, double):
    regions = jax.vmap(lambda p: jaxbound.support_set(of_points, p, shape=(2, 3)))(as_float(2, 7, 2, 3))
    soundness.assert_shard_map_is_vmap(METHODS[method](network), parameters(), regions)


def test_a_disk_is_the_euclidean_ball(double):
    center, radius = as_float(2, 3), jnp.abs(as_float(2, 3, seed=4))
    region = jaxbound.support_set(disk, center, radius, shape=(2, 3))
    ball = jaxbound.Ball(center, radius, 2)
    fn = functools.partial(network, parameters())
    for method in (jaxbound.ibp, jaxbound.crown_ibp, jaxbound.crown):
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-9),
            jax.tree.leaves(method(fn)(jaxbound.Ball(center, radius, 2, region.box))),
            jax.tree.leaves(method(fn)(region)),
        )
    np.testing.assert_allclose(region.box.upper, jaxbound.sets.bounding_box(ball).upper, rtol=1e-12)


def test_the_box_cuts(double):
    """What the support function describes is intersected with the box: the better of both bounds."""
    center = jnp.zeros(2)
    half = jaxbound.Interval(jnp.array([0.0, -1.0]), jnp.array([1.0, 1.0]))
    region = jaxbound.support_set(disk, center, jnp.ones(2), box=half)
    rows = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [-1.0, -1.0]])
    found = jaxbound.crown_ibp(lambda x: x)(region, spec=rows)
    np.testing.assert_allclose(found, [0.0, -1.0, -1.0, -np.sqrt(2)], rtol=1e-12)


@pytest.mark.parametrize("method", ["ibp", "crown_ibp", "crown"])
def test_batches_of_sets_are_mapped(method, double):
    points = as_float(3, 7, 2, 3)
    regions = jax.vmap(lambda p: jaxbound.support_set(of_points, p, shape=(2, 3)))(points)
    bound = METHODS[method](functools.partial(network, parameters()))
    found = jax.jit(jax.vmap(bound))(regions)
    for k in range(3):
        each = bound(jaxbound.support_set(of_points, points[k], shape=(2, 3)))
        np.testing.assert_allclose(found.lower[k], each.lower, rtol=1e-10)


@pytest.mark.parametrize(
    "method, support", [("ibp", "disk"), ("crown_ibp", "points"), ("crown_ibp", "disk"), ("crown", "disk")]
)
def test_gradients_are_those_of_finite_differences(method, support, double):
    """With respect to what the set depends on, and to the function's own parameters."""

    def lowest(data, params):
        if support == "points":
            region = jaxbound.support_set(of_points, data[0], shape=(2, 3))
        else:
            region = jaxbound.support_set(disk, data[1], data[2], shape=(2, 3))
        bound = METHODS[method](network, **({"relu": jaxbound.relax.tight} if method != "ibp" else {}))
        return jnp.sum(bound(params, region, spec=as_float(2, 3, seed=6)))

    data = (as_float(7, 2, 3), as_float(2, 3, seed=7), jnp.abs(as_float(2, 3, seed=8)))
    fn = jax.jit(lowest)
    slopes = jax.jit(jax.grad(lowest, (0, 1)))(data, parameters())
    steps = jax.tree.map(lambda x: as_float(*x.shape, seed=9), (data, parameters()))
    expected = sum(jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(slopes), jax.tree.leaves(steps), strict=True))

    def moved(size):
        return fn(*jax.tree.map(lambda x, d: x + size * d, (data, parameters()), steps))

    np.testing.assert_allclose((moved(1e-6) - moved(-1e-6)) / 2e-6, expected, rtol=1e-5)


def test_coefficients_of_zero_have_a_gradient(double):
    """There the derivative of a norm is none; any point of the set will do."""

    def lowest(scale, center):
        region = jaxbound.support_set(disk, center, jnp.ones(2), shape=(2,))
        return jaxbound.crown_ibp(lambda x: scale * jnp.sum(x))(region).lower

    assert lowest(0.0, jnp.ones(2)) == 0
    assert np.isfinite(jax.grad(lowest, (0, 1))(0.0, jnp.ones(2))[0])
    np.testing.assert_array_equal(jax.grad(lowest, 1)(0.0, jnp.ones(2)), 0)


def test_large_shapes_find_their_box_in_blocks(double, monkeypatch):
    monkeypatch.setattr(jaxbound.support, "_LARGEST_BLOCK", 20)
    region, points = polytope()
    np.testing.assert_allclose(region.box.lower, points.min(axis=0), rtol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_invalid_sets_bound_nothing(method, double):
    region, points = polytope()
    bound = jax.jit(METHODS[method](functools.partial(network, parameters())))
    box = jaxbound.Interval(region.box.lower * jnp.nan, region.box.upper)
    for invalid in (
        jaxbound.SupportSet(of_points, (points * jnp.nan,), box),
        jaxbound.SupportSet(of_points, (points,), box),
        jaxbound.SupportSet(of_points, (points,), jaxbound.Interval(*region.box[::-1])),
    ):
        found = bound(invalid)
        assert np.isneginf(found.lower).all() and np.isposinf(found.upper).all()


def test_nan_in_the_support_function_alone_verifies_nothing(double):
    region, points = polytope()
    broken = jaxbound.SupportSet(of_points, (points * jnp.nan,), region.box)
    assert np.isneginf(jaxbound.crown_ibp(lambda x: jnp.sum(x))(broken).lower)


def test_several_sets_and_constants(double):
    region, points = polytope()
    box = jaxbound.linf_ball(jnp.array([0.5]), 0.1)
    found = jaxbound.crown_ibp(lambda x, y, z: jnp.sum(x) + z * y[0])(region, box, 2.0)
    np.testing.assert_allclose(found.upper, points.sum((1, 2)).max() + 1.2, rtol=1e-12)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"must return one number.*the shape \(2,\)"):
        jaxbound.support_set(lambda c: jnp.abs(c), shape=(2,))
    with pytest.raises(ValueError, match="returns a pytree"):
        jaxbound.support_set(lambda c: (c[0], c[1]), shape=(2,))
    with pytest.raises(TypeError, match="floating point number, got int32"):
        jaxbound.support_set(lambda c: jnp.argmax(c), shape=(2,))
    with pytest.raises(ValueError, match="the shape of its elements, or a box"):
        jaxbound.support_set(lambda c: jnp.sum(c))
    with pytest.raises(TypeError, match="must be a jaxbound.Interval, got tuple"):
        jaxbound.support_set(lambda c: jnp.sum(c), box=(0, 1))
    box = jaxbound.Interval(jnp.zeros(2), jnp.ones(2))
    with pytest.raises(ValueError, match=r"the shape \(2,\), not \(3,\)"):
        jaxbound.support_set(lambda c: jnp.sum(c), box=box, shape=(3,))
    with pytest.raises(ValueError, match="must return one number"):
        jaxbound.ibp(jnp.sum)(jaxbound.SupportSet(jnp.abs, (), box))
    with pytest.raises(ValueError, match="lower > upper at 2 of its 2"):
        jaxbound.ibp(jnp.sum)(jaxbound.SupportSet(jnp.sum, (), jaxbound.Interval(*box[::-1])))
    with pytest.raises(TypeError, match="its `box` contains it"):
        jaxbound.contains(jaxbound.support_set(jnp.sum, box=box), jnp.zeros(2))
    with pytest.raises(Exception) as caught:  # a batch that is not mapped
        jaxbound.support_set(disk, jnp.zeros((5, 2)), jnp.ones((5, 3)), shape=(5, 2))
    assert "mapped by jax.vmap" in "".join(caught.value.__notes__)


# One set over several inputs, as a set of a flat vector.


@pytest.mark.parametrize("p", [1, 2, 3, np.inf])
def test_inputs_that_share_a_radius(p, double):
    inputs = {"first": as_float(2, 2), "second": as_float(3, seed=1)}
    flat, unravel = ravel_pytree(inputs)
    v, w = as_float(4, 2, 2, seed=2), as_float(4, 3, seed=3)

    def affine(x):
        return jnp.tensordot(v, x["first"], 2) + w @ x["second"]

    radius = 0.3
    rows = np.concatenate([np.reshape(v, (4, 4)), w], axis=1)
    width = radius * np.linalg.norm(rows, jaxbound.sets.dual_exponent(p), axis=1)
    joint = jaxbound.Ball(flat, jnp.full_like(flat, radius), p)
    for method in LINEAR:
        found = jax.jit(METHODS[method](lambda z: affine(unravel(z))))(joint)
        np.testing.assert_allclose(found.upper, affine(inputs) + width, rtol=1e-10)
    steps = soundness.as_float(soundness.units(joint, 300))
    values = jax.vmap(lambda u: jax.nn.relu(affine(unravel(flat + radius * u))))(steps)
    for method in METHODS.values():
        enclosed(jax.jit(method(lambda z: jax.nn.relu(affine(unravel(z)))))(joint), values)


def test_a_support_function_of_several_inputs(double):
    """Two points that move by steps whose l_1 lengths in one and whose l_2 lengths in the other sum to one."""
    inputs = {"first": as_float(2), "second": as_float(3, seed=1)}
    flat, unravel = ravel_pytree(inputs)

    def support(c, flat):
        parts = unravel(c)
        longest = jnp.maximum(jnp.max(jnp.abs(parts["first"])), jaxbound.sets.norm(parts["second"], 2))
        return c @ flat + longest

    region = jaxbound.support_set(support, flat, shape=flat.shape)
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(300, 2)), rng.normal(size=(300, 3))
    share = rng.uniform(size=(300, 1))
    a, b = a / np.linalg.norm(a, 1, axis=1)[:, None] * share, b / np.linalg.norm(b, axis=1)[:, None] * (1 - share)
    points = flat + jnp.concatenate([a, b], axis=1)
    check_support(region, points)
    w = as_float(4, 5, seed=2)
    fn = lambda z: w @ jnp.concatenate([unravel(z)["first"] * unravel(z)["second"][0], unravel(z)["second"]])  # noqa: E731
    for method in METHODS.values():
        enclosed(jax.jit(method(fn))(region), jax.vmap(fn)(points))


# Sentences with tokens replaced.


def sentences(embeddings, alternatives, mask, budget):
    """All of them, by enumeration."""
    length = len(embeddings)
    choices = [[None, *np.flatnonzero(mask[k])] for k in range(length)]
    found = []
    for picks in itertools.product(*choices):
        if budget is None or sum(pick is not None for pick in picks) <= budget:
            found.append([embeddings[k] if p is None else alternatives[k, p] for k, p in enumerate(picks)])
    return jnp.asarray(np.array(found))


def words(seed=0, length=4, count=3, width=2):
    embeddings, alternatives = as_float(length, width, seed=seed), as_float(length, count, width, seed=seed + 1)
    mask = np.random.default_rng(seed).uniform(size=(length, count)) < 0.6
    mask[1] = False
    # Padding may be anything.
    return embeddings, jnp.where(mask[..., None], alternatives, jnp.nan), jnp.asarray(mask)


@pytest.mark.parametrize("budget", [0, 1, 2, 4, 9, None])
def test_linear_functions_are_exact_over_all_substitutions(budget, double):
    embeddings, alternatives, mask = words()
    region = jaxbound.substitutions(embeddings, alternatives, mask, budget=budget)
    points = sentences(*map(np.asarray, (embeddings, alternatives, mask)), budget)
    w = as_float(6, 4, 2, seed=5)
    values = jnp.tensordot(points, w, ((1, 2), (1, 2)))
    found = jax.jit(jaxbound.crown_ibp(lambda x: jnp.tensordot(w, x, 2)))(region)
    np.testing.assert_allclose(found.lower, values.min(axis=0), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found.upper, values.max(axis=0), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(region.box.lower, points.min(axis=0), atol=1e-12)
    np.testing.assert_allclose(region.box.upper, points.max(axis=0), atol=1e-12)
    check_support(region, points[:5])


@pytest.mark.parametrize("method", METHODS)
def test_sound_over_all_substitutions(method, double):
    embeddings, alternatives, mask = words(3)
    for budget in (1, None):
        points = sentences(*map(np.asarray, (embeddings, alternatives, mask)), budget)
        region = jaxbound.substitutions(embeddings, alternatives, mask, budget=budget)
        fn = functools.partial(network, parameters((4, 2)))
        enclosed(jax.jit(METHODS[method](fn))(region), jax.vmap(fn)(points))


def test_without_a_mask_all_alternatives_are_meant(double):
    embeddings, alternatives, mask = words()
    alternatives = jnp.nan_to_num(alternatives)
    region = jaxbound.substitutions(embeddings, alternatives)
    expected = jaxbound.substitutions(embeddings, alternatives, jnp.ones_like(mask))
    jax.tree.map(np.testing.assert_array_equal, region, expected)
    none = jaxbound.substitutions(embeddings, alternatives[:, :0])
    found = jaxbound.crown_ibp(lambda x: jnp.sum(x))(none)
    np.testing.assert_allclose([*found], float(jnp.sum(embeddings)), rtol=1e-12)


def test_batches_of_sentences_with_budgets_of_their_own(double):
    batch = [jnp.stack(parts) for parts in zip(*(words(seed) for seed in range(3)), strict=True)]
    budgets = jnp.array([0, 1, 3])
    fn = functools.partial(network, parameters((4, 2)))
    bound = jax.jit(jax.vmap(jaxbound.crown_ibp(fn)))
    found = bound(jaxbound.substitutions(*batch, budget=budgets))
    mapped = bound(jax.vmap(lambda e, a, m, b: jaxbound.substitutions(e, a, m, budget=b))(*batch, budgets))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-12), found, mapped)
    for k, budget in enumerate([0, 1, 3]):
        each = jaxbound.crown_ibp(fn)(jaxbound.substitutions(*(part[k] for part in batch), budget=budget))
        np.testing.assert_allclose(found.lower[k], each.lower, rtol=1e-10)
    one = bound(jaxbound.substitutions(*batch, budget=1))
    np.testing.assert_allclose(one.lower[1], found.lower[1], rtol=1e-12)


def test_layers_before_the_set_are_tighter_and_differentiable(double):
    embeddings, alternatives, mask = words()
    alternatives = jnp.nan_to_num(alternatives)  # the layer's derivative at NaN would be NaN
    w, v = as_float(2, 5, seed=6), as_float(3, 5, seed=7)

    def layer(w, x):
        return jax.nn.relu(x @ w)

    def rest(x):
        return v @ x.mean(axis=0)

    def inside_the_set(w):
        region = jaxbound.substitutions(layer(w, embeddings), layer(w, alternatives), mask)
        return jaxbound.ibp(rest)(region)

    before = inside_the_set(w)
    behind = jaxbound.ibp(lambda x: rest(layer(w, x)))(jaxbound.substitutions(embeddings, alternatives, mask))
    assert (before.lower >= behind.lower - 1e-12).all() and (before.lower > behind.lower + 1e-3).any()
    points = sentences(*map(np.asarray, (embeddings, alternatives, mask)), None)
    enclosed(before, jax.vmap(lambda x: rest(layer(w, x)))(points))
    slope = jax.grad(lambda w: jnp.sum(inside_the_set(w).lower))(w)
    step = 1e-6 * as_float(2, 5, seed=8)
    change = jnp.sum(inside_the_set(w + step).lower - inside_the_set(w - step).lower) / 2
    np.testing.assert_allclose(jnp.vdot(slope, step), change, rtol=1e-5)


def test_gradients_of_substitutions_are_those_of_finite_differences(double):
    embeddings, alternatives, mask = words()

    def lowest(embeddings, alternatives, params):
        region = jaxbound.substitutions(embeddings, alternatives, mask, budget=2)
        return jnp.sum(jaxbound.crown_ibp(network, relu=jaxbound.relax.tight)(params, region).lower)

    args = (embeddings, jnp.nan_to_num(alternatives), parameters((4, 2)))
    slopes = jax.jit(jax.grad(lowest, (0, 1, 2)))(*args)
    steps = jax.tree.map(lambda x: as_float(*x.shape, seed=9), args)
    expected = sum(jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(slopes), jax.tree.leaves(steps), strict=True))

    def moved(size):
        return jax.jit(lowest)(*jax.tree.map(lambda x, d: x + size * d, args, steps))

    np.testing.assert_allclose((moved(1e-6) - moved(-1e-6)) / 2e-6, expected, rtol=1e-5)


def test_a_traced_negative_budget_bounds_nothing(double):
    embeddings, alternatives, mask = words()

    def bound(budget):
        region = jaxbound.substitutions(embeddings, alternatives, mask, budget=budget)
        return jaxbound.crown_ibp(jnp.sum)(region)

    found = jax.jit(bound)(-1)
    assert np.isneginf(found.lower) and np.isposinf(found.upper)


def test_mistakes_in_substitutions_are_named():
    embeddings, alternatives, mask = words()
    make = jaxbound.substitutions
    for wrong in (alternatives[:3], alternatives[..., :1], alternatives[0]):
        with pytest.raises(ValueError, match=r"\[L, K, D\]; got the shapes"):
            make(embeddings, wrong)
    with pytest.raises(TypeError, match="look tokens up in the embedding first"):
        make(jnp.ones((4, 2), int), alternatives)
    with pytest.raises(TypeError, match="must be boolean, got int32"):
        make(embeddings, alternatives, mask.astype(jnp.int32))
    with pytest.raises(ValueError, match=r"for each alternative whether it is one, \[4, 3\]"):
        make(embeddings, alternatives, mask[0])
    with pytest.raises(ValueError, match="must not be negative; got -1"):
        make(embeddings, alternatives, mask, budget=-1)
    with pytest.raises(TypeError, match="an integer; got float32"):
        make(embeddings, alternatives, mask, budget=1.5)
    with pytest.raises(ValueError, match="one integer, or one for each sentence"):
        make(embeddings, alternatives, mask, budget=jnp.array([1, 2]))


# The check of a support function.


@pytest.mark.parametrize(
    "wrong, claim",
    [
        (lambda c: jnp.sum(c * c), "positively homogeneous|subadditive"),
        (lambda c: jnp.min(c), "subadditive"),
        (lambda c: jax.lax.stop_gradient(jnp.max(c)), "derivative"),
        (lambda c: jnp.sum(jnp.sqrt(c * c)), "derivative"),  # NaN where an element is zero
    ],
)
def test_what_is_no_support_function_is_found(wrong, claim):
    box = jaxbound.Interval(-jnp.ones(3), jnp.ones(3))
    with pytest.raises(AssertionError, match=claim):
        check_support(jaxbound.support_set(wrong, box=box))


def test_points_outside_the_box_are_found():
    box = jaxbound.Interval(-jnp.ones(2), jnp.ones(2))
    with pytest.raises(AssertionError, match="outside the box"):
        check_support(jaxbound.support_set(lambda c: 2 * jnp.sum(jnp.abs(c)), box=box), jnp.array([[1.5, 0.0]]))
