import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbound
from jaxbound import Interval, regularizers

pytestmark = pytest.mark.usefixtures("double")


def layers(seed=0):
    """Layers of different shapes with stable and unstable neurons; loose enough for every term to count."""
    rng = np.random.default_rng(seed)
    found = {}
    for k, (shape, shift) in enumerate([((4, 3, 2), 0.0), ((4, 7), 0.6), ((4, 5), -1.0)]):
        center, radius = rng.normal(shift, 1.0, shape), rng.uniform(0.1, 0.9, shape)
        found[f"{k:03d}"] = Interval(jnp.array(center - radius), jnp.array(center + radius))
    return found


# The definitions, neuron by neuron.


def slow_tightness(layers, input_radius, tolerance):
    total = 0.0
    for lower, upper in layers:
        radii = [(b - a) / 2 for a, b in zip(lower.ravel(), upper.ravel(), strict=True)]
        total += max(0, tolerance - input_radius / (math.fsum(radii) / len(radii))) / tolerance
    return total / len(layers)


def slow_balance(layers, tolerance):
    total = 0.0
    for lower, upper in layers:
        pairs = list(zip(lower.ravel(), upper.ravel(), strict=True))
        centers = [(a + b) / 2 for a, b in pairs]
        mean = math.fsum(centers) / len(centers)
        active = [c for c, (a, _) in zip(centers, pairs, strict=True) if a > 0]
        inactive = [c for c, (_, b) in zip(centers, pairs, strict=True) if b < 0]
        ratios = []
        for p, q in (
            (sum(active) / len(centers), -sum(inactive) / len(centers)),
            (sum((c - mean) ** 2 for c in active), sum((c - mean) ** 2 for c in inactive)),
        ):
            if p == q == 0:
                break
            ratios.append(0 if 0 in (p, q) else min(p / q, q / p))
        else:
            total += sum(max(0, tolerance - ratio) / tolerance for ratio in ratios)
    return total / len(layers)


def slow_stability(layers):
    terms = [-math.tanh(1 + a * b) for lo, up in layers for a, b in zip(lo.ravel(), up.ravel(), strict=True)]
    return sum(terms) / len(terms)


REGULARIZERS = {
    "tightness": (lambda boxes: regularizers.tightness(boxes, 0.1), lambda boxes: slow_tightness(boxes, 0.1, 0.5)),
    "tightness_0.9": (
        lambda boxes: regularizers.tightness(boxes, 0.3, tolerance=0.9),
        lambda boxes: slow_tightness(boxes, 0.3, 0.9),
    ),
    "balance": (regularizers.balance, lambda boxes: slow_balance(boxes, 0.5)),
    "balance_0.9": (
        lambda boxes: regularizers.balance(boxes, tolerance=0.9),
        lambda boxes: slow_balance(boxes, 0.9),
    ),
    "stability": (regularizers.stability, slow_stability),
}

# Compiled once for all cases of the same shapes.
VALUES = {name: jax.jit(fast) for name, (fast, _) in REGULARIZERS.items()}
GRADIENTS = {name: jax.jit(jax.grad(fast)) for name, (fast, _) in REGULARIZERS.items()}


@pytest.mark.parametrize("name", REGULARIZERS)
@pytest.mark.parametrize("seed", range(4))
def test_values(name, seed):
    _, slow = REGULARIZERS[name]
    boxes = layers(seed)
    expected = slow([tuple(map(np.asarray, box)) for box in boxes.values()])
    assert expected != 0
    np.testing.assert_allclose(VALUES[name](boxes), expected, rtol=1e-12)


def test_layers_are_a_mapping_or_a_sequence():
    boxes = layers()
    assert regularizers.tightness(list(boxes.values()), 0.1) == regularizers.tightness(boxes, 0.1)


@pytest.mark.parametrize("name", REGULARIZERS)
def test_gradients(name):
    boxes = layers(1)
    gradient = GRADIENTS[name](boxes)
    steps = iter(range(10))
    direction = jax.tree.map(lambda x: jnp.sin(next(steps) + jnp.arange(x.size)).reshape(x.shape), boxes)
    moved = [VALUES[name](jax.tree.map(lambda x, d, h=h: x + h * d, boxes, direction)) for h in (1e-7, -1e-7)]
    exact = sum(jnp.vdot(g, d) for g, d in zip(*map(jax.tree.leaves, (gradient, direction)), strict=True))
    assert abs(exact) > 1e-3
    np.testing.assert_allclose(exact, (moved[0] - moved[1]) / 2e-7, rtol=1e-5)


