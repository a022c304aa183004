"""The benchmark of compile times runs."""

import jax.numpy as jnp

import jaxbound
from benchmarks import compile as benchmark


def test_times_grow_with_what_is_computed():
    fn, x = benchmark.network((1,), width=2, size=4), jnp.full((4, 4, 3), 0.5)
    plain = benchmark.times(fn, x)
    bounded = benchmark.times(benchmark.bounded(fn, jaxbound.ibp), x, jnp.array(0.01))
    assert min(*plain, *bounded) > 0 and bounded.operations > plain.operations


def test_bounds_are_those_of_the_margins():
    fn, x = benchmark.network((1,), width=2, size=4), jnp.full((4, 4, 3), 0.5)
    logits = fn(x)
    margins = benchmark.bounded(fn, jaxbound.ibp)(x, 0.0)
    assert jnp.allclose(margins, logits[0] - logits[1:], atol=1e-4)
