"""The convolutions' hand-written forms are JAX's own."""

import functools

import jax
import numpy as np
import pytest

from benchmarks.convolutions import DERIVED, WRITTEN, input_gradient
from benchmarks.models import Conv, convolve

LAYOUTS = {1: ("NHC", "HIO", "NHC"), 2: ("NHWC", "HWIO", "NHWC"), 3: ("NDHWC", "DHWIO", "NDHWC")}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "window, strides, padding, size",
    [
        ((4, 4), (2, 2), ((1, 1), (1, 1)), (8, 8)),
        ((4, 4), (2, 2), ((0, 0), (0, 0)), (9, 8)),
        ((3, 3), (2, 2), ((1, 1), (1, 1)), (7, 8)),
        ((5, 2), (2, 3), ((0, 3), (4, 1)), (9, 6)),
        ((3, 4), (1, 2), ((2, 0), (0, 1)), (5, 9)),
        ((1, 1), (2, 3), ((0, 0), (0, 0)), (7, 7)),
        ((2, 2), (3, 4), ((5, 0), (1, 6)), (4, 9)),
        ((6,), (3,), ((4, 2),), (11,)),
        ((2, 3, 4), (2, 2, 2), ((0, 1), (1, 1), (3, 0)), (4, 5, 6)),
    ],
)
def test_input_gradient(channels, window, strides, padding, size):
    keys = jax.random.split(jax.random.key(0), 2)
    kernel = jax.random.normal(keys[0], (*window, channels, 2))
    x = jax.ShapeDtypeStruct((2, *size, channels), kernel.dtype)

    def plain(x):
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=LAYOUTS[len(window)])

    ct = jax.random.normal(keys[1], jax.eval_shape(plain, x).shape)
    options = {"strides": strides, "padding": padding, "input_shape": x.shape}
    ours = jax.jit(lambda ct: input_gradient(ct, kernel, **options))(ct)
    np.testing.assert_allclose(ours, jax.linear_transpose(plain, x)(ct)[0], atol=1e-12)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(
    "layer", [Conv("divisible", 3, 4, 2, 1), Conv("uneven", 3, 2, 3, 1), Conv("dense", 3, 3, 1, 1)]
)
def test_output_and_its_derivatives(layer, channels):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (2, 9, 8, channels))
    kernel = jax.random.normal(keys[1], (layer.kernel, layer.kernel, channels, layer.features))
    shape = jax.eval_shape(lambda x: convolve(x, kernel, layer), x).shape
    ct = jax.random.normal(keys[2], shape)

    @functools.partial(jax.jit, static_argnums=0)
    def results(ops):
        out, of_conv = jax.vjp(lambda x, kernel: ops.conv(x, kernel, layer), x, kernel)
        back, of_transpose = jax.vjp(lambda ct, kernel: ops.transpose(ct, kernel, layer, x.shape), ct, kernel)
        return out, of_conv(ct), back, of_transpose(x)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), results(WRITTEN), results(DERIVED))