NAN, INF = np.nan, np.inf
DEGENERATE = {
    "NaN": ([NAN, 0.0], [1.0, 1.0]),
    "infinite": ([-INF, 0.0], [INF, 1.0]),
    "huge": ([-1e200, 1e200], [-1e199, 1e201]),
    "the largest": ([-1.7e308, 1.7e308], [1.7e308, 1.7e308]),
    "tiny": ([-1e-200, 1e-200], [-1e-201, 1e-199]),
    "no stable neuron": ([-1.0, -1.0], [1.0, 2.0]),
    "a point at zero": ([0.0, 0.0], [0.0, 0.0]),
    "only active": ([1.0, 2.0], [2.0, 3.0]),
    "equal and active": ([1.0, 1.0], [2.0, 2.0]),
}


@pytest.mark.parametrize("case", DEGENERATE)
@pytest.mark.parametrize("name", REGULARIZERS)
def test_values_and_gradients_are_always_finite(name, case):
    lower, upper = DEGENERATE[case]
    bad = Interval(jnp.array([lower]), jnp.array([upper]))
    for boxes in ([bad], [layers()["001"], bad]):
        assert np.isfinite(VALUES[name](boxes))
        jax.tree.map(lambda leaf: np.testing.assert_(np.isfinite(leaf).all()), GRADIENTS[name](boxes))


@pytest.mark.parametrize("case", ["NaN", "infinite"])
def test_what_a_layer_that_is_not_finite_contributes(case):
    lower, upper = DEGENERATE[case]
    bad, (good, *_) = Interval(jnp.array([lower]), jnp.array([upper])), layers().values()
    for fn, constant in ((lambda b: regularizers.tightness(b, 0.1), 1), (regularizers.balance, 0)):
        np.testing.assert_allclose(fn([bad, good]), (fn([good]) + constant) / 2, rtol=1e-12)
    size = good.lower.size
    expected = (regularizers.stability([good]) * size + 2) / (size + 2)
    np.testing.assert_allclose(regularizers.stability([bad, good]), expected, rtol=1e-12)


@pytest.mark.parametrize("case, value", [("only active", 2), ("no stable neuron", 0), ("a point at zero", 0)])
def test_balance_of_one_kind(case, value):
    lower, upper = DEGENERATE[case]
    assert regularizers.balance([Interval(jnp.array([lower]), jnp.array([upper]))]) == value


def test_tightness_vanishes_where_layers_are_tight_and_takes_the_mean_input_radius():
    tight = Interval(jnp.zeros((2, 3)), jnp.ones((2, 3)))
    assert regularizers.tightness([tight], 0.25) == 0
    assert regularizers.tightness([tight], jnp.array([0.1, 0.4])) == 0
    assert regularizers.tightness([tight], jnp.array([0.1, 0.2])) == pytest.approx(0.4)


def test_layers_of_a_network():
    weight = jnp.array([[3.0, -4.0], [2.0, 5.0]])

    def penalty(weight, x):
        boxes = jaxbound.linf_ball(x, 0.125, clip=None)
        found = jax.vmap(jaxbound.layer_bounds(lambda x: weight @ jax.nn.relu(weight @ x)), 0)(boxes)
        return regularizers.tightness(found, 0.125)

    x = jnp.array([[0.5, 0.25], [1.0, 0.0]])
    assert penalty(weight, x) == pytest.approx((0.5 - 1 / 7) / 0.5)  # both rows of |W| sum to 7
    assert (jax.grad(penalty)(weight, x) * jnp.sign(weight) > 0).all()


@pytest.mark.parametrize("fn", [lambda b: regularizers.tightness(b, 0.1), regularizers.balance, regularizers.stability])
def test_no_layers(fn):
    with pytest.raises(ValueError, match="there are no layers"):
        fn({})


def test_l1_takes_the_weights():
    params = {
        "Conv_0": {"kernel": -jnp.ones((3, 3, 2, 4)), "bias": jnp.ones(4)},
        "BatchNorm_0": {"scale": jnp.ones(4), "bias": jnp.ones(4)},
        "ParamRamp_0": {"top": jnp.ones((8, 8, 4))},
        "Dense_0": {"kernel": 2 * jnp.ones((5, 3)), "bias": jnp.ones(3)},
    }
    assert regularizers.l1(params) == 72 + 30
    gradient = jax.grad(regularizers.l1)(params)
    assert (gradient["Conv_0"]["kernel"] == -1).all() and (gradient["Dense_0"]["kernel"] == 1).all()
    assert not gradient["ParamRamp_0"]["top"].any() and not gradient["Dense_0"]["bias"].any()
    assert regularizers.l1({}) == 0
