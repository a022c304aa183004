import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxbound import schedules

STEPS = np.array([0, 1, 9, 10, 11, 25, 49, 50, 51, 1000])


@pytest.mark.parametrize("kind", [schedules.linear, schedules.smoothed])
@pytest.mark.parametrize("begin, end", [(0, 40), (10, 50), (10, 11), (10, 12)])
def test_ends(kind, begin, end):
    schedule = kind(0.25, 0.75, begin=begin, end=end)
    values = np.array([schedule(step) for step in STEPS])
    assert (values[begin >= STEPS] == 0.25).all()
    np.testing.assert_allclose(values[end <= STEPS], 0.75, rtol=1e-6)
    assert (np.diff(values) >= 0).all()
    falling = kind(0.75, 0.25, begin=begin, end=end)
    np.testing.assert_allclose([falling(step) for step in STEPS], 1 - values, rtol=1e-6)


def test_linear_is_optax_linear():
    ours = schedules.linear(0.3, -0.1, begin=10, end=50)
    theirs = optax.linear_schedule(0.3, -0.1, transition_steps=40, transition_begin=10)
    np.testing.assert_allclose([ours(s) for s in STEPS], [theirs(s) for s in STEPS], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    "mid, step, value",
    [
        (0.25, 50, 0.000123),
        (0.25, 100, 0.001969),
        (0.25, 125, 0.004808),
        (0.25, 200, 0.031508),
        (0.25, 250, 0.076923),
        (0.25, 500, 0.384615),
        (0.25, 625, 0.538462),
        (0.25, 750, 0.692308),
        (0.25, 1000, 1.0),
        (0.25, 1001, 1.0),
        (0.4, 100, 0.000558),
        (0.4, 200, 0.008929),
        (0.4, 400, 0.142857),
        (0.4, 700, 0.571429),
    ],
)
def test_smoothed_vectors(mid, step, value):
    schedule = schedules.smoothed(0.0, 1.0, begin=0, end=1000, mid=mid)
    assert float(schedule(step)) == pytest.approx(value, abs=5e-7)
    shifted = schedules.smoothed(2.0, 5.0, begin=300, end=1300, mid=mid)
    assert float(shifted(step + 300)) == pytest.approx(2 + 3 * value, abs=2e-6)


def test_smoothed_has_one_slope_at_the_switch():
    schedule = schedules.smoothed(0.0, 1.0, begin=0, end=10**6)
    before, at, after = (float(schedule(step)) for step in (249_000, 250_000, 251_000))
    assert after - at == pytest.approx(at - before, rel=1e-2)


def test_smoothed_with_exponent_1_is_linear():
    ours = schedules.smoothed(0.0, 1.0, begin=10, end=50, exponent=1)
    line = schedules.linear(0.0, 1.0, begin=10, end=50)
    np.testing.assert_allclose([ours(s) for s in STEPS], [line(s) for s in STEPS], rtol=1e-6)


def test_smoothed_of_a_very_long_ramp_is_finite():
    assert float(schedules.smoothed(0.0, 1.0, begin=0, end=2**31 - 1, exponent=9.0)(2**30)) > 0


def test_following_takes_the_shape_of_the_radius():
    radius = schedules.smoothed(0.0, 0.4, begin=10, end=50)
    kappa = schedules.following(radius, 1.0, 0.5, full=0.4)
    np.testing.assert_allclose([kappa(s) for s in STEPS], [1 - 0.5 * radius(s) / 0.4 for s in STEPS], rtol=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda: schedules.linear(0.0, 1.0, begin=10, end=50),
        lambda: schedules.smoothed(0.0, 1.0, begin=10, end=50),
        lambda: schedules.following(schedules.smoothed(0.0, 0.4, begin=10, end=50), 1.0, 0.5, full=0.4),
    ],
)
def test_traced_steps(make):
    schedule = make()
    eager = np.array([schedule(int(step)) for step in STEPS])
    np.testing.assert_allclose(jax.jit(jax.vmap(schedule))(jnp.asarray(STEPS)), eager, rtol=1e-6)


def test_optax_takes_our_schedules():
    joined = optax.join_schedules([optax.constant_schedule(0.0), schedules.linear(0.0, 1.0, begin=0, end=40)], [10])
    np.testing.assert_allclose(joined(jnp.asarray(30)), 0.5)


@pytest.mark.parametrize("kind", [schedules.linear, schedules.smoothed])
@pytest.mark.parametrize("begin, end", [(10, 10), (10, 9), (0, 0)])
def test_a_ramp_must_have_a_length(kind, begin, end):
    with pytest.raises(ValueError, match=f"must end after it begins, got begin={begin} and end={end}"):
        kind(0.0, 1.0, begin=begin, end=end)


@pytest.mark.parametrize("kind", [schedules.linear, schedules.smoothed])
def test_a_ramp_cannot_begin_before_training(kind):
    with pytest.raises(ValueError, match="cannot begin before step 0, got begin=-1"):
        kind(0.0, 1.0, begin=-1, end=5)


@pytest.mark.parametrize("mid", [0, 1, -0.5, 1.5, float("nan")])
def test_mid_must_be_a_fraction(mid):
    with pytest.raises(ValueError, match="mid must lie strictly between 0 and 1"):
        schedules.smoothed(0.0, 1.0, begin=0, end=10, mid=mid)


@pytest.mark.parametrize("exponent", [0.5, 0, -1, float("nan")])
def test_exponent_must_not_start_vertically(exponent):
    with pytest.raises(ValueError, match="exponent must be at least 1"):
        schedules.smoothed(0.0, 1.0, begin=0, end=10, exponent=exponent)


@pytest.mark.parametrize("full", [0, -1, float("nan")])
def test_full_must_be_positive(full):
    with pytest.raises(ValueError, match="full must be positive"):
        schedules.following(lambda step: 0.0, 1.0, 0.5, full=full)
