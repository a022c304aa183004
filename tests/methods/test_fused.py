import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import jaxbound
from jaxbound import attacks, losses, relax
from jaxbound.methods.fused import AT_ONCE
from jaxbound.rules.softmax import mean_decay
from tests import soundness

CLASSES, BATCH = 5, 3
KERNELS = [soundness.weights(*shape) for shape in ((7, 4), (6, 7), (CLASSES, 6))]


def network(kernels, x):
    """[4] -> [5], with a branch that ends at the logits and one that joins before them."""
    first = jax.nn.relu(kernels[0] @ x + 0.1)
    second = jnp.tanh(kernels[1] @ first) + first[:6]
    return kernels[2] @ second + 0.5 * x[0] - jnp.arange(CLASSES) / 10


def params():
    return [jnp.asarray(kernel, float) for kernel in KERNELS]


def boxes(radius=0.2):
    centers = jnp.asarray(soundness.weights(BATCH, 4), float)
    return jaxbound.Interval(centers - radius, centers + radius), jnp.array([0, 4, 2])


def batched(beta, fn=network, relu=relax.adaptive):
    """(params, boxes, labels) -> bounds [B]."""
    bound = jaxbound.fused_cross_entropy(fn, relu=relu, beta=beta)
    return lambda params, boxes, labels: jax.vmap(lambda box, label: bound(params, box, label=label))(boxes, labels)


# `beta` as an argument of a compiled function, as in training: a single program for all tests.
@functools.partial(jax.jit, static_argnums=0)
def bounds(fn, beta, *args):
    return batched(beta, fn)(*args)


def by_margins(method, params, boxes, labels):
    """The robust cross-entropy of a method's margins, [B]."""

    def one(box, label):
        return losses.robust_cross_entropy(method(params, box, spec=jaxbound.margin_spec(label, CLASSES, float)))

    return jax.vmap(one)(boxes, labels)


def largest_seen(fn, box, label):
    """The largest cross-entropy of a label at corners, random points and where gradients lead."""
    region = soundness.as_float(box)
    xs = jax.vmap(functools.partial(soundness.point, region))(jnp.asarray(soundness.units(region, 300), float))
    attack = attacks.pgd(fn, steps=10, step_size=0.05, restarts=4)
    xs = jnp.concatenate([xs, attack(jax.random.key(0), region, label)[None]])
    return jax.vmap(lambda x: attacks.cross_entropy(fn(x), label))(xs).max()


@pytest.mark.parametrize("radius", [0.02, 0.2, 2.0])
def test_no_input_has_a_larger_cross_entropy(radius, double):
    regions, labels = boxes(radius)
    seen = jax.jit(jax.vmap(functools.partial(largest_seen, functools.partial(network, params()))))(regions, labels)
    for beta in (0.0, 0.3, 1.0):
        assert (bounds(network, beta, params(), regions, labels) >= seen - 1e-12).all()


def test_on_a_linear_function_it_is_the_largest_sum_of_chords(double):
    weight, label = np.asarray(soundness.weights(CLASSES, 4), float), 2
    box = jaxbound.Interval(*np.sort(soundness.weights(2, 4).astype(float), axis=0))
    corners = np.array(list(itertools.product(*np.stack(box).T)))
    lower, slopes, total = [], [], 0.0
    for other in range(CLASSES):
        margins = [(weight[label] - weight[other]) @ corner for corner in corners]
        lower.append(min(margins))
        fall = (
            0.0 if other == label else (np.exp(-min(margins)) - np.exp(-max(margins))) / (max(margins) - min(margins))
        )
        slopes.append(fall)
        total += np.exp(-min(margins)) + fall * min(margins)
    row = sum(s * (weight[label] - weight[other]) for other, s in enumerate(slopes))
    chords = total - min(row @ corner for corner in corners)
    plain = 1 + sum(np.exp(-low) for other, low in enumerate(lower) if other != label)
    for beta in (0, 0.25, 1):
        found = jaxbound.fused_cross_entropy(lambda x: jnp.asarray(weight) @ x, beta=beta)(box, label=label)
        np.testing.assert_allclose(found, np.log(beta * chords + (1 - beta) * plain), rtol=1e-10)


def test_without_crown_it_is_the_loss_of_the_margins(double):
    regions, labels = boxes()

    def both(loss):
        return jax.jit(jax.value_and_grad(lambda params: loss(params, regions, labels).sum()))(params())

    expected = both(functools.partial(by_margins, jaxbound.ibp(network)))
    for beta in (0, jnp.array(0.0)):
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12), both(batched(beta)), expected
        )


def test_without_crown_nothing_is_relaxed():
    def refuse(x, slope=0.0, top=None):
        raise AssertionError("a line was asked for")

    args = params(), *boxes()
    assert jax.eval_shape(batched(0, relu=refuse), *args).shape == (BATCH,)
    with pytest.raises(AssertionError, match="a line was asked for"):
        jax.eval_shape(batched(1, relu=refuse), *args)


