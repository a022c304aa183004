"""Fixtures that several folders of tests share."""

import jax
import pytest

# Sharded programs are tested on devices that share this machine's cores. All else runs on the first one.
jax.config.update("jax_num_cpu_devices", 8)


def _precision(bits):
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", bits == 64)
    yield bits
    jax.config.update("jax_enable_x64", before)


@pytest.fixture(params=[32, 64], ids=["float32", "float64"])
def precision(request):
    """Runs a test in both precisions."""
    yield from _precision(request.param)


@pytest.fixture
def double():
    """Runs a test in float64."""
    yield from _precision(64)
