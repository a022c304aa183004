import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen

import jaxbound
from tests import soundness

WEIGHT = soundness.weights(12, 3)
X = jnp.array(soundness.weights(4, 3))


def single(x):
    return jax.nn.relu(x.reshape(-1) @ WEIGHT)


def batched(x):
    """Insists on a batch: with one example its reshape fails, or means something else."""
    return jax.nn.relu(x.reshape(x.shape[0], -1) @ WEIGHT)


@pytest.mark.parametrize("method", [jaxbound.ibp, jaxbound.crown_ibp])
def test_bounds_are_those_of_the_unbatched_function(method):
    box = jaxbound.linf_ball(X, 0.1, clip=None)
    adapted, expected = (jax.jit(method(fn))(box) for fn in (jaxbound.per_example(batched), single))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), adapted, expected)


def test_vmap_gives_the_batch_back():
    batch = jnp.array(soundness.weights(5, 4, 3))
    fn = jaxbound.per_example(batched)
    np.testing.assert_allclose(fn(X), single(X), rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(fn)(batch), batched(batch), rtol=1e-5)


def test_pytrees_other_positions_and_keywords():
    def fn(inputs, scale, *, shift):
        return {"sum": scale * (inputs["a"] + inputs["b"]).sum(axis=1) + shift, "first": inputs["a"][:, 0]}

    inputs, scale = {"a": X[0], "b": X[1]}, jnp.arange(3.0)[1]
    out = jaxbound.per_example(fn, argnums=0)(inputs, scale, shift=2.0)
    np.testing.assert_allclose(out["sum"], (X[0] + X[1]).sum() + 2, rtol=1e-5)
    np.testing.assert_allclose(out["first"], X[0, 0])


def test_a_batched_module_given_one_example_is_told_of_the_adapter():
    with pytest.raises(TypeError) as caught:
        jaxbound.ibp(batched)(jaxbound.linf_ball(X, 0.1, clip=None))
    (note,) = [note for note in caught.value.__notes__ if "jaxbound" in note]
    assert "ONE example, with sets of shape (4, 3)" in note and "jaxbound.per_example(fn)" in note


class Network(linen.Module):
    """A module that needs the batch axis: its flattening keeps the first one."""

    @linen.compact
    def __call__(self, x, train):
        x = linen.Conv(4, (2, 2), strides=2)(x)
        x = linen.BatchNorm(use_running_average=not train, momentum=0.5)(x)
        x = linen.relu(x).reshape(x.shape[0], -1)
        return linen.Dense(3)(x)


def test_batch_norm_uses_its_running_average():
    model, images = Network(), jnp.array(soundness.weights(8, 4, 4, 1))
    variables = model.init(jax.random.key(0), images, train=False)
    _, statistics = model.apply(variables, images * 3 + 1, train=True, mutable=["batch_stats"])
    variables = {**variables, **statistics}

    def inference(variables, x):
        return model.apply(variables, x, train=False)

    fn = jaxbound.per_example(inference)
    clean = inference(variables, images)
    point = jax.jit(jax.vmap(lambda x: jaxbound.crown_ibp(fn)(variables, jaxbound.linf_ball(x, 0.0, clip=None))))(
        images
    )
    np.testing.assert_allclose(point.lower, clean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(point.upper, clean, rtol=1e-4, atol=1e-5)
    soundness.check(lambda x: fn(variables, x), jaxbound.linf_ball(images[0], 0.2, clip=None))
