import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from experiments.common import convolution

NUMBERS = ("NHWC", "HWIO", "NHWC")
PLAIN = {"lhs_dilation": (1, 1), "rhs_dilation": (1, 1), "feature_group_count": 1}
CASES = [  # image size, kernel size, strides, padding
    ((7, 7), (3, 3), (1, 1), ((0, 0), (0, 0))),
    ((7, 7), (3, 3), (1, 1), ((1, 1), (1, 1))),
    ((8, 8), (4, 4), (2, 2), ((1, 1), (1, 1))),
    ((9, 8), (4, 3), (2, 3), ((0, 1), (2, 0))),  # rows and columns that no window reaches
    ((5, 5), (1, 1), (2, 2), ((0, 0), (0, 0))),
    ((4, 6), (4, 2), (3, 1), ((5, 3), (0, 0))),  # windows of padding alone
]


def arrays(size, kernel):
    keys = jax.random.split(jax.random.key(0), 2)
    return jax.random.normal(keys[0], (3, *size, 2)), jax.random.normal(keys[1], (*kernel, 2, 4))


@pytest.mark.parametrize("size, kernel, strides, padding", CASES)
def test_values_and_gradients_are_those_of_lax(size, kernel, strides, padding):
    def ours(x, w):
        return convolution.conv(x, w, strides, padding, **PLAIN)

    def plain(x, w):
        return lax.conv_general_dilated(x, w, strides, padding, dimension_numbers=NUMBERS)

    x, w = arrays(size, kernel)
    out, pullback = jax.vjp(ours, x, w)
    expected, expected_pullback = jax.vjp(plain, x, w)
    np.testing.assert_array_equal(out, expected)
    ct = jax.random.normal(jax.random.key(1), out.shape)
    for got, wanted in zip(pullback(ct), expected_pullback(ct), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


def test_examples_may_be_mapped():
    x, w = arrays((6, 6), (3, 3))
    one = lambda x: convolution.conv(x[None], w, (2, 2), ((1, 1), (1, 1)), **PLAIN)[0].sum()  # noqa: E731
    each = jnp.stack([jax.grad(one)(row) for row in x])
    np.testing.assert_allclose(jax.vmap(jax.grad(one))(x), each, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("option", [{"feature_group_count": 2}, {"rhs_dilation": (2, 2)}, {"lhs_dilation": (2, 2)}])
def test_what_it_cannot_do(option):
    x, w = arrays((6, 6), (3, 3))
    with pytest.raises(ValueError, match="neither dilation nor feature groups"):
        convolution.conv(x, w, (1, 1), ((0, 0), (0, 0)), **{**PLAIN, **option})
