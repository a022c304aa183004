import pytest

from experiments.common import data
from tests.experiments import tiny_runs


@pytest.fixture
def tiny(monkeypatch):
    """Makes `data.load` return the tiny data set."""
    dataset = tiny_runs.make_dataset()
    monkeypatch.setattr(data, "load", lambda *_: dataset)
    return dataset
