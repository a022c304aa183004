"""The campaign in small, and that it finds what is wrong."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbound
from tests import campaign, cases, claims, shrink, soundness


def wrong(x, slope=0.0, top=None):
    """Lines around a ReLU of which the upper one is too low."""
    lower, upper = jaxbound.relax.tight(x, slope, top)
    return jaxbound.Relaxation(lower, upper._replace(intercept=0.9 * upper.intercept))


@pytest.fixture
def broken(monkeypatch):
    monkeypatch.setitem(claims.CLAIMS, "planes wrong", functools.partial(jaxbound.linear_bounds, relu=wrong))
    return "planes wrong"


# What campaigns have found, mended: program, claim, ends of the interval, a point in it.
HUGE = [-1.1808911992747611e30, 2.083737809899189e28, 7.945938452253859e29]
FOUND = {
    "a_slope_whose_digits_cancel_was_computed_twice": (
        ("v1 = log_softmax:2(0,)", 2, "planes adaptive"),
        ([*HUGE, -1.0800688971456666e30], [*HUGE, 1.0895563137209441e30]),
        [*HUGE, 1.0895563137209441e30],
    ),
    "a_product_with_a_constant_lost_the_small_end": (
        ("v1 = vmap:2(0,); v2 = cube(1,)", 1, "planes adaptive"),
        ([1.5e30, 5.5e29, 1.2e30, -1.1e30], [1.5e30, 5.5e29, 1.2e30, 1.9e30]),
        [1.5e30, 5.5e29, 1.2e30, 1.9e30],
    ),
}


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_is_mended(name):
    (text, outputs, claim), ends, point = FOUND[name]
    sets, points = (jaxbound.Interval(*map(np.array, ends)),), (np.array(point),)
    claims.assert_sound(cases.parse(text, ((4,),), outputs), claim, sets, points)


def test_what_the_function_itself_rounds_is_no_violation(broken):
    """(y + x) - x with x = 1e29 is 2e12 beside y = 1e20; a bound that is further off stays wrong."""
    difference = "v2 = add(1, 0); v3 = sub(2, 0)"
    x = np.array([1e20, 1e29, 3e29, -7e28])
    rolled = cases.parse(f"v1 = roll:2(0,); {difference}", outputs=1)
    claims.assert_sound(rolled, "planes one", (jaxbound.Interval(x, x),), (x,))
    with pytest.raises(AssertionError, match="planes wrong"):
        around = (jaxbound.Interval(x - 1e29, x + 1e29),)
        claims.assert_sound(cases.parse(f"v1 = relu(0,); {difference}", outputs=1), broken, around, (x + 1e29,))


def test_some_programs_of_every_kind(capsys):
    assert campaign.main(["--first=8", "--programs=2", "--points=1e4"]) == 0
    assert "2 programs" in capsys.readouterr().out


def test_a_loop_without_reverse_mode_is_attacked_too(monkeypatch, capsys):
    monkeypatch.setattr(cases, "draw", lambda seed, index: cases.parse("v1 = control.halve(0,)", outputs=1))
    assert campaign.main(["--programs=1", "--points=1e3"]) == 0
    assert "1 programs" in capsys.readouterr().out


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_lower_precisions_are_counted_and_no_error(dtype, monkeypatch, capsys):
    monkeypatch.setattr(cases, "draw", lambda seed, index: cases.parse("v1 = tanh(0,)", outputs=1))
    assert campaign.main(["--programs=1", "--points=1e4", f"--dtype={dtype}"]) == 0
    out = capsys.readouterr().out
    assert "VIOLATION by" in out and ", 0 violations" not in out and "def test" not in out


def test_a_violation_is_an_error_and_is_printed_as_a_test(broken, monkeypatch, capsys):
    monkeypatch.setattr(campaign, "choose_claim", lambda seed, index: broken)
    monkeypatch.setattr(cases, "draw", lambda seed, index: cases.parse("v1 = relu(0,)", outputs=1))
    assert campaign.main(["--programs=1", "--points=1e4", "--attempts=2", "--show=1"]) == 1
    out = capsys.readouterr().out
    assert "VIOLATION by" in out and "def test_planes_wrong_holds" in out


def test_what_is_found_is_shrunk_to_a_test_that_fails_until_it_is_mended(broken, monkeypatch):
    with jax.enable_x64(True):
        program = cases.parse("v1 = scale(0,); v2 = relu(1,); v3 = negative(2,)")
        case = shrink.judge(shrink.Case(program, broken, (soundness.boxes(4)[1],), "float64"))
    assert case is not None and case.excess > 1e-3
    shrunk = shrink.shrink(case, attempts=12)
    assert str(shrunk.program) == "v1 = relu(0,)" and shrunk.excess > 1e-3
    assert np.sum(shrunk.sets[0].lower == shrunk.sets[0].upper) >= 2
    names = {}
    exec(shrink.as_test(shrunk), names)
    with pytest.raises(AssertionError, match=r"output \d is .*, outside .* by planes wrong"):
        names["test_planes_wrong_holds"]()
    monkeypatch.setitem(claims.CLAIMS, broken, jaxbound.linear_bounds)
    names["test_planes_wrong_holds"]()


def test_a_sound_claim_is_no_case():
    with jax.enable_x64(True):
        region = soundness.boxes(4)[1]
        assert shrink.judge(shrink.Case(cases.parse("v1 = relu(0,)"), "ibp", (region,), "float64")) is None


def test_steps_are_left_out_with_what_reads_them_rewired():
    program = cases.parse("v2 = add(1, 0); v3 = tanh(2,); v4 = mul(3, 2)", shapes=((4,), (4,)))
    assert str(shrink.without(program, 1)) == "v2 = add(1, 0); v3 = mul(2, 2)"
    assert str(shrink.without(program, 0)) == "v2 = tanh(1,); v3 = mul(2, 1)"


def test_an_interrupted_campaign_tells_what_it_found(monkeypatch, capsys):
    def add(report, seed, index, dtype, count):
        if index == 2:
            raise KeyboardInterrupt
        report.programs += 1

    monkeypatch.setattr(campaign, "add", add)
    assert campaign.main(["--programs=10"]) == 0
    out = capsys.readouterr().out
    assert "interrupted" in out and "2 programs" in out


def test_a_program_that_cannot_be_bounded_is_an_error(monkeypatch, capsys):
    def add(report, seed, index, dtype, count):
        raise ValueError("no bounds")

    monkeypatch.setattr(campaign, "add", add)
    assert campaign.main(["--programs=1"]) == 1
    assert "REFUSED program 0: ValueError: no bounds" in capsys.readouterr().out


def test_programs_are_read_back_from_what_they_print():
    for index in range(66):
        program = cases.draw(1, index)
        again = cases.parse(str(program), program.shapes, program.outputs)
        assert str(again) == str(program)
        arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in program.shapes]
        assert jax.eval_shape(again, *arrays) == jax.eval_shape(program, *arrays)


@pytest.mark.parametrize("kinds", ["boxes", *((p, clip) for p in (1, 2, 3, np.inf) for clip in (False, True))])
def test_points_lie_in_their_sets(kinds, double):
    for seed in range(4):
        rng = np.random.default_rng(seed)
        batch, names = cases.regions(rng, (2, 2), kinds, "float64")
        for k, name in enumerate(names):
            region = cases.pick(batch, k)
            points = jax.vmap(functools.partial(claims.point, region))(cases.unit_points(rng, region, 32))
            inside = jax.vmap(functools.partial(jaxbound.contains, region, tolerance=1e-12))(points)
            assert inside.all() and np.isfinite(points).all(), (name, region)


def test_sets_are_repeated_by_their_source(double):
    batch, _ = cases.regions(np.random.default_rng(0), (2,), (2, True), "float64")
    names = {"np": np, "jaxbound": jaxbound}
    for region in (cases.pick(batch, 1), jaxbound.Interval(jnp.array([-jnp.inf, 0.1]), jnp.array([1 / 3, jnp.inf]))):
        jax.tree.map(np.testing.assert_array_equal, eval(shrink.literal(region), names), region)


def test_verdicts():
    values = np.array([[0.5, np.inf, np.nan]])
    seen = claims.Seen(*np.array([[[0.0, 1.0, 0.0]], [[1.0, np.inf, 1.0]], [[1.0, 1.0, 1.0]], [[0.0, 0.0, 0.0]]]))
    assert not claims.verdict("ibp", values, seen).wrong.any()

    def wrong(name="ibp", **changes):
        ends = {key: np.full((1, 3), value) for key, value in changes.items()}
        return claims.verdict(name, values, seen._replace(**ends))

    assert wrong(lower=0.6).wrong.tolist() == [[True, False, False]]
    assert not wrong(lower=0.6, doubt=0.2).wrong.any()
    assert wrong(upper=0.4).wrong.tolist() == [[True, True, False]]
    assert wrong(lower=np.nan).wrong.all() and not wrong("planes tight", lower=np.nan).wrong.any()
    assert wrong("planes tight", lower=np.nan).vacuous.sum() == 3
    assert wrong(lower=np.inf, upper=-np.inf).wrong.all()
    assert not wrong(lower=-np.inf, upper=np.inf).wrong.any()
