import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxbound

W1, W2 = np.array([[3.0, -5.0], [2.0, 6.0], [0.5, 0.0]]), np.array([[1.0, -2.0, 0.5]])
BOX = jaxbound.linf_ball(jnp.array([0.5, 0.5]), 0.25)


def network(x):
    x = jnp.flip(x.reshape(2, 1), 0).ravel() + 1
    x = jax.nn.relu(W1 @ x - 2.5)  # the nonlinear line
    return W2 @ x


def by_name(found):
    return {node.operation: node for node in found.nodes}


def test_widths_growth_and_unstable_units_by_hand():
    found = jaxbound.explain(network)(BOX)
    operations = [node.operation for node in found.nodes]
    assert operations == ["input", "dot_general", "max", "dot_general"]  # flip, reshape and biases keep all widths
    given, first, bent, last = found.nodes
    box = W1 @ np.full(2, 1.5) - 2.5, 0.25 * np.abs(W1).sum(axis=1)
    lower, upper = box[0] - box[1], box[0] + box[1]
    assert (lower < 0).tolist() == [True, False, True] and (upper > 0).tolist() == [False, True, False]
    assert given[3:] == ((2,), 0.5, 0.5, None, None, 0)
    after = np.maximum(upper, 0) - np.maximum(lower, 0)
    assert first[3:] == ((3,), (upper - lower).mean(), 4.0, (upper - lower).mean() / 0.5, None, 0)
    assert bent[3:] == ((3,), pytest.approx(after.mean()), 4.0, after.mean() / (upper - lower).mean(), 0.0, 0)
    assert last.mean_width == pytest.approx(np.abs(W2[0]) @ after)
    assert all(type(value) in (str, float, int, tuple, type(None)) for node in found.nodes for value in node)
    assert found.steepest is last and found.overflow is None


def bends(*points):
    """The share of elements of an interval that have one of these points inside."""
    return lambda lower, upper: np.mean(np.any([(lower < p) & (p < upper) for p in points], axis=0))


@pytest.mark.parametrize(
    "fn, crossing",
    [
        (jax.nn.relu, bends(0)),
        (jax.nn.leaky_relu, bends(0)),
        (jnp.abs, bends(0)),
        (lambda x: jnp.maximum(x, 0.3), bends(0.3)),
        (lambda x: jnp.clip(x, -0.2, 0.5), bends(-0.2, 0.5)),
        (lambda x: jaxbound.ramp(x, top=0.4), bends(0, 0.4)),
    ],
)
def test_unstable_units_are_those_whose_interval_crosses_a_bend(fn, crossing):
    centers = np.linspace(-1, 1, 41, dtype=np.float32)
    box = jaxbound.Interval(jnp.array(centers - 0.13), jnp.array(centers + 0.13))
    *_, node = jaxbound.explain(fn)(box).nodes
    share = crossing(*map(np.asarray, box))
    assert 0 < share < 1
    assert node.unstable == pytest.approx(share)


def test_rows_are_named_as_layers_are():
    def step(x, w):
        return jnp.tanh(w @ x) * jnp.sin(x), None

    def fn(x):
        x, _ = lax.scan(step, x * jnp.exp(x), jnp.ones((3, 2, 2)))
        return jax.nn.relu(x)

    layers = list(jaxbound.layer_bounds(fn)(BOX))
    named = [node for node in jaxbound.explain(fn)(BOX).nodes if node.layer]
    assert [node.operation for node in named] == ["exp", "mul", "scan", "max"]
    exponential, product, loop, last = named
    assert [node.layer for node in (exponential, product, last)] == [layers[0], layers[1], layers[-1]]
    inside = [label for label in layers if label.startswith(f"{loop.layer}/")]
    assert len(inside) == len(layers) - 4
    assert 0 <= loop.unstable <= 1


