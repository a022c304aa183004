"""On thousands of intervals no chord and no tangent is closer to an activation than the lines of its rule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbound
from jaxbound.methods.interval import propagate
from jaxbound.methods.problem import prepare

nn = jax.nn
ACTIVATIONS = {
    "relu": nn.relu,
    "leaky_relu": nn.leaky_relu,
    "elu": nn.elu,
    "elu_2": lambda x: nn.elu(x, 2.0),
    "celu": nn.celu,
    "selu": nn.selu,
    "silu": nn.silu,
    "mish": nn.mish,
    "softplus": nn.softplus,
    "squareplus": nn.squareplus,
    "soft_sign": nn.soft_sign,
    "hard_silu": nn.hard_silu,
    "sigmoid": nn.sigmoid,
    "tanh": jnp.tanh,
    "erf": jax.lax.erf,
    "atan": jnp.arctan,
    "asinh": jnp.arcsinh,
    "abs": jnp.abs,
    "square": jnp.square,
    "cube": lambda x: x**3,
    "sin": jnp.sin,
    "cos": jnp.cos,
}


def rivals(fn, x, at, count=65):
    """The highest of the lowest lines at some points, of the slopes of chord and tangents, [N] each; by a grid."""
    z = x.lower + jnp.linspace(0, 1, count)[:, None] * (x.upper - x.lower)
    slopes = jax.jvp(fn, (z,), (jnp.ones_like(z),))[1]
    chord = (fn(x.upper) - fn(x.lower)) / (x.upper - x.lower)
    bends = jnp.array([0.0, -3.0, 3.0])[:, None]
    z = jnp.concatenate([z, jnp.clip(bends, x.lower, x.upper)])
    values = fn(z)

    def height(slope):
        return slope * at + jnp.min(values - slope * z, axis=0)

    return jnp.maximum(height(chord), jax.lax.map(height, slopes).max(axis=0))


@pytest.mark.slow(reason="ten thousand intervals for each activation")
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_no_chord_or_tangent_is_closer(name, double):
    """The area between a line and the function falls with the line's height at the midpoint, which is compared."""
    fn, rng = ACTIVATIONS[name], np.random.default_rng(0)
    ends = np.sort(rng.normal(size=(2, 10_000)) * rng.choice([0.1, 1, 3, 10], 10_000), axis=0)
    x = jaxbound.Interval(*map(jnp.asarray, ends))
    problem = prepare(fn, (x,), {})
    (lines,) = propagate(problem.program, problem.sets, jaxbound.relax.adaptive).relaxations.values()
    at = jaxbound.midpoint(x)
    for side, sign in zip(lines, (1, -1), strict=True):
        offset = 0 if side.intercept is None else side.intercept
        ours = sign * (side.slopes[0] * at + offset)
        theirs = jax.jit(lambda x, at, sign=sign: rivals(lambda z: sign * fn(z), x, at))(x, at)
        # What the grid leaves out makes the rivals better than they are.
        curvature = jnp.abs(jax.vmap(jax.grad(jax.grad(fn)))(at)).max()
        slack = 1e-9 + (1 + curvature) * ((ends[1] - ends[0]) / 64) ** 2 / 4
        assert (ours >= theirs - slack).all(), (name, ends[:, int(jnp.argmin(ours - theirs + slack))])
