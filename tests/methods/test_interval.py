import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxbound
from tests import soundness

pytestmark = pytest.mark.usefixtures("double")

W1, B1 = np.array([[1.0, -2.0], [0.5, 1.0], [-1.0, 3.0]]), np.array([0.25, -0.5, 0.0])
W2, B2 = soundness.weights(4, 3).astype(float), soundness.weights(4).astype(float)
CENTER, EPS = np.array([0.4, 0.7]), 0.125


def box():
    return jaxbound.linf_ball(jnp.array(CENTER), EPS)


def affine(weight, bias, low, high):
    """Interval arithmetic by the signs of the weights."""
    plus, minus = np.maximum(weight, 0), np.minimum(weight, 0)
    return plus @ low + minus @ high + bias, plus @ high + minus @ low + bias


def network(x):
    x = jax.nn.relu(W1 @ x + B1)  # the first nonlinearity
    return W2 @ jnp.tanh(x) + B2  # the second one


def by_hand():
    """What the two nonlinearities meet, and the last one's results."""
    first = affine(W1, B1, CENTER - EPS, CENTER + EPS)
    second = [np.maximum(end, 0) for end in first]
    return first, second, [np.tanh(end) for end in second]


def line_of(pattern):
    """file.py:number of the line in this file that matches."""
    lines = pathlib.Path(__file__).read_text(encoding="utf-8").splitlines()
    (number,) = (k for k, line in enumerate(lines, 1) if re.search(pattern, line))
    return f"{pathlib.Path(__file__).name}:{number}"


def test_intervals_of_a_network_computed_by_hand():
    first, second, last = by_hand()
    np.testing.assert_allclose(jaxbound.ibp(network)(box()), affine(W2, B2, *last), rtol=1e-12)
    layers = jaxbound.layer_bounds(network)(box())
    np.testing.assert_allclose(list(layers.values()), [first, second], rtol=1e-12)


def test_layers_come_with_the_bounds_of_a_spec():
    spec = jaxbound.margin_spec(2, 4, float)
    lower, layers = jaxbound.layer_bounds(network)(box(), spec=spec)
    np.testing.assert_array_equal(lower, jaxbound.ibp(network)(box(), spec=spec))
    assert lower.shape == (3,)
    alone = jaxbound.layer_bounds(network)(box())
    assert layers.keys() == alone.keys()
    jax.tree.map(np.testing.assert_array_equal, layers, alone)


def test_layers_with_a_spec_go_through_vmap_and_grad():
    spec = jaxbound.margin_spec(2, 4, float)

    def loss(scale, center):
        regions = jaxbound.linf_ball(center, EPS, clip=None)
        lower, layers = jax.vmap(lambda x: jaxbound.layer_bounds(lambda x: network(scale * x))(x, spec=spec))(regions)
        return jnp.sum(lower) + sum(jnp.sum(jaxbound.radius(layer)) for layer in layers.values())

    batch = jnp.array([CENTER, CENTER[::-1]])
    numeric = (loss(1 + 1e-6, batch) - loss(1 - 1e-6, batch)) / 2e-6
    np.testing.assert_allclose(jax.grad(loss)(1.0, batch), numeric, rtol=1e-6)


def test_labels_of_layers_say_where_they_are():
    expected = [f"000 max {line_of('the first nonlinearity$')}", f"001 tanh {line_of('the second one$')}"]
    assert list(jaxbound.layer_bounds(network)(box())) == expected


def test_layers_of_a_loop_are_stacked_over_its_steps():
    weights = jnp.array(soundness.weights(3, 2, 2))

    def step(x, w):
        return jnp.tanh(w @ x), None  # in the loop

    def unrolled(x):
        for w in weights:
            x, _ = step(x, w)
        return x

    looped = jaxbound.layer_bounds(lambda x: jnp.sin(lax.scan(step, x, weights)[0]))(box())
    inside, after = looped
    assert re.fullmatch(rf"000 scan \S+/000 tanh {re.escape(line_of('in the loop$'))}", inside)
    assert after.startswith("001 sin ")
    expected = list(jaxbound.layer_bounds(unrolled)(box()).values())
    np.testing.assert_allclose(looped[inside], np.stack(expected, axis=1), rtol=1e-12)


def test_layers_of_two_sets_have_a_label_each():
    layers = jaxbound.layer_bounds(lambda x, y: x * y)(box(), jaxbound.l2_ball(jnp.zeros(2), 0.5))
    (_, first), (_, second) = layers.items()
    np.testing.assert_allclose(first, [CENTER - EPS, CENTER + EPS])
    np.testing.assert_allclose(second, [[-0.5, -0.5], [0.5, 0.5]])


def test_a_spec_merges_the_last_layer():
    """Elision: the margins' weights are multiplied before intervals lose how the logits depend on each other."""
    spec = jaxbound.margin_spec(2, 4, float)
    *_, last = by_hand()
    merged, _ = affine(spec @ W2, spec @ B2, *last)
    found = jaxbound.ibp(network)(box(), spec=spec)
    np.testing.assert_allclose(found, merged, rtol=1e-12)
    logits = affine(W2, B2, *last)
    apart, _ = affine(np.asarray(spec), np.zeros(3), *logits)
    assert (found > apart).all()