def test_what_is_known_by_intervals_alone_is_named_as_its_layer():
    def fn(x):
        order = jnp.argsort(jnp.sort(x))  # whole numbers have no layer
        return lax.switch(jnp.clip(order[0], 0, 1), [jax.nn.relu, jnp.tanh], x) + jax.nn.relu(lax.cumsum(x))

    found, layers = jaxbound.explain(fn)(BOX), jaxbound.layer_bounds(fn)(BOX)
    named = [node.layer for node in found.nodes if node.layer]
    assert set(named) <= {name for label in layers for name in (label, label.partition("/")[0])}
    relu = [node for node in found.nodes if node.operation == "max"][-1]  # the first is of whole numbers
    assert relu.layer in layers and np.allclose(layers[relu.layer].lower, np.cumsum(BOX.lower))


def test_operands_of_different_widths():
    """A sum grows against its widest operand."""
    narrow = jaxbound.linf_ball(jnp.zeros(2), 0.125, clip=None)
    assert by_name(jaxbound.explain(lambda x, y: x + y)(narrow, BOX))["add"].growth == 1.5


def test_where_bounds_overflow():
    def fn(x):
        x = jnp.exp(jnp.array([1.0, 400.0]) * x)  # e^100 does not fit
        return jnp.sum(1e-3 * x) * jnp.ones(2)

    found = jaxbound.explain(fn)(BOX)
    rows = by_name(found)
    assert rows["exp"].unbounded == 1 and rows["exp"].mean_width == np.inf
    assert found.overflow is rows["exp"] is found.steepest
    assert found.nodes[-1].unbounded == 2 and found.nodes[-1].growth is None  # infinite over infinite
    assert "Bounds are infinite from exp test_explain.py:" in str(found) and "there for 1 of 2 elements." in str(found)


def test_nan_counts_as_unbounded():
    found = jaxbound.explain(lambda x: jnp.log(x - 0.6) + 1)(BOX)
    assert found.nodes[-1].unbounded == 2


def test_float16_widths_are_summed_without_overflow():
    wide = jaxbound.Interval(jnp.full(8, -6e4, jnp.float16), jnp.full(8, 6e4, jnp.float16))
    (node,) = jaxbound.explain(lambda x: x[:4])(wide).nodes
    assert node.mean_width == node.largest_width == pytest.approx(1.2e5, rel=1e-3)


def test_the_table():
    text = str(jaxbound.explain(network)(BOX))
    head, given, first, bent, _, remark = text.splitlines()
    assert head.split() == "layer operation shape mean width largest growth unstable unbounded source".split()
    assert given.split() == "input [2] 0.5 0.5 - - 0".split()
    assert first.split()[:3] == ["dot_general", "[3]", "2.75"] and first.split()[-1].startswith("test_explain.py:")
    assert bent.split()[:3] == ["000", "max", "[3]"] and "0.0%" in bent
    assert remark.startswith("The mean width grows most at dot_general test_explain.py:")
    assert remark.endswith(": 6 times.")


def test_a_ball():
    found = by_name(jaxbound.explain(lambda x: W1 @ x)(jaxbound.l2_ball(jnp.array([0.5, 0.5]), 0.25)))
    assert found["input"].mean_width == 0.5
    assert found["dot_general"].largest_width == pytest.approx(0.5 * np.linalg.norm(W1, axis=1).max())


@pytest.mark.parametrize("wrapped", [jax.jit, jax.vmap])
def test_there_are_no_numbers_inside_a_transform(wrapped):
    with pytest.raises(TypeError, match="call it outside"):
        wrapped(lambda box: jaxbound.explain(jax.nn.relu)(box).nodes[0].mean_width)(BOX)


def test_what_it_cannot_bound_is_said_as_elsewhere():
    with pytest.raises(jaxbound.UnsupportedError, match=r"test_explain.py:\d+"):
        jaxbound.explain(lambda x: jax.lax.bessel_i1e(x))(BOX)
