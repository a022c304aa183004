import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxbound
from jaxbound.rules import discrete
from tests import soundness

W = soundness.weights(4, 4)


def number(decision):
    """Booleans and integers as floats, which is what a bounded function returns."""
    return decision.astype(float)


# Linear bounds of every kind know these by the same constants.
METHODS = {name: soundness.METHODS[name] for name in ("ibp", "crown_ibp")}
CASES = {
    "order": lambda x: number(x < W @ x) + number(x <= 0.25) - number(x > 0.25) * 2 - number(W @ x >= x),
    "equal": lambda x: number(jnp.floor(x) == 0) + number(jnp.sign(x) != jnp.sign(W @ x)),
    "total_order": lambda x: number(jnp.searchsorted(np.array([-1.0, 0.0, 1.0], x.dtype), x)),
    "logic": lambda x: number(((x > 0) & (W @ x < 1)) | ~(x < -1) ^ (x > 1)),
    "any_all": lambda x: number(jnp.any(x > 1)) + number(jnp.all(W @ x < 1)),
    "is_finite": lambda x: number(jnp.isfinite(x)) + number(jnp.isnan(x)),
    "conversions": lambda x: number((3 * x).astype(int)) + number(x.astype(bool)) + number((x > 0).astype(int)),
    "narrow": lambda x: number((x + 9).astype(jnp.uint8)) + number((x + 3.5).astype(int).astype(jnp.int8)),
    "sums": lambda x: number(1 - (2 * x).astype(int) + (3 * W @ x).astype(int) - 4),
    "products": lambda x: number((2 * x).astype(int) * (3 * W @ x).astype(int) * -2 + (2 * x).astype(int) ** 3),
    "quotients": lambda x: number((9 * x).astype(int) // 2) + number((9 * x).astype(int) % 4),
    "steps": lambda x: number(jnp.clip(jnp.abs((3 * x).astype(int)), 1, 5) - jnp.sign((3 * x).astype(int))),
    "counts": lambda x: number(jnp.sum(x > 0)) + number(jnp.cumsum(W @ x > 0)),
    "extremes": lambda x: number(jnp.max((3 * x).astype(int)) - lax.cummax((3 * x).astype(int))),
    "moved": lambda x: number(jnp.concatenate([(x > 0)[::-1], jnp.ones(2, bool)]).reshape(2, 3).T[1:]),
    "argmax": lambda x: number(jnp.argmax(W @ x)) + number(jnp.argmin(x.reshape(2, 2), axis=1)),
    "argmax_of_integers": lambda x: number(jnp.argmax((3 * x).astype(int)) + jnp.argmin(x > 0)),
    "one_hot": lambda x: jax.nn.one_hot(jnp.argmax(W @ x), 4) @ W,
}


@pytest.mark.parametrize("name", CASES)
def test_sound(name, double):
    soundness.check(CASES[name], *soundness.boxes(4)[:3], methods=METHODS, gradient=None)


def test_what_is_decided_is_exact():
    box = jaxbound.Interval(jnp.array([0.1, -2.0, 3.0, 1.0]), jnp.array([0.9, -1.0, 4.0, 2.5]))

    def decided(x):
        return number(x > 0), number(jnp.argmax(x)), number(jnp.floor(x).astype(int)[0]), number(jnp.isnan(x))

    for method in METHODS.values():
        for found, expected in zip(jax.jit(method(decided))(box), ([1, 0, 1, 1], 2, 0, [0] * 4), strict=True):
            np.testing.assert_array_equal(found, [expected] * 2)


@pytest.mark.parametrize("method", [jaxbound.ibp, jaxbound.crown_ibp])
def test_of_what_is_unknown_every_decision_is_open(method):
    unknown = jaxbound.Interval(jnp.array(-1.0), jnp.array(1.0))
    for fn in (lambda x: number(jnp.log(x) > 0), lambda x: number(1 / x < 2), lambda x: number(jnp.isnan(jnp.log(x)))):
        assert method(fn)(unknown) == (0, 1)
    lower, upper = method(lambda x: number(jnp.log(x).astype(jnp.int32)))(unknown)
    assert lower == -(2.0**31) and upper == 2.0**31


@pytest.mark.parametrize("method", [jaxbound.ibp, jaxbound.crown_ibp])
def test_unsigned_integers_in_single_precision(method):
    def position(x):  # a binary search, whose loop counts by unsigned integers
        return number(jnp.searchsorted(np.array([-1.0, 0.0, 1.0], x.dtype), x))

    box = jaxbound.Interval(jnp.array([-1.0, 0.5, -2.0]), jnp.array([0.5, 0.5, 3.0]))
    # The loop's ends forget one another: 2 is the largest position of the first element.
    np.testing.assert_array_equal(method(position)(box), [[0, 2, 0], [3, 2, 3]])
    undefined = jaxbound.Interval(jnp.array(-1.0), jnp.array(1.0))
    assert method(lambda x: number(jnp.log(x).astype(jnp.uint32) + jnp.uint32(0)))(undefined) == (0, 2.0**32)
    assert method(lambda x: number(lax.div((2 + x).astype(jnp.uint32), jnp.uint32(0))))(undefined) == (0, 2.0**32)


def test_integers_that_may_overflow_are_unknown(double):
    info = jnp.iinfo(jnp.int32)

    def power(x):
        n = x.astype(jnp.int32)
        return number(n * n), number(n + n), number(-n)

    large = jaxbound.Interval(jnp.array(1.0), jnp.array(2.0**30 + 0.5))
    product, double_, negative = jaxbound.ibp(power)(large)
    assert product == (info.min, info.max) and double_ == (info.min, info.max)
    assert negative == (-(2**30), -1)


def test_extremes_of_types():
    assert discrete.extremes(jnp.dtype(bool)) == (False, True)
    assert discrete.extremes(jnp.dtype("uint8")) == (0, 255)
    assert discrete.extremes(jnp.dtype("bfloat16")) == (-np.inf, np.inf)


@pytest.mark.parametrize(
    "fn, box",
    [
        (lambda x: lax.reduce_and(x, (0,)), (6.0, 6.0)),
        (lambda x: lax.reduce_or(x, (0,)), (6.0, 6.0)),
        (lambda x: jnp.prod(jnp.concatenate([x, x])), (4e4, 6e4)),
        (lambda x: jnp.cumprod(jnp.concatenate([x, x]))[-1], (4e4, 6e4)),
        (lambda x: lax.div(x, jnp.full_like(x, -1))[0], (-3e9, 3e9)),
    ],
)
def test_integers_by_bits_and_beyond_their_range(fn, box):
    def whole(x):
        return fn((jnp.array([0, -3]) + x.astype(jnp.int32)).astype(jnp.int32)).astype(float)

    lower, upper = jaxbound.ibp(whole)(jaxbound.Interval(*(jnp.array([end]) for end in box)))
    for x in np.linspace(*box, 101):
        assert lower <= whole(jnp.array([x])) <= upper


def test_what_is_no_number_decides_nothing():
    box = jaxbound.Interval(jnp.array([-1.0]), jnp.array([1.0]))
    for compare in (lax.le, lax.lt, lax.ge, lax.ne):
        lower, upper = jaxbound.ibp(lambda x, c=compare: jnp.where(c(jnp.log(x), jnp.inf), 0.0, 1.0))(box)
        assert (lower, upper) == (0, 1)


def test_integers_selected_by_their_sign():
    def fn(x):
        count = x.astype(jnp.int32) * 3 + 1
        return jnp.where(count > 0, count, 0).astype(float)

    soundness.check(fn, jaxbound.Interval(-jnp.ones(1), 2 * jnp.ones(1)))
