import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbound
from experiments.common import data, evaluate, placement
from experiments.common.models import Network
from tests.experiments.tiny_runs import config

# Two classes and one pixel p: the margin of class 0 is 2p - 1, so a digit p of class 0 holds up to radius p - 1/2.
PIXELS = np.array([255, 204, 179, 140, 100, 51])
SPLIT = data.Split(PIXELS.astype(np.uint8).reshape(-1, 1, 1, 1), np.zeros(6, np.int32))
RADII = np.maximum(PIXELS / 255 - 0.5, 0)


def apply(variables, x):
    flat = x.reshape(*x.shape[:-3], -1)
    return variables["scale"] * jnp.concatenate([flat, 1 - flat], axis=-1)


PARAMS = {"scale": jnp.array(3.0)}
NETWORK = Network(apply, None, PARAMS, 2)
WHERE = placement.make("data:1")


def evaluation(split=SPLIT, **changes):
    flags = config("unused", eval_methods=("ibp", "crown_ibp", "crown"), eval_batch_size=4, **changes)
    return evaluate.Evaluation(NETWORK, flags, split, WHERE)


@pytest.mark.parametrize("radius", [0.01, 0.1, 0.25, 0.45])
def test_errors_of_a_linear_network_are_exact(radius):
    full = evaluation(eval_radii=(radius,), pgd_steps=20).full(PARAMS)
    assert full["clean_error"] == pytest.approx(100 * np.mean(RADII == 0), abs=1e-3)
    exact = pytest.approx(100 * np.mean(RADII <= radius), abs=1e-3)
    assert full["pgd_error"] == exact
    assert full["verified_error"] == {"ibp": exact, "crown_ibp": exact, "crown": exact}


def test_certified_radii():
    found = evaluation().certified_radii(PARAMS, range(6), halvings=12)
    np.testing.assert_allclose(found, RADII, atol=1e-3)
    assert evaluate.largest_radius(config("unused", radius=0.3)) == 1.0
    assert evaluate.largest_radius(config("unused", radius=1.58, norm="2")) > 1.58


def test_curve_is_monotone_and_begins_at_the_clean_error():
    curve = evaluation().curve(PARAMS, [0.0, 0.1, 0.25, 0.45])
    assert curve == sorted(curve)
    assert curve[0] == pytest.approx(100 * np.mean(RADII == 0), abs=1e-3)


def test_quick_figures():
    figures = evaluation(eval_radii=(0.25,)).quick(PARAMS)
    assert figures == {
        "test_clean_error": pytest.approx(100 * 2 / 6, abs=1e-3),
        "test_verified_error": pytest.approx(100 * 4 / 6, abs=1e-3),
    }


def recording(passing, seen):
    """A check that holds for the labels in `passing`, and notes which labels it was asked about."""

    def check(params, examples, radius):
        seen.append(examples.labels.tolist())
        return jnp.isin(examples.labels, jnp.array(passing))

    return check


def test_the_cascade_asks_tighter_methods_only_about_what_is_left():
    split = data.Split(np.zeros((6, 1, 1, 1), np.uint8), np.arange(6, dtype=np.int32))
    subject = evaluation(split, eval_radii=(0.1,))
    asked = {"ibp": [], "crown_ibp": [], "crown": []}
    passing = {"ibp": [0, 1], "crown_ibp": [2], "crown": [1, 2, 3]}
    subject._methods = tuple(
        evaluate.Method(name, recording(passing[name], asked[name]), batch_size=4) for name in asked
    )
    subject._classifier = recording([0, 1, 2, 3, 4], [])
    subject._attacker = lambda *_: jnp.ones(4, bool)
    full = subject.full(PARAMS)
    assert asked["ibp"] == [[0, 1, 2, 3], [4, 5, 4, 5]]  # all of them; the last batch is filled up
    assert asked["crown_ibp"] == [[2, 3, 4, 2]]
    assert asked["crown"] == [[3, 4, 3, 4]]
    assert full["verified_error"] == {"ibp": 66.6667, "crown_ibp": 50.0, "crown": 33.3333}
    assert full["clean_error"] == full["pgd_error"] == 16.6667


def test_an_unsound_bound_would_show():
    split = data.Split(np.zeros((4, 1, 1, 1), np.uint8), np.arange(4, dtype=np.int32))
    subject = evaluation(split, eval_radii=(0.1,))
    subject._methods = (evaluate.Method("ibp", recording([0, 1, 2, 3], []), batch_size=4),)
    subject._classifier = recording([0], [])
    subject._attacker = lambda *_: jnp.array([True, False, True, True])
    full = subject.full(PARAMS)
    assert full["verified_error"]["ibp"] < full["pgd_error"] == full["clean_error"] == 75


