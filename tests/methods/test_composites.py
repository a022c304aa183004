"""Which functions are recognised by their primitives, and that what stands for them computes the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbound
from jaxbound.methods.problem import prepare
from jaxbound.program import Scan, walk
from tests import soundness


def program_of(fn, *shape):
    return prepare(fn, (soundness.box(soundness.weights(*shape), 0.1),), {}).program


def names(fn, *shape):
    """The nonlinear equations of a function."""
    linear = "reshape transpose expand_dims squeeze mul add sub div dot_general reduce_sum broadcast_in_dim".split()
    return [e.name for e in program_of(fn, *shape).equations if e.name not in linear]


def assert_same_values(fn, *shape):
    program, x = program_of(fn, *shape), jnp.asarray(soundness.weights(*shape), float)
    values = walk(program, [x], lambda equation, operands, mask: equation.apply(*operands))
    np.testing.assert_allclose(values[program.outputs[0]], fn(x), rtol=1e-4, atol=1e-5)


def rows(x, fn):
    return x / jnp.sqrt(fn(x, axis=-1, keepdims=True) + 1e-5)


ROW, ROWS, IMAGE = (4,), (3, 4), (2, 3, 4)
CASES = {
    "softmax": (jax.nn.softmax, ROWS, "softmax"),
    "softmax_first": (lambda x: jax.nn.softmax(x, axis=0), ROWS, "softmax"),
    "softmax_two": (lambda x: jax.nn.softmax(x, axis=(0, 2)), IMAGE, "softmax"),
    "softmax_vmap": (jax.vmap(lambda x: jax.nn.softmax(x, axis=0)), IMAGE, "softmax"),
    "log_softmax": (jax.nn.log_softmax, ROWS, "log_softmax"),
    "log_softmax_first": (lambda x: jax.nn.log_softmax(x, axis=0), ROWS, "log_softmax"),
    "logsumexp": (jax.nn.logsumexp, ROW, "logsumexp"),
    "logsumexp_two": (lambda x: jax.nn.logsumexp(x, axis=(0, 2)), IMAGE, "logsumexp"),
    "logsumexp_kept": (lambda x: jax.nn.logsumexp(x, axis=1, keepdims=True), ROWS, "logsumexp"),
    "gelu": (jax.nn.gelu, ROW, "gelu_tanh"),
    "gelu_exact": (lambda x: jax.nn.gelu(x, approximate=False), ROW, "gelu"),
    "standardize": (jax.nn.standardize, ROWS, "layer_norm"),
    "by_norm": (lambda x: x / jnp.linalg.norm(x), ROW, "rms_norm"),
    "by_norm_kept": (lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True), ROWS, "rms_norm"),
    "by_root_of_sum": (lambda x: rows(x, lambda x, **k: jnp.sum(x**2, **k)), ROWS, "rms_norm"),
    "by_root_of_mean": (lambda x: rows(x, lambda x, **k: jnp.mean(jnp.square(x), **k)), ROWS, "rms_norm"),
    "by_rsqrt": (lambda x: x * jax.lax.rsqrt((x * x).sum(-1, keepdims=True) + 1e-12), ROWS, "rms_norm"),
    "by_deviation": (lambda x: (x - x.mean()) / x.std(), ROW, "layer_norm"),
    "by_variance": (lambda x: (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True)), ROWS, "layer_norm"),
}


@pytest.mark.parametrize("name", CASES)
def test_recognised(name, precision):
    fn, shape, expected = CASES[name]
    assert names(fn, *shape) == [expected]
    assert_same_values(fn, *shape)


DIFFERENT = {
    "another_factor": lambda x: jnp.exp(x - jnp.max(x)) / (2 * jnp.sum(jnp.exp(x - jnp.max(x)))),
    "another_axis": lambda x: jnp.exp(x) / jnp.sum(jnp.exp(x), axis=0, keepdims=True),
    "another_variance": lambda x: (x - x.mean()) / jnp.sqrt(x.var(ddof=1) + 1e-5),
    "another_row": lambda x: x[::-1] / jnp.linalg.norm(x),
    "another_gelu": lambda x: x * 0.5 * (1 + jnp.tanh(0.8 * (x + 0.044715 * x**3))),
    "an_eps_that_is_no_number": lambda x: x / jnp.sqrt(jnp.sum(x * x) + x[0] ** 2),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_differs_is_bounded_by_its_parts(name):
    found = names(DIFFERENT[name], 4, 4) if name == "another_axis" else names(DIFFERENT[name], 4)
    assert not {"softmax", "gelu_tanh", "gelu", "layer_norm", "rms_norm"} & set(found)


def test_what_is_used_elsewhere_too_is_kept(double):
    def fn(x):
        weights = jnp.exp(x - jax.lax.stop_gradient(jnp.max(x, axis=-1, initial=-jnp.inf, keepdims=True)))
        return weights / weights.sum(-1, keepdims=True), weights

    def norm(x):
        size = jnp.sqrt(jnp.sum(x * x))
        return jnp.append(x / size, size)

    assert names(norm, 4) == ["square", "sqrt", "rms_norm", "concatenate"]
    soundness.check(norm, soundness.box([0.5, -1.0, 2.0, 0.1], 0.2))
    lower, upper = jaxbound.ibp(fn)(soundness.box([0.5, 1.0], 0.1))[1]
    assert (lower <= upper).all()


def test_inside_a_loop(double):
    weight = soundness.weights(4, 4) / 2

    def fn(x):
        def step(x, _):
            return weight @ jax.nn.softmax(jax.nn.standardize(x)), None

        return jax.lax.scan(step, x, None, length=2)[0]

    (scan,) = (e for e in program_of(fn, 4).equations if e.name == "scan")
    assert {"softmax", "layer_norm"} < {e.name for e in Scan.of(scan).body.equations}
    soundness.check(fn, *soundness.boxes(4)[:2])


def test_errors_and_labels_name_the_line_of_the_user():
    layers = jaxbound.layer_bounds(lambda x: jax.nn.softmax(x))(soundness.box([0.0, 1.0], 0.1))
    (label,) = layers
    assert "softmax" in label and "test_composites.py" in label


def test_a_norm_with_a_number_for_each_row_is_another():
    """Sums of a scalar and an array have no broadcast: the primitives alone would be those of one number."""
    eps = jnp.array([1e-3, 1.0, 100.0])

    def fn(x):
        return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1) + eps)[:, None]

    x = jnp.array([[1.0, -2.0, 0.5], [0.3, 0.2, 1.0], [2.0, 1.0, -1.0]])
    for end in jaxbound.ibp(fn)(jaxbound.Interval(x, x)):
        np.testing.assert_allclose(end, fn(x), rtol=1e-4)
