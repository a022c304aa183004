import json

import numpy as np
import pytest

from experiments import bound_table
from tests.experiments import tiny_runs


@pytest.mark.slow(reason="trains, and compiles every method")
def test_tight_lines_keep_the_order_on_a_trained_network(tiny, tmp_path):
    """Theorem 2 of Lyu et al. 2021, example by example."""
    tiny_runs.train(tmp_path, eval_size=10)
    found = bound_table.run(str(tmp_path), radius=0.04, size=20, batch_size=8, data_dir="unused")
    content = json.loads((tmp_path / "bound_table.json").read_text())
    assert content["examples"] == 20
    assert set(content["tight"]["examples_breaking"].values()) == {0}
    tight, adaptive = (content[name]["methods"] for name in ("tight", "adaptive"))
    assert tight["ibp"] == adaptive["ibp"]
    assert tight["ibp"]["mean_margin"] <= tight["crown"]["mean_margin"]
    assert "| adaptive | crown_lbp |" in bound_table.table(found)


def test_a_broken_order_is_counted():
    assert bound_table._broken(np.array([[1.0, 1.0], [0.0, 5.0]]), np.array([[2.0, 1.0], [1.0, 4.0]])) == 1
