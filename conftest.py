"""What every doctest may use without importing it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbound


@pytest.fixture(autouse=True)
def names_in_doctests(doctest_namespace):
    """Docstring examples assume the imports that the README's example starts with."""
    doctest_namespace.update(jax=jax, jaxbound=jaxbound, jnp=jnp, np=np)
