"""Who may import whom: the layers of the library, read from the source."""

import ast
import pathlib
import sys

import pytest

import jaxbound

ROOT = pathlib.Path(__file__).parent.parent
ANYTHING = ("",)

# What each part of jaxbound/ may import of jaxbound/; the most specific entry counts.
LAYERS = {
    "sets": (),
    "adapters": (),
    "support": ("sets",),
    "bounds": ("sets",),
    "program": (),
    "tracing": ("program",),
    "sameness": ("program",),
    "rules.relaxation": ("sets", "bounds"),
    "rules": ("sets", "bounds", "rules"),
    "relax": ("sets", "rules.relaxation"),
    "methods": ("sets", "support", "bounds", "specs", "program", "tracing", "sameness", "rules", "relax", "methods"),
    "specs": ("sets",),
    "radii": ("sets",),
    "losses": ("sets", "specs", "losses"),
    "attacks": ("sets", "specs", "losses"),
    "schedules": (),
    "initializers": (),
    "regularizers": ("sets", "specs"),
    "nn": ANYTHING,
    "testing": ANYTHING,
    "__init__": ANYTHING,
}


def sources(folder):
    return sorted((ROOT / folder).rglob("*.py"))


def module_name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imported(path):
    """The absolute names that a file imports, at any depth: modules, and modules' attributes."""
    package = module_name(path).split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, *filter(None, [node.module])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def dotted_names(path):
    """The attribute chains in a file, such as `jax.numpy.sum`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            yield ast.unparse(node)


def within(name, prefix):
    return not prefix or name == prefix or name.startswith(f"{prefix}.")


def layer(name):
    """The entry of LAYERS that a module, named without `jaxbound.`, belongs to."""
    entries = [entry for entry in LAYERS if within(name, entry)]
    assert entries, f"jaxbound/ has a new part, {name}: say in LAYERS what it may import"
    return max(entries, key=len)


def violations(path):
    """The imports of a library file that its layer does not allow."""
    allowed = LAYERS[layer(module_name(path).removeprefix("jaxbound."))]
    ours = [name.removeprefix("jaxbound").lstrip(".") for name in imported(path) if within(name, "jaxbound")]
    return [name for name in ours if not any(within(name, prefix) for prefix in allowed)]


@pytest.mark.parametrize("path", sources("jaxbound"), ids=module_name)
def test_layers(path):
    assert not violations(path)


def test_layers_catch_a_wrong_import(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    path = tmp_path / "jaxbound" / "rules" / "shape.py"
    path.parent.mkdir(parents=True)
    path.write_text("from jaxbound.rules import registry\nfrom ..methods import interval\nimport jaxbound.program\n")
    assert violations(path) == ["methods.interval", "program"]


@pytest.mark.parametrize("path", [p for p in sources("jaxbound") if "nn" not in p.parts], ids=module_name)
def test_library_needs_only_what_it_requires(path):
    roots = {name.split(".")[0] for name in imported(path)}
    assert roots - sys.stdlib_module_names <= {"jax", "numpy", "jaxbound", "optax"}


@pytest.mark.parametrize("folder", ["jaxbound", "experiments", "benchmarks", "tests"])
def test_no_private_jax(folder):
    names = {(path, name) for path in sources(folder) for name in [*imported(path), *dotted_names(path)]}
    assert names or not sources(folder)
    assert not [(path, name) for path, name in names if within(name, "jax._src")]


@pytest.mark.parametrize("folder", ["jaxbound", "experiments", "benchmarks"])
def test_one_reader_of_jax_extend(folder):
    users = {
        module_name(path)
        for path in sources(folder)
        if any(within(name, "jax.extend") for name in [*imported(path), *dotted_names(path)])
    }
    assert users <= {"jaxbound.tracing"}


@pytest.mark.parametrize("path", [*sources("experiments"), *sources("benchmarks")], ids=module_name)
def test_programs_use_public_names(path):
    used = {name for name in [*imported(path), *dotted_names(path)] if name.startswith("jaxbound.")}
    assert {name.split(".")[1] for name in used} <= set(jaxbound.__all__) | {"__version__", "nn"}
    assert not [
        name for name in used if any(part.startswith("_") and part != "__version__" for part in name.split("."))
    ]


def test_all_names_exist():
    assert len(set(jaxbound.__all__)) == len(jaxbound.__all__)
    assert not [name for name in jaxbound.__all__ if not hasattr(jaxbound, name)]