def test_beta_mixes_before_the_logarithm(double):
    args = params(), *boxes()
    totals = [jnp.exp(bounds(network, beta, *args)) for beta in (0.0, 1.0, 0.3)]
    np.testing.assert_allclose(totals[2], 0.7 * totals[0] + 0.3 * totals[1], rtol=1e-9)
    np.testing.assert_allclose(jax.jit(batched(1))(*args), jnp.log(totals[1]), rtol=1e-9)


def test_crown_is_tighter_here(double):
    args = params(), *boxes(0.05)
    assert (bounds(network, 1.0, *args) < bounds(network, 0.0, *args)).all()


@jax.jit
def robust_and_natural(params, regions, labels):
    """Values and gradients of the mean bound and of the mean cross-entropy at the midpoints."""

    def natural(params):
        logits = jax.vmap(functools.partial(network, params))(jaxbound.midpoint(regions))
        return jax.vmap(attacks.cross_entropy)(logits, labels).mean()

    def robust(params):
        return batched(jnp.array(0.5))(params, regions, labels).mean()

    return jax.value_and_grad(robust)(params), jax.value_and_grad(natural)(params)


def test_on_a_point_it_is_the_cross_entropy(precision):
    for radius in (0.0, 1e-9, 1e-7):
        (value, grads), (expected, slopes) = robust_and_natural(params(), *boxes(radius))
        tolerance = 1e-4 if precision == 32 else 1e-11 + 100 * radius
        np.testing.assert_allclose(value, expected, rtol=tolerance)
        assert all(jnp.isfinite(grad).all() for grad in grads)
        if radius == 0:  # a set that is no point has an interval around every value, with a gradient of its own
            jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), grads, slopes)


@pytest.mark.parametrize("radius", [0.01, 0.3])
def test_gradients_are_those_of_finite_differences(radius, double):
    regions, labels = boxes(radius)

    def loss(params, center, size, beta):
        return batched(beta)(params, jaxbound.Interval(center - size, center + size), labels).sum()

    args = params(), jaxbound.midpoint(regions), jnp.array(radius), jnp.array(0.4)
    check_grads(jax.jit(loss), args, order=1, modes=["rev"], atol=1e-5, rtol=1e-5, eps=1e-6)


def test_batch_is_a_loop(double):
    args = params(), *boxes()
    bound = jax.jit(jaxbound.fused_cross_entropy(network, beta=0.5))
    each = [bound(args[0], jax.tree.map(lambda x, i=i: x[i], args[1]), label=args[2][i]) for i in range(BATCH)]
    np.testing.assert_allclose(bounds(network, 0.5, *args), each, rtol=1e-10)


@pytest.mark.parametrize("p", [1, 2, np.inf])
@pytest.mark.parametrize("linear", [True, False])
def test_balls(p, linear, double):
    fn = (lambda x: KERNELS[0][:CLASSES] @ x) if linear else functools.partial(network, params())
    region = jaxbound.Ball(jnp.array([0.3, -0.2, 0.5, 1.0]), jnp.array([0.1, 0.2, 0.0, 0.3]), p)
    xs = jax.vmap(functools.partial(soundness.point, region))(jnp.asarray(soundness.units(region, 300), float))
    seen = jax.vmap(lambda x: attacks.cross_entropy(fn(x), 1))(xs).max()
    for beta in (0, 1):
        found = jax.jit(functools.partial(jaxbound.fused_cross_entropy(fn, beta=beta), label=1))(region)
        assert seen - 1e-12 <= found < 3 * seen + 1


# Numbers that are large, small or invalid.


@pytest.mark.parametrize("scale", [1.0, 30.0, 1e3, 1e6])
def test_where_crown_is_much_tighter_than_intervals(scale):
    """The chords' sum cancels almost wholly, so that its rounding is as large as what is left of it."""

    def fn(x):  # the intervals of the two terms are wide, their difference is nearly zero
        return jnp.stack([scale * (jax.nn.relu(x[0] + 2) - jax.nn.relu(x[0] + 2)), 0.1 * x[1], -0.3 * x[0]])

    box = soundness.box([0.2, -0.3], 1.0)
    found = jax.jit(functools.partial(jaxbound.fused_cross_entropy(fn), label=0))(box)
    assert largest_seen(fn, box, 0) <= found <= scale * 6 + 3


def test_all_sizes_of_logits():
    @jax.jit
    def value_and_grad(beta, scale):
        fn = lambda params, x: scale * network(params, x)  # noqa: E731
        return jax.value_and_grad(lambda params: batched(beta, fn)(params, *boxes()).max())(params())

    for beta in (0.0, 0.5):
        for scale in (1e-30, 1e-3, 1e3, 1e15):
            value, grads = value_and_grad(beta, scale)
            assert np.isfinite(value) and all(jnp.isfinite(grad).all() for grad in grads), (beta, scale)


@pytest.mark.parametrize("beta", [0, 0.5, 1])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_invalid_numbers_cost_an_infinite_loss(beta, bad):
    regions, labels = boxes()
    kernels = [kernel.at[0, 0].set(bad) for kernel in params()]
    for broken in ([kernels[0], *params()[1:]], [*params()[:2], kernels[2]]):
        assert np.isposinf(jax.jit(batched(beta))(broken, regions, labels)).all()


