"""A user's mistake gets one clear error: what, where, what to do."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxbound

X = jnp.full(4, 0.5)
BOX = jaxbound.linf_ball(X, 0.1)
METHODS = [jaxbound.ibp, jaxbound.crown_ibp, jaxbound.crown, jaxbound.linear_bounds, jaxbound.layer_bounds]


def line_of(pattern):
    """file.py:number of the line in this file that matches."""
    lines = pathlib.Path(__file__).read_text(encoding="utf-8").splitlines()
    (number,) = (k for k, line in enumerate(lines, 1) if re.search(pattern, line))
    return rf"test_errors\.py:{number}"


@pytest.mark.parametrize("method", METHODS)
def test_unsupported_primitive_is_named_with_its_line_and_the_way_out(method):
    def fn(x):
        return lax.bessel_i1e(jnp.tanh(x))  # the line that has no rule

    place = line_of("that has no rule$")
    with pytest.raises(jaxbound.UnsupportedError, match=rf"'bessel_i1e' at .*{place} by any method.*jaxbound\.atomic"):
        method(fn)(BOX)


UNSUPPORTED = {
    "scatter_index": (lambda x: jnp.zeros(4).at[x.astype(int)].add(1.0), "'scatter-add'.*operand 1.*only constants"),
    "update_index": (lambda x: lax.dynamic_update_slice(X, X[:2], (jnp.argmax(x),)), "operand 2.*only constants"),
    "integer_divisor": (lambda x: 7 // jnp.floor(x).astype(int) * 1.0, "'div'.*no rule for integers"),
    "bits": (lambda x: lax.bitcast_convert_type(x, jnp.int32) * 1.0, "works on the bits"),
    "fft": (lambda x: jnp.abs(jnp.fft.fft(x)), "'convert_element_type'.*complex numbers have no order"),
    "solve": (lambda x: jnp.linalg.solve(jnp.outer(x, x), x), "'lu'.*factorising with matrices"),
    "cholesky": (lambda x: jnp.linalg.cholesky(jnp.outer(x, x)), "'cholesky'.*factorising with matrices"),
    "random": (lambda x: jax.random.uniform(jax.random.key(jnp.argmax(x)), (4,)), "'random_seed'.*random numbers"),
    "callback": (lambda x: jax.pure_callback(np.sin, x, x), "'pure_callback'.*leaves JAX"),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_cannot_be_bounded_says_why(name):
    fn, message = UNSUPPORTED[name]
    with pytest.raises(jaxbound.UnsupportedError, match=f"(?s){message}"):
        jaxbound.crown_ibp(fn)(BOX)


@pytest.mark.parametrize("eps", [-0.1, np.nan, np.array([0.1, -1.0, 0.1, 0.1])])
@pytest.mark.parametrize("ball", [jaxbound.linf_ball, jaxbound.l2_ball, jaxbound.l1_ball])
def test_negative_or_nan_radius(ball, eps):
    with pytest.raises(ValueError, match="eps must not be negative or NaN"):
        ball(X, eps)


def test_radius_of_a_wrong_shape():
    with pytest.raises(ValueError, match=r"eps of shape \(3,\) does not fit an input of shape \(4,\)"):
        jaxbound.linf_ball(X, jnp.ones(3))


def test_nan_in_the_input():
    with pytest.raises(ValueError, match="NaN"):
        jaxbound.linf_ball(X.at[1].set(jnp.nan), 0.1)
    with pytest.raises(ValueError, match="has NaN in it"):
        jaxbound.ibp(jnp.tanh)(jaxbound.Interval(X, X.at[1].set(jnp.nan)))


def test_lower_above_upper():
    with pytest.raises(ValueError, match="lower > upper at 2 of its 4 elements"):
        jaxbound.ibp(jnp.tanh)(jaxbound.Interval(X, X.at[:2].set(0.0)))


def test_ball_with_negative_radius_or_wrong_norm():
    with pytest.raises(ValueError, match="negative radius"):
        jaxbound.ibp(jnp.tanh)(jaxbound.Ball(X, -X, 2))
    with pytest.raises(ValueError, match="p of an l_p ball must be at least 1"):
        jaxbound.ibp(jnp.tanh)(jaxbound.Ball(X, X, 0.5))


@pytest.mark.parametrize("bad", [jnp.nan, -1.0])
def test_what_is_known_only_at_run_time_verifies_nothing(bad):
    for method in (jaxbound.ibp, jaxbound.crown_ibp):
        for ball in (jaxbound.linf_ball, jaxbound.l2_ball):
            out = jax.jit(lambda eps, m=method, b=ball: m(lambda x: jax.nn.relu(x) * 2)(b(X, eps)))(bad)
            assert (out.lower == -jnp.inf).all() and (out.upper == jnp.inf).all()
        crossed = jax.jit(method(jax.nn.relu))(jaxbound.Interval(X, X - 0.2))
        assert (crossed.lower == -jnp.inf).all() and (crossed.upper == jnp.inf).all()


def test_spec_of_a_wrong_shape():
    for method in (jaxbound.ibp, jaxbound.crown_ibp, jaxbound.crown):
        with pytest.raises(ValueError, match=r"\[S, \*output\] = \[S, 4\], got \[2, 3\].*per_example"):
            method(jnp.tanh)(BOX, spec=jnp.ones((2, 3)))
    with pytest.raises(ValueError, match="structure of the function's output"):
        jaxbound.ibp(lambda x: (x, x))(BOX, spec=jnp.ones((2, 4)))


def test_integers_as_a_set():
    with pytest.raises(TypeError, match="must hold floats, got int32"):
        jaxbound.ibp(lambda x: x * 1.0)(jaxbound.Interval(jnp.arange(3), jnp.arange(3)))
    with pytest.raises(TypeError, match="set of int32 values"):
        jaxbound.linf_ball(jnp.arange(3), 0.1)


def test_no_set_among_the_arguments():
    with pytest.raises(ValueError, match="no argument is a set"):
        jaxbound.ibp(jnp.tanh)(X)


def test_output_that_is_no_pytree_of_float_arrays():
    with pytest.raises(TypeError, match="pytree of float arrays"):
        jaxbound.ibp(lambda x: (x, jnp.arange(3)))(BOX)
    with pytest.raises(TypeError):
        jaxbound.ibp(lambda x: "logits")(BOX)
