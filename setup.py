"""Package metadata: the installed package is `jaxbound/` alone; everything else runs from a checkout."""

import pathlib
import re

import setuptools

HERE = pathlib.Path(__file__).parent


def version() -> str:
    """Returns the one version string, read from `jaxbound/__init__.py` without importing JAX."""
    source = (HERE / "jaxbound" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "([^"]+)"', source, re.MULTILINE).group(1)


EXPERIMENTS = [
    "absl-py>=2",
    "array_record>=0.5",
    "flax>=0.10",
    "importlib_resources>=6",  # tensorflow-datasets imports it without asking for it
    "matplotlib>=3.8",
    "mlxtend>=0.23",
    "orbax-checkpoint>=0.11",
    "pillow>=10",
    "tensorboardX>=2.6",
    "tensorflow-datasets>=4.9.7",
    "tqdm>=4.66",
]
TEST = [*EXPERIMENTS, "chex>=0.1.89", "hypothesis>=6.100", "pytest>=8", "pytest-xdist>=3.5", "setuptools>=68"]
DEV = [*TEST, "pyright>=1.1.400", "ruff>=0.12"]

setuptools.setup(
    name="jaxbound",
    version=version(),
    description="Sound, tight, fast bounds of any JAX function, and certified training with them.",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The jaxbound authors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords="jax bounds verification robustness interval-bound-propagation crown certified-training",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    packages=setuptools.find_packages(include=["jaxbound", "jaxbound.*"]),
    package_data={"jaxbound": ["py.typed"]},
    zip_safe=False,
    # 0.10.2 miscompiles `jit` on CPU: a sum of ones over a large axis comes out wrong.
    install_requires=["jax>=0.7.2,!=0.10.2", "numpy>=2.0", "optax>=0.2.4"],
    extras_require={"experiments": EXPERIMENTS, "test": TEST, "dev": DEV},
)
