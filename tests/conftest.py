"""Fixtures that several folders of tests share."""

import atexit
import os
import shutil
import tempfile

import pytest

# Most of the time of these tests is that of XLA's compiler, and many compile the same programs: the processes of a
# session, and the programs that they start, share what they have compiled.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jaxbound-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
# Nor does most of what they compile run twice: optimising it costs more than it saves.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import jax

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
