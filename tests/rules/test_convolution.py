import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxbound
from tests import soundness

K = soundness.weights(2, 2, 2, 3)  # HWIO
G = soundness.weights(3, 3, 1, 4)  # for two groups
IMAGE = soundness.weights(1, 4, 4, 2)
NHWC = ("NHWC", "HWIO", "NHWC")
NCHW = ("NCHW", "OIHW", "NCHW")
SHAPES = {"NHWC": (1, 4, 4, 2), "NCHW": (1, 2, 4, 4), "NHC": (1, 8, 2), "NDHWC": (1, 2, 4, 2, 2)}


def convolve(x, kernel, strides=(1, 1), padding="SAME", layout=NHWC, **options):
    """A convolution of operands of one precision, which JAX insists on."""
    x, kernel = jnp.asarray(x, float), jnp.asarray(kernel, float)
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=layout, **options)


def layer(kernel=K, strides=(1, 1), padding="SAME", layout=NHWC, **options):
    """A convolution as a function of its image, and the shape of that."""
    return (lambda x: convolve(x, kernel, strides, padding, layout, **options) + 1), SHAPES[layout[0]]


LAYERS = {
    "plain": layer(),
    "window_of_one": layer(soundness.weights(1, 1, 2, 3)),
    "stride": layer(strides=(2, 2), padding=[(1, 0), (0, 1)]),
    "stride_divides": layer(soundness.weights(4, 4, 2, 3), (2, 2), [(1, 1), (1, 1)]),
    "stride_does_not_divide": layer(soundness.weights(3, 3, 2, 2), (2, 2), [(1, 1), (1, 1)]),
    "stride_beyond_the_window": layer(strides=(3, 3), padding="VALID"),
    "strides_differ": layer(strides=(2, 1), padding="VALID"),
    "negative_padding": layer(padding=[(-1, 1), (0, -1)]),
    "negative_padding_stride": layer(strides=(2, 2), padding=[(-1, 1), (0, -2)]),
    "dilated": layer(padding=[(1, 1), (1, 1)], rhs_dilation=(2, 2)),
    "dilated_stride": layer(strides=(2, 2), padding=[(1, 1), (1, 1)], rhs_dilation=(2, 1)),
    "dilated_image": layer(padding=[(1, 1), (1, 1)], rhs_dilation=(2, 2), lhs_dilation=(2, 1)),
    "groups": layer(G, feature_group_count=2),
    "groups_stride": layer(G, (2, 2), feature_group_count=2),
    "channels_first": layer(np.transpose(K, (3, 2, 0, 1)), layout=NCHW),
    "channels_first_stride": layer(np.transpose(K, (3, 2, 0, 1)), (2, 2), layout=NCHW),
    "one_dimension": layer(K[0], (2,), layout=("NHC", "HIO", "NHC")),
    "three_dimensions": layer(soundness.weights(1, 2, 2, 2, 2), (1, 2, 1), layout=("NDHWC", "DHWIO", "NDHWC")),
}


def both(fn):
    """Bounds by the plain convolution and by the one to be transposed."""
    return lambda region: [soundness.ends(make(fn)(region)) for make in (jaxbound.ibp, jaxbound.crown_ibp)]


def linearised(fn, x):
    """Value and jacobian of a function at a point, as a vector and a matrix."""
    value, rows = jax.jit(lambda x: (fn(x), jax.jacobian(fn)(x)))(x)
    return np.ravel(value), np.reshape(rows, (-1, x.size))


@pytest.mark.parametrize("name", LAYERS)
def test_bounds_of_one_layer_are_exact(name, double):
    """Coefficients are those of the transposed convolution, borders included."""
    fn, shape = LAYERS[name]
    region = soundness.boxes(*shape)[0]
    value, jacobian = linearised(fn, jaxbound.midpoint(region))
    width = np.abs(jacobian) @ np.ravel(jaxbound.radius(region))
    bounds, planes = jax.jit(lambda box: (both(fn)(box), jaxbound.linear_bounds(fn)(box)))(region)
    for lower, upper in bounds:
        np.testing.assert_allclose(lower, value - width, atol=1e-12)
        np.testing.assert_allclose(upper, value + width, atol=1e-12)
    np.testing.assert_allclose(planes.lower.coeffs.reshape(jacobian.shape), jacobian, atol=1e-12)


def image(x, shape=(1, 4, 4, 2)):
    """An image made of the numbers of x [4], each at several places."""
    return jnp.reshape(jnp.concatenate([jnp.tanh(x), 2 * x, x - 1, -x] * 2), shape)


CASES = {
    **{
        f"of_a_{name}": (lambda x, fn=LAYERS[name][0], shape=LAYERS[name][1]: jax.nn.relu(fn(image(x, shape))))
        for name in ("stride_divides", "stride_does_not_divide", "dilated_image", "groups")
    },
    "of_a_kernel": lambda x: convolve(IMAGE, K * jnp.tanh(x)[:2, None]),
    "of_a_kernel_stride": lambda x: convolve(IMAGE, K * jnp.tanh(x)[:2, None], (2, 2)),
    "of_a_kernel_odd": lambda x: convolve(IMAGE, jnp.ones((3, 3, 2, 1)) * x[:2, None], (2, 2)),
    "of_two_sets": lambda x: convolve(image(x), K * x[0]),
    "of_two_sets_stride": lambda x: convolve(image(x), K * x[:2, None], (2, 2)),
    "of_two_sets_odd": lambda x: convolve(image(x), jnp.ones((3, 3, 2, 1)) * x[:2, None], (2, 2), [(1, 1), (0, 1)]),
}


@pytest.mark.parametrize("name", CASES)
def test_sound(name, double):
    """By full CROWN where a kernel is a set; elsewhere it takes the same steps as CROWN-IBP. The campaign tries all."""
    methods = soundness.METHODS if "kernel" in name else {k: soundness.METHODS[k] for k in ("ibp", "crown_ibp")}
    soundness.check(CASES[name], *soundness.boxes(4)[:3], methods=methods)


@pytest.mark.parametrize("name", ["of_a_stride_divides"])
def test_sound_in_single_precision(name):
    soundness.check(CASES[name], *soundness.boxes(4)[:3])


@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
def test_a_perturbed_kernel_has_the_coefficients_of_a_linear_function(strides, double):
    region = soundness.boxes(2, 2, 2, 3)[0]
    planes = jax.jit(jaxbound.linear_bounds(lambda kernel: convolve(IMAGE, kernel, strides)))(region)
    jacobian = jax.jacobian(lambda kernel: convolve(IMAGE, kernel, strides))(region.lower)
    np.testing.assert_allclose(planes.lower.coeffs, jacobian, atol=1e-12)


@pytest.mark.parametrize("make_ball", [jaxbound.l1_ball, jaxbound.l2_ball])
@pytest.mark.parametrize(
    "name", ["plain", "stride_does_not_divide", "dilated_image", "groups", "channels_first_stride"]
)
def test_a_ball_is_as_wide_as_the_dual_norm(make_ball, name, double):
    """At the borders of the image too."""
    fn, shape = LAYERS[name]
    radius = np.abs(soundness.weights(*shape, seed=1))
    ball = make_ball(soundness.as_float(soundness.weights(*shape)), radius)
    value, rows = linearised(fn, ball.center)
    width = np.linalg.norm(rows * radius.ravel(), np.inf if ball.p == 1 else 2, axis=1)
    for lower, upper in jax.jit(both(fn))(ball):
        np.testing.assert_allclose(lower, value - width, atol=1e-12)
        np.testing.assert_allclose(upper, value + width, atol=1e-12)
