import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbound
from jaxbound import attacks

KEY = jax.random.key(0)


def linear(x, seed=1):
    """Logits [3] that are linear in x."""
    weights = jax.random.normal(jax.random.key(seed), (3, x.size))
    return weights @ x.ravel()


def wavy(x):
    """Logits [2] with many local maxima of the margin."""
    return jnp.array([0.0, jnp.sum(jnp.sin(7 * x) + 0.3 * x)])


def box(shape=(4,), eps=0.3, seed=0):
    return jaxbound.linf_ball(jax.random.uniform(jax.random.key(seed), shape), eps)


def test_margin():
    logits = jnp.array([1.0, 3.0, 2.5])
    assert attacks.margin(logits, 1) == -0.5
    assert attacks.margin(logits, 2) == 0.5
    assert attacks.margin(logits, 0) == 2


def test_cross_entropy():
    logits = jnp.array([1.0, 3.0, 2.5])
    np.testing.assert_allclose(attacks.cross_entropy(logits, 1), -jax.nn.log_softmax(logits)[1], rtol=1e-6)


@pytest.mark.parametrize("objective", [attacks.margin, attacks.cross_entropy])
@pytest.mark.parametrize("shape", [(6,), (2, 3, 1)])
def test_exact_on_a_linear_margin(objective, shape):
    """With two classes the worst input is the corner of the gradient's sign."""
    region = box(shape)
    pair = functools.partial(lambda x: linear(x)[:2])
    found = attacks.pgd(pair, objective=objective, steps=10, step_size=0.1)(KEY, region, 0)
    gradient = jax.grad(lambda x: pair(x)[1] - pair(x)[0])(region.lower)
    np.testing.assert_array_equal(found, jnp.where(gradient > 0, region.upper, region.lower))


def test_steps_climb_and_restarts_help():
    region = box((20,), eps=1.0)
    value = {}
    for steps, restarts in ((0, 1), (0, 50), (30, 1), (30, 50)):
        attack = attacks.pgd(wavy, objective=attacks.margin, steps=steps, step_size=0.05, restarts=restarts)
        value[steps, restarts] = attacks.margin(wavy(attack(KEY, region, 0)), 0)
    assert value[0, 1] < value[0, 50] < value[30, 1] < value[30, 50]


def test_no_steps_return_the_best_random_start():
    region, restarts = box(), 5
    found = attacks.pgd(wavy, objective=attacks.margin, steps=0, step_size=1.0, restarts=restarts)(KEY, region, 0)
    keys = jax.random.split(KEY, restarts)
    starts = [region.lower + jax.random.uniform(key, (4,)) * (region.upper - region.lower) for key in keys]
    best = max(starts, key=lambda x: attacks.margin(wavy(x), 0))
    np.testing.assert_allclose(found, best, rtol=1e-6)


def test_the_best_iterate_is_kept():
    """Steps across the whole box end worse than they begin; what is returned is never worse than the start."""
    region = box((3,), eps=0.3)

    def far_steps(steps):
        attack = attacks.pgd(wavy, objective=attacks.margin, steps=steps, step_size=0.37)
        return float(attacks.margin(wavy(attack(KEY, region, 0)), 0))

    values = [far_steps(steps) for steps in range(8)]
    assert values == sorted(values) and values[0] < values[-1]


@pytest.mark.parametrize("step_size", [1e-3, 0.1, 100.0])
@pytest.mark.parametrize("steps", [0, 1, 7])
def test_the_result_is_in_the_box(steps, step_size):
    regions = jax.vmap(lambda x: jaxbound.linf_ball(x, 0.3))(jax.random.uniform(KEY, (32, 5)))
    attack = attacks.pgd(wavy, steps=steps, step_size=step_size, restarts=2)
    found = jax.vmap(attack)(jax.random.split(KEY, 32), regions, jnp.zeros(32, int))
    assert ((found >= regions.lower) & (found <= regions.upper)).all()


@pytest.mark.parametrize("fn", [lambda x: jnp.sqrt(-x), lambda x: x * jnp.nan, lambda x: x * jnp.inf])
def test_the_result_is_in_the_box_where_the_function_is_not_finite(fn):
    region = box((2,))
    found = attacks.pgd(fn, steps=3, step_size=0.1, restarts=3)(KEY, region, 0)
    assert jaxbound.contains(region, found)


def test_a_nan_never_wins():
    region = jaxbound.Interval(jnp.array([0.0]), jnp.array([1.0]))
    holed = lambda x: jnp.array([0.0, jnp.where(x[0] > 0.5, jnp.nan, x[0])])  # noqa: E731
    found = attacks.pgd(holed, objective=attacks.margin, steps=20, step_size=0.05, restarts=8)(KEY, region, 0)
    assert 0.3 < found[0] <= 0.5


def test_a_point_is_returned_as_it_is():
    x = jnp.array([0.1, 0.7])
    found = attacks.pgd(wavy, steps=3, step_size=0.1, restarts=2)(KEY, jaxbound.Interval(x, x), 0)
    np.testing.assert_array_equal(found, x)


def test_a_step_per_coordinate():
    region = jaxbound.Interval(jnp.zeros(2), jnp.full(2, 100.0))
    step_size = jnp.array([0.0, 100.0])
    found = attacks.pgd(lambda x: jnp.array([0.0, x.sum()]), steps=1, step_size=step_size)(KEY, region, 0)
    assert found[0] < 100 and found[1] == 100


def test_batches_equal_single_examples():
    regions = jax.vmap(lambda x: jaxbound.linf_ball(x, 0.2))(jax.random.uniform(KEY, (3, 4)))
    keys, labels = jax.random.split(KEY, 3), jnp.array([0, 1, 0])
    attack = attacks.pgd(wavy, steps=5, step_size=0.05, restarts=2)
    batch = jax.vmap(attack)(keys, regions, labels)
    for i in range(3):
        single = attack(keys[i], jax.tree.map(lambda leaf, i=i: leaf[i], regions), labels[i])
        np.testing.assert_allclose(batch[i], single, rtol=1e-6)


def test_the_key_decides():
    attack = attacks.pgd(wavy, steps=2, step_size=0.01)
    first, again, other = (attack(jax.random.key(seed), box(), 0) for seed in (3, 3, 4))
    assert (first == again).all() and (first != other).any()


def test_parameters_may_be_traced():
    @jax.jit
    def attacked(scale, region):
        return attacks.pgd(lambda x: scale * wavy(x), steps=3, step_size=0.1 * scale)(KEY, region, 0)

    np.testing.assert_allclose(
        attacked(1.0, box()), attacks.pgd(wavy, steps=3, step_size=0.1)(KEY, box(), 0), rtol=1e-6
    )


def test_one_program_whatever_the_number_of_steps():
    def equations(steps, restarts):
        attack = attacks.pgd(wavy, steps=steps, step_size=0.1, restarts=restarts)
        return str(jax.make_jaxpr(attack)(KEY, box(), 0)).count(" = ")

    assert equations(2, 2) == equations(200, 20)


def test_negative_steps():
    with pytest.raises(ValueError, match="steps must not be negative, got -1"):
        attacks.pgd(wavy, steps=-1, step_size=0.1)


def test_no_restarts():
    with pytest.raises(ValueError, match="restarts must be at least 1, got 0"):
        attacks.pgd(wavy, steps=1, step_size=0.1, restarts=0)


def test_only_boxes_are_attacked():
    with pytest.raises(TypeError, match="attacks a box .*got Ball"):
        attacks.pgd(wavy, steps=1, step_size=0.1)(KEY, jaxbound.l2_ball(jnp.zeros(2), 0.1), 0)