def test_a_spec_merges_several_linear_layers_and_outputs():
    def fn(x):
        x = jax.nn.relu(W1 @ x + B1)
        return {"a": x[::-1] * 2, "b": jnp.sum(W2 @ x) + 1}

    spec = {"a": jnp.array([[1.0, 0, -1]]), "b": jnp.array([-0.5])}
    row = 2 * np.array([-1.0, 0, 1]) - 0.5 * W2.sum(axis=0)
    _, second, _ = by_hand()
    expected, _ = affine(row[None], np.array([-0.5]), *second)
    np.testing.assert_allclose(jaxbound.ibp(fn)(box(), spec=spec), expected, rtol=1e-12)


def test_a_function_without_nonlinearities_is_bounded_on_the_set_itself():
    ball, spec = jaxbound.l2_ball(jnp.array(CENTER), EPS), jnp.array([[1.0, -1.0, 0.0], [0.0, 1.0, 1.0]])
    merged = np.asarray(spec) @ W1
    expected = merged @ CENTER + spec @ B1 - EPS * np.linalg.norm(merged, axis=1)
    np.testing.assert_allclose(jaxbound.ibp(lambda x: W1 @ x + B1)(ball, spec=spec), expected, rtol=1e-12)


def test_outputs_that_depend_on_no_set_are_points():
    def fn(x, n):
        carry, ys = lax.scan(lambda c, _: (c + 1.0, jnp.tanh(c)), n, None, length=3)
        return jnp.ones(2) * 3, x * 2, carry, ys

    constant, doubled, carry, ys = jaxbound.ibp(fn)(box(), 1.0)
    assert constant.lower.tolist() == constant.upper.tolist() == [3, 3]
    np.testing.assert_allclose(doubled, [2 * (CENTER - EPS), 2 * (CENTER + EPS)])
    assert carry == (4, 4)
    np.testing.assert_allclose(ys, [np.tanh([1, 2, 3])] * 2, rtol=1e-12)


@pytest.mark.parametrize("make_ball, dual", [(jaxbound.l1_ball, np.inf), (jaxbound.l2_ball, 2)])
def test_a_ball_stays_one_until_the_first_layer(make_ball, dual):
    """Through all that reads no element twice; one that does takes the bounding box first."""

    def normalised(x):
        x = jnp.flip(x.reshape(1, 2), 1) * jnp.array([2.0, -3.0]) / 4 - 1
        return W1 @ jnp.squeeze(x) + B1

    region = make_ball(jnp.array(CENTER), EPS)
    rows = np.asarray(jax.jacobian(normalised)(region.center))
    width = EPS * np.linalg.norm(rows, dual, axis=1)
    value = normalised(region.center)
    np.testing.assert_allclose(jaxbound.ibp(normalised)(region), [value - width, value + width], rtol=1e-12)
    twice = jaxbound.ibp(lambda x: W1 @ (x + x[::-1]) + B1)(region)
    box_of_it = jaxbound.ibp(lambda x: W1 @ (x + x[::-1]) + B1)(jaxbound.sets.bounding_box(region))
    np.testing.assert_allclose(twice, box_of_it, rtol=1e-12)


@pytest.mark.parametrize("make_ball", [jaxbound.l1_ball, jaxbound.l2_ball])
@pytest.mark.parametrize(
    "spread", [jnp.add, jnp.subtract, jnp.multiply, jnp.divide, lambda one, x: jnp.multiply(x, one)]
)
def test_a_scalar_of_a_ball_among_arrays_is_read_by_each_of_theirs(make_ball, spread):
    """A primitive takes a scalar next to an array without a broadcast."""

    def fn(x):
        return jnp.sum(spread(x[0], jnp.ones(4)))[None]

    ball = make_ball(jnp.zeros(2), 1.0)
    lower, upper = jaxbound.ibp(fn)(ball)
    ends = [fn(jnp.array([end, 0.0])) for end in (-1.0, 1.0)]
    np.testing.assert_allclose([lower, upper], ends, rtol=1e-12)
    assert jaxbound.crown_ibp(lambda x: jax.nn.relu(fn(x)))(ball).upper >= max(ends)


@pytest.mark.parametrize("method", [jaxbound.ibp, jaxbound.crown_ibp, jaxbound.crown, jaxbound.lbp])
@pytest.mark.parametrize("first", [lambda x: x, jax.nn.relu])
def test_coefficients_that_overflow_verify_nothing(method, first):
    """Each value fits into half precision, and the product of the last two factors does not."""
    half = jnp.float16

    def fn(x):
        return first(x * half(0.01)) * half(300) * half(300) - half(20)

    box = jaxbound.Interval(jnp.array([0.01], half), jnp.array([0.02], half))
    assert method(fn)(box, spec=jnp.ones((1, 1), half)) <= fn(box.lower).min()


def test_the_middle_of_large_numbers():
    half = jnp.float16
    x = jnp.array([40000.0], half)

    def fn(x):
        return jax.nn.relu(half(5000) - jnp.array([[0.1]], half) @ x)

    lower, upper = jaxbound.ibp(fn)(jaxbound.Interval(x, x))
    np.testing.assert_array_equal([lower, upper], [fn(x)] * 2)