def test_every_example_is_attacked():
    subject = evaluation(eval_radii=(0.01,))
    seen = []
    subject._attacker = lambda _, examples, *__: (seen.append(examples.images.ravel()), jnp.ones(4, bool))[1]
    subject.full(PARAMS)
    assert set(np.concatenate(seen)) == set(PIXELS)


def test_the_attack_does_not_depend_on_the_batch():
    """Keys belong to examples; one random start and no step, so that the key decides."""
    rng = np.random.default_rng(0)
    split = data.Split(rng.integers(100, 156, (64, 1, 1, 1), dtype=np.uint8), np.zeros(64, np.int32))
    options = {"eval_radii": (0.1,), "pgd_steps": 0, "pgd_restarts": 1}
    first = evaluation(split, **options).full(PARAMS)["pgd_error"]
    flags = config("unused", eval_batch_size=7, **options)
    assert evaluate.Evaluation(NETWORK, flags, split, WHERE).full(PARAMS)["pgd_error"] == first


@pytest.mark.parametrize("everywhere", [False, True])
def test_crown_at_further_radii_only_where_asked(everywhere):
    full = evaluation(eval_radii=(0.1, 0.2), crown_everywhere=everywhere).full(PARAMS)
    assert ("crown" in full["radii"][1]["verified_error"]) is everywhere
    assert "crown" in full["radii"][0]["verified_error"]


def test_a_nan_verifies_nothing():
    check = evaluate.verifier(NETWORK, config("unused"), jaxbound.ibp)
    passed = check({"scale": jnp.array(jnp.nan)}, SPLIT, 0.01)
    assert not np.asarray(passed).any()


def test_a_check_compiles_once():
    traced = []

    def counted(fn):
        traced.append(fn)
        return jaxbound.ibp(fn)

    check = evaluate.verifier(NETWORK, config("unused"), counted)
    for start in (0, 2):
        check(PARAMS, data.Split(*(leaf[start : start + 4] for leaf in SPLIT)), 0.1 * (start + 1))
    assert len(traced) == 1


def test_no_examples_left():
    held = evaluate.Examples(SPLIT, WHERE).passing(None, chosen=np.array([], int), batch_size=4, title="none")
    assert held.tolist() == [False] * 6


@pytest.mark.parametrize("norm", ["2", "1"])
def test_other_norms(norm):
    """Two equal pixels: a margin of 2p - 1 for their mean p falls by 2 sqrt(1/2) r in l_2, and by r in l_1."""

    def mean(variables, x):
        p = x.mean(axis=(-3, -2, -1), keepdims=False)[..., None]
        return variables["scale"] * jnp.concatenate([p, 1 - p], axis=-1)

    network = Network(mean, None, PARAMS, 2)
    split = data.Split(np.repeat(SPLIT.images, 2, axis=1), SPLIT.labels)
    flags = config("unused", norm=norm, clip=False, eval_methods=("ibp", "crown_ibp"), eval_batch_size=4)
    subject = evaluate.Evaluation(network, flags, split, WHERE)
    share = {"2": np.sqrt(0.5), "1": 0.5}[norm]
    for radius in (0.1, 0.29, 0.55):
        exact = pytest.approx(100 * np.mean(RADII <= share * radius), abs=1e-3)
        assert subject.curve(PARAMS, [radius]) == [exact]


def test_attacked_errors():
    subject = evaluation(pgd_steps=20)
    errors = subject.attacked(PARAMS, [0.1, 0.25], size=4)
    assert errors == [pytest.approx(100 * np.mean(RADII[:4] <= radius)) for radius in (0.1, 0.25)]


def test_verification_has_the_highest_precision_whatever_is_asked_for_outside():
    def linear(variables, x):
        return x.reshape(*x.shape[:-3], -1) @ variables["w"]

    network = Network(linear, None, {"w": jnp.ones((1, 2))}, 2)
    check = evaluate.verifier(network, config("unused"), jaxbound.ibp)
    with jax.default_matmul_precision("bfloat16"):
        text = check.lower(network.variables, SPLIT, 0.1).as_text()
    found = re.findall(r"dot_general.*?precision = \[(\w+), (\w+)\]", text)
    assert found and {operand for pair in found for operand in pair} == {"HIGHEST"}
