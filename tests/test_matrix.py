"""The page of operators is complete: what is new without a case or without a row is caught."""

import re

import jax
import jax.numpy as jnp
import pytest

import jaxbound
from jaxbound.rules import registry
from tests import layers, matrix, soundness


@pytest.fixture(scope="module")
def page():
    return matrix.PAGE.read_text(encoding="utf-8")


def rows(page, title):
    """The first cells of the table under a heading."""
    section = page.split(f"## {title}\n")[1].split("\n## ")[0]
    return [cell.strip().strip("`") for cell in re.findall(r"^\| ([^|]*) \|", section, re.MULTILINE)][2:]


def test_every_operator_has_a_row(page):
    primitives, activations = matrix.primitives()
    assert rows(page, "Primitives") == primitives
    assert rows(page, "Activations that are bounded whole") == activations
    assert rows(page, "What is refused") == list(registry.refused())


def test_every_layer_has_a_row(page):
    assert rows(page, "Layers of Linen") == list(layers.LINEN)
    assert rows(page, "Layers of NNX") == list(layers.NNX)


def test_nothing_on_the_page_is_unsound(page):
    assert "UNSOUND" not in page and "NO CASE" not in page


def test_every_operator_has_a_case_or_a_reason_for_having_none():
    cases = matrix.smallest_cases()
    primitives, activations = matrix.primitives()
    assert not [name for name in (*primitives, *activations) if name not in cases and name not in matrix.NOT_EMITTED]


def test_a_rule_without_a_case_is_noticed(monkeypatch):
    monkeypatch.setattr(registry, "_RULES", {**registry._RULES, "new": ()})
    primitives, _ = matrix.primitives()
    assert "new" in primitives
    row = dict(matrix.operator_rows(["new"], {}, {}))["new"]
    assert row == {"case": "none", "reason": "NO CASE"}


def test_cells():
    box = soundness.box([0.0, 1.0], 0.5)
    assert matrix.measure(lambda x: 2 * x, box, {"ibp": jaxbound.ibp}) == {"ibp": "1.00"}
    assert matrix.measure(jnp.log, box, {"ibp": jaxbound.ibp}) == {"ibp": "infinite"}
    refused = matrix.measure(lambda x: jax.lax.bessel_i1e(x), box, {"ibp": jaxbound.ibp})["ibp"]
    assert refused.startswith("no rule: cannot bound 'bessel_i1e'")

    def wrong(fn):
        return lambda x: jaxbound.Interval(fn(x.lower), fn(x.upper) - 0.1)

    assert matrix.measure(lambda x: x, box, {"wrong": wrong}) == {"wrong": "UNSOUND"}
