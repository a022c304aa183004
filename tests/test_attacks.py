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


@pytest.mark.parametrize("region", [jaxbound.Ball(jnp.zeros(2), jnp.full(2, 0.1), 3), (0.0, 1.0)])
def test_other_sets_are_refused(region):
    with pytest.raises(TypeError, match="attacks a box .* got (a ball of p = 3|tuple)"):
        attacks.pgd(wavy, steps=1, step_size=0.1)(KEY, region, 0)


# Balls.


X = jax.random.uniform(KEY, (2, 3))
BALLS = {
    "ball": jaxbound.l2_ball(X, 0.25),
    "small and far": jaxbound.l2_ball(100 + X, 1e-3),
    "smaller than rounding": jaxbound.l2_ball(100 + X, 1e-6),
    "point": jaxbound.l2_ball(X, 0.0),
    "ellipsoid": jaxbound.l2_ball(X, 0.3, std=jnp.array([0.1, 0.5, 1.0])),
    "some fixed": jaxbound.Ball(jnp.ones((2, 3)), jnp.array([[0.0, 1.0, 0.5], [1e-4, 0.0, 2.0]]), 2),
}
CLIPPED_BALLS = {
    "clipped": jaxbound.l2_ball(X, 0.5, clip=(0.0, 1.0)),
    "centre outside the clip box": jaxbound.l2_ball(jnp.linspace(-0.1, 1.1, 6).reshape(2, 3), 0.2, clip=(0.0, 1.0)),
}
L1_BALLS, CLIPPED_L1_BALLS = (
    {name: jaxbound.Ball(ball.center, 2 * ball.radius, 1, ball.clip) for name, ball in balls.items()}
    for balls in (BALLS, CLIPPED_BALLS)
)
BOXES = {
    "box": jaxbound.Ball(X, jnp.full((2, 3), 0.3), np.inf),
    "fixed sides": jaxbound.Ball(jnp.full((2, 3), 0.1), jnp.array([[0, 0.3, 1.0], [1e-9, 0, 3]]), np.inf),
}


def all_in_their_set(fn, balls):
    """Whether attacks with short and long steps, from several starts, only find points of their set: [N]."""

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None, None))
    @functools.partial(jax.vmap, in_axes=(None, 0, None))
    @functools.partial(jax.vmap, in_axes=(None, None, 0))
    def inside(region, key, step_size):
        found = attacks.pgd(fn, steps=4, step_size=step_size, restarts=2)(key, region, 0)
        return jaxbound.contains(region, found)

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *balls.values())
    return inside(stacked, jax.random.split(KEY, 8), jnp.array([1e-3, 100.0])).all(axis=(1, 2))


@pytest.mark.parametrize("balls", [BALLS, CLIPPED_BALLS, L1_BALLS, CLIPPED_L1_BALLS, BOXES])
def test_the_result_is_in_the_ball(balls):
    np.testing.assert_array_equal(all_in_their_set(wavy, balls), True, str(list(balls)))


@pytest.mark.parametrize("fn", [lambda x: jnp.array([0.0, jnp.nan * x.sum()]), lambda x: jnp.exp(1e3 * x[0])])
def test_the_result_is_in_the_ball_where_the_function_is_not_finite(fn):
    np.testing.assert_array_equal(all_in_their_set(fn, CLIPPED_BALLS), True)


@pytest.mark.parametrize("name, scale", [("ball", 1e-30), ("ellipsoid", 1e30)])
def test_exact_on_a_linear_margin_in_a_ball(name, scale):
    """The worst input lies where the gradient, seen along the ellipsoid's axes, leaves the ball, whatever its size."""
    region = BALLS[name]
    attack = attacks.pgd(lambda x: scale * linear(x)[:2], objective=attacks.margin, steps=60, step_size=1.0)
    gradient = jax.grad(lambda x: linear(x)[1] - linear(x)[0])(region.center)
    worst = region.center + region.radius**2 * gradient / jnp.linalg.norm(region.radius * gradient)
    margins = [float(attacks.margin(linear(x)[:2], 0)) for x in (attack(KEY, region, 0), worst)]
    np.testing.assert_allclose(*margins, rtol=1e-3)


@pytest.mark.parametrize("name", ["ball", "ellipsoid"])
def test_exact_on_a_linear_margin_in_an_l1_ball(name):
    """The worst input is the corner along the axis on which the margin rises most."""
    region = L1_BALLS[name]
    attack = attacks.pgd(lambda x: linear(x)[:2], objective=attacks.margin, steps=60, step_size=1.0)
    rise = region.radius * jax.grad(lambda x: linear(x)[1] - linear(x)[0])(region.center)
    center, worst = float(attacks.margin(linear(region.center)[:2], 0)), float(jnp.max(jnp.abs(rise)))
    found = float(attacks.margin(linear(attack(KEY, region, 0))[:2], 0))
    np.testing.assert_allclose(found, center + worst, rtol=1e-3)


def test_a_step_in_a_ball_has_this_length():
    region, slope = jaxbound.l2_ball(jnp.zeros(4), 10.0), jnp.array([3.0, -4.0, 0.0, 12.0])

    def found(steps):
        attack = attacks.pgd(
            lambda x: jnp.array([0.0, slope @ x]), objective=attacks.margin, steps=steps, step_size=0.5
        )
        return attack(KEY, region, 0)

    np.testing.assert_allclose(found(1) - found(0), 0.5 * slope / 13, rtol=1e-4, atol=1e-5)


def test_starts_fill_the_ball():
    region = jaxbound.l2_ball(jnp.array([0.3, -0.2]), 0.5)
    attack = attacks.pgd(wavy, steps=0, step_size=1.0)
    starts = jax.vmap(attack, (0, None, None))(jax.random.split(KEY, 400), region, 0)
    lengths = jnp.linalg.norm(starts - region.center, axis=1) / 0.5
    np.testing.assert_allclose(jnp.mean(lengths < 0.5), 0.25, atol=0.07)  # a quarter of the area
    np.testing.assert_allclose(starts.mean(axis=0), region.center, atol=0.05)


def test_steps_climb_in_a_ball():
    region = jaxbound.l2_ball(jnp.full(20, 0.5), 2.0, clip=(0.0, 1.0))
    value = [
        attacks.margin(wavy(attacks.pgd(wavy, objective=attacks.margin, steps=n, step_size=0.1)(KEY, region, 0)), 0)
        for n in (0, 3, 30)
    ]
    assert value[0] < value[1] < value[2]


def test_a_ball_of_infinite_p_is_a_box():
    ball = BOXES["box"]
    attack = attacks.pgd(lambda x: linear(x)[:2], steps=10, step_size=0.1)
    as_box = attack(KEY, jaxbound.Interval(ball.center - ball.radius, ball.center + ball.radius), 0)
    np.testing.assert_allclose(attack(KEY, ball, 0), as_box, rtol=1e-6)