def test_unknown_labels_and_weights_cost_an_infinite_loss():
    regions, labels = boxes()
    found = bounds(network, 0.5, params(), regions, jnp.array([0, -1, CLASSES]))
    assert np.isfinite(found[0]) and np.isposinf(found[1:]).all()
    for beta in (-0.1, 1.1, np.nan):
        assert np.isposinf(bounds(network, beta, params(), regions, labels)).all()


def test_labels_out_of_range():
    regions, _ = boxes()
    with pytest.raises(ValueError, match="label 5 is out of range for 5 classes"):
        jaxbound.fused_cross_entropy(network)(params(), jax.tree.map(lambda x: x[0], regions), label=5)


@pytest.mark.parametrize("beta", [-0.1, 1.5, np.nan, np.ones(2)])
def test_weights_out_of_range(beta):
    with pytest.raises(ValueError, match="beta"):
        jaxbound.fused_cross_entropy(network, beta=beta)


@pytest.mark.parametrize("fn", [lambda x: x[:1], lambda x: x[None], lambda x: (x, x), lambda x: x.sum()])
def test_only_logits_have_a_cross_entropy(fn):
    with pytest.raises(ValueError, match=r"returns logits \[K\] of ONE example"):
        jaxbound.fused_cross_entropy(fn)(soundness.box(np.zeros(4), 0.1), label=0)


# The cost.


def shapes_in(jaxpr):
    """The shapes of all values that a jaxpr computes, in its inner ones as well."""
    for equation in jaxpr.eqns:
        yield from (var.aval.shape for var in equation.outvars)
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = value if hasattr(value, "eqns") else getattr(value, "jaxpr", None)
            if inner is not None:
                yield from shapes_in(inner)


def test_nothing_but_the_last_layer_grows_with_the_classes():
    """No array has the classes beside a hidden layer's units, or beside themselves for every example."""

    def chain(kernels, x):
        return kernels[2] @ jax.nn.relu(kernels[1] @ jax.nn.relu(kernels[0] @ x))

    step = jax.grad(lambda params, *rest: batched(jnp.array(0.5), chain)(params, *rest).sum())
    shapes = [shape for shape in shapes_in(jax.make_jaxpr(step)(params(), *boxes()).jaxpr) if CLASSES in shape]
    assert (BATCH, CLASSES, 6) in shapes  # the rows of the margins
    assert not [shape for shape in shapes if {4, 7} & set(shape) or (BATCH in shape and shape.count(CLASSES) > 1)]


@pytest.mark.parametrize("p", [1, 2, np.inf])
def test_many_classes_are_held_in_parts(p, double):
    """Rows of the margins are made for some classes at a time, the last of which are fewer; no number changes."""
    many = 2 * AT_ONCE.size + 3
    kernel, labels = jnp.asarray(soundness.weights(many, 4), float), jnp.array([0, many - 1, AT_ONCE.size])
    centers = jnp.asarray(soundness.weights(BATCH, 4), float)

    def region(center):
        if p == np.inf:
            return jaxbound.Interval(center - 0.3, center + 0.3)
        return jaxbound.Ball(center, jnp.full(4, 0.3), p)

    def loss(of_one):
        def total(kernel, centers):
            return jax.vmap(lambda x, label: of_one(kernel, region(x), label))(centers, labels).sum()

        return jax.jit(jax.value_and_grad(total, argnums=(0, 1)))

    def by_rows(kernel, box, label):
        spec = jaxbound.margin_spec(label, many, float)
        return losses.robust_cross_entropy(jaxbound.ibp(jnp.matmul)(kernel, box, spec=spec))

    def fused(kernel, box, label):
        return jaxbound.fused_cross_entropy(jnp.matmul, beta=0)(kernel, box, label=label)

    close = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12)
    jax.tree.map(close, loss(fused)(kernel, centers), loss(by_rows)(kernel, centers))
    shapes = set(shapes_in(jax.make_jaxpr(loss(fused))(kernel, centers).jaxpr))
    assert (BATCH, AT_ONCE.size, 4) in shapes and (BATCH, many, 4) not in shapes


def test_mean_decay(precision):
    width = jnp.concatenate([jnp.array([0.0, -1e-9]), jnp.logspace(-12, 2, 141)]).astype(float)
    value, slope = jax.vmap(jax.value_and_grad(mean_decay))(width)
    exact = np.asarray(width, np.longdouble)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(np.abs(exact) < 1e-5, 1 - exact / 2 + exact**2 / 6, -np.expm1(-exact) / exact)
        change = np.where(np.abs(exact) < 1e-3, -1 / 2 + exact / 3 - exact**2 / 8, (np.exp(-exact) - mean) / exact)
    tolerance = 1e-6 if precision == 32 else 1e-14
    np.testing.assert_allclose(value, mean.astype(float), rtol=tolerance)
    np.testing.assert_allclose(slope, change.astype(float), rtol=100 * np.sqrt(tolerance) * 1e-2, atol=1e-9)
    assert mean_decay(jnp.array(jnp.inf)) == 0
