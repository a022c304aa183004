"""Bounds against exact answers: linear programs over all patterns, mixed-integer programs, and dense grids."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbound
from tests import claims, milp, oracles
from tests.programs import Program, Step

pytestmark = pytest.mark.usefixtures("double")

SIZES = (2, 4, 3, 2)
ROW = np.array([1.0, -1.0])


@pytest.fixture(scope="module")
def bound():
    return milp.bounds()


@functools.cache
def problem(seed, radius=0.5):
    """A small network, a box, and the exact minimum of one margin."""
    network, box, _ = milp.instance(SIZES, radius, seed)
    return network, box, oracles.minimum_by_patterns(network, ROW, box)


@pytest.mark.parametrize("seed", range(3))
def test_the_oracles_agree(seed):
    network, box, exact = problem(seed)
    assert abs(exact.value - exact.bound) < 1e-8
    assert abs(oracles.minimum(network, ROW, box).value - exact.value) < oracles.SOLVER_TOLERANCE
    xs = np.random.default_rng(seed).uniform(*box, (100_000, 2))
    lowest = (oracles.evaluate(network, xs.T) @ ROW).min()
    assert exact.value <= lowest + 1e-9 and lowest < exact.value + 0.05


def test_both_networks_are_the_same():
    network, _, _ = problem(0)
    x = np.array([0.3, -0.8])
    np.testing.assert_allclose(milp.apply(network, jnp.asarray(x)), oracles.evaluate(network, x), rtol=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_no_bound_exceeds_the_exact_minimum(seed, bound):
    network, box, exact = problem(seed)
    found = bound(network, jaxbound.Interval(*map(jnp.asarray, box)), ROW[None])
    for name, lower in found.items():
        assert lower[0] <= exact.value + 1e-9, name
    assert found["crown tight"][0] > exact.value - 10  # and they are bounds of this very function


def test_bounds_of_a_linear_piece_are_exact(bound):
    network, box, exact = problem(0, radius=1e-3)
    found = bound(network, jaxbound.Interval(*map(jnp.asarray, box)), ROW[None])
    for name in ("crown adaptive", "crown tight", "crown_lbp tight"):
        np.testing.assert_allclose(found[name], exact.value, rtol=1e-9, err_msg=name)


@pytest.mark.slow(reason="compiles every method; another test runs the command")
def test_the_table_of_distances(capsys):
    assert milp.main(["--nets=2", "--sizes=3,5,4,3", "--radius=0.4"]) == 0
    out = capsys.readouterr().out
    assert "2 networks of 3,5,4,3 units, 4 margins" in out and " 0 bounds above" in out
    assert all(name in out for name in milp.METHODS)


def test_a_bound_above_a_value_is_an_error(monkeypatch, capsys):
    def wrong(fn):
        return lambda *args, spec: jaxbound.crown(fn)(*args, spec=spec) + 5.0

    monkeypatch.setitem(milp.METHODS, "wrong", wrong)
    assert milp.main(["--nets=1", "--sizes=3,5,3"]) == 1
    assert "2 bounds above" in capsys.readouterr().out


# Functions of one variable on a dense grid.

CURVES = {
    "sin(5 x) + x^2": lambda x: jnp.sin(5 * x) + x * x,
    "gelu(2 sin(2 x))": lambda x: jax.nn.gelu(2 * jnp.sin(2 * x), approximate=False),
    "x exp(-x^2)": lambda x: x * jnp.exp(-(x * x)),
    "silu(4 x) - |clip(x)|": lambda x: jax.nn.silu(4 * x) - jnp.abs(jnp.clip(x, -0.5, 0.7)),
}
INTERVALS = [(-2.0, 2.0), (-0.1, 1.7), (0.3, 0.30001), (-1.0, 1.0), (-3.0, -0.4)]
ON_CURVES = ("planes adaptive", "planes same_slope", "crown adaptive", "lbp tight", "ibp")


SLOW = pytest.mark.slow(reason="compiles longer than all the others")


@pytest.mark.parametrize("name", [pytest.param(name, marks=SLOW if "gelu" in name else ()) for name in CURVES])
def test_planes_and_bounds_enclose_curves_on_a_dense_grid(name):
    fn = CURVES[name]

    def planes(box):
        return {claim: claims.claimed(claims.CLAIMS[claim], fn, (box,)) for claim in ON_CURVES}

    ends = np.array(INTERVALS)[..., None]
    found = claims.run(jax.vmap(planes), jaxbound.Interval(ends[:, 0], ends[:, 1]))
    xs = np.linspace(ends[:, 0], ends[:, 1], 20_001, axis=1)
    program = Program((Step(name, fn, (0,)),), ((1,),), outputs=1)
    at_points = jax.vmap(lambda pairs, x: claims.observe(program, pairs, [x]), (None, 0))
    _, values, seen = jax.tree.map(np.asarray, jax.vmap(at_points)(found, xs))
    for claim in ON_CURVES:
        assert np.isfinite(seen[claim]).all(), claim
        assert claims.verdict(claim, values, seen[claim]).excess.max() < 1e-14, claim
