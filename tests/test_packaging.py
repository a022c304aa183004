"""What an installation gets: the metadata, the wheel's content, and an import that needs little."""

import pathlib
import re
import runpy
import subprocess
import sys

import pytest
import setuptools

import jaxbound

ROOT = pathlib.Path(__file__).parent.parent
TEST_COMMAND = "pip install -e '.[test]' && pytest"


@pytest.fixture(name="metadata")
def fixture_metadata(monkeypatch):
    """The arguments that setup.py passes to setuptools."""
    captured = {}
    monkeypatch.setattr(setuptools, "setup", lambda **arguments: captured.update(arguments))
    monkeypatch.chdir(ROOT)
    runpy.run_path(str(ROOT / "setup.py"))
    return captured


def test_version_has_one_source(metadata):
    assert metadata["version"] == jaxbound.__version__
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {jaxbound.__version__}\n" in citation


def test_wheel_contains_every_part_of_the_library_and_nothing_else(metadata):
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "jaxbound").rglob("*.py")}
    assert set(metadata["packages"]) == {".".join(folder.parts) for folder in folders}
    assert metadata["package_data"] == {"jaxbound": ["py.typed"]}
    assert (ROOT / "jaxbound" / "py.typed").is_file()


def test_requirements(metadata):
    assert "jax>=0.7.2,!=0.10.2" in metadata["install_requires"]
    assert metadata["python_requires"] == ">=3.11"
    extras = {name: set(requirements) for name, requirements in metadata["extras_require"].items()}
    assert extras["experiments"] < extras["test"] < extras["dev"]
    names = {re.split(r"[<>=!; \[]", requirement)[0].lower() for requirement in extras["dev"]}
    assert "tensorflow-datasets" in names
    assert not names & {"tensorflow", "tensorflow-cpu", "clu", "tensorboard"}


def test_ci_runs_the_test_command_of_the_readme():
    assert TEST_COMMAND in (ROOT / "README.md").read_text(encoding="utf-8")
    assert TEST_COMMAND in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


def test_import_needs_no_training_library():
    """None in `sys.modules` makes an import of that name fail."""
    absent = ["absl", "flax", "optax", "tensorflow", "tensorflow_datasets"]
    program = f"import sys; sys.modules.update(dict.fromkeys({absent})); import jaxbound; print(jaxbound.__version__)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, jaxbound.__version__), done.stderr
