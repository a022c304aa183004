"""`python -m tests.matrix`: writes docs/operators.md, the page of what is bounded by which method, by running it all.

Every primitive with a rule is bounded in the smallest case of the rules' tests that has it, every stock layer of Linen
and NNX as Flax code calls it. A cell is the mean width of the bounds divided by that of values at sampled points, all
of which were found inside; where there is no such number, it is the reason.
"""

import argparse
import functools
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

import jaxbound
from jaxbound.methods.problem import prepare
from jaxbound.rules import registry
from jaxbound.rules.activations import known_names
from tests import cases, layers, soundness

PAGE = pathlib.Path(__file__).parent.parent / "docs" / "operators.md"
OPERATOR_METHODS = {"interval": jaxbound.ibp, "backward": jaxbound.crown_ibp, "forward": jaxbound.lbp}
LAYER_METHODS = {
    "ibp": jaxbound.ibp,
    "crown_ibp": jaxbound.crown_ibp,
    "crown": functools.partial(jaxbound.crown, chunk=64),
}

# Declared, but never in a program: what JAX emits only in other releases or places, and why that is all right.
NOT_EMITTED = {
    "add_any": "only in derivatives that JAX takes while it traces; the same as `add`",
    "copy_p": "the name of `copy` in other releases of JAX",
    "log2": "other releases of JAX emit `log` and a quotient",
    "le_to": "the total order of floats, where `lt_to` is not used",
    "lt_to": "the total order of floats, where `le_to` is not used",
    "one_minus_square": "the derivative of `tanh` in other releases of JAX",
    "device_put": "only where an array is moved while a function is traced",
    "mesh_cast": "needs a mesh of explicitly sharded axes; no arithmetic",
    "pcast": "inside `jax.shard_map` only; no arithmetic",
    "pvary": "inside `jax.shard_map` only; no arithmetic",
    "reshard": "needs a mesh of explicitly sharded axes; no arithmetic",
    "scatter_add": "the name of `scatter-add` in other releases of JAX",
    "stack": "other releases of JAX emit `concatenate`",
    "stop_gradient": "JAX removes it while it traces",
    "tile": "other releases of JAX emit `broadcast_in_dim`",
    "unstack": "other releases of JAX emit `slice`",
    "sharding_constraint": "no arithmetic",
}
CONTROL = ("cond", "scan", "while")


def primitives():
    """Everything that has a row: primitives with a rule, activations known by name, control flow."""
    return sorted({*registry.registered(), *CONTROL}), sorted(
        name for name in known_names() if not name.startswith("atomic_")
    )


def all_cases():
    """Name and function, of one vector [4], of every case of the rules' tests."""
    return cases.RULES | {f"matrix.{name}": fn for name, fn in EXTRA.items()}


EXTRA = {
    "scan": lambda x: jax.lax.scan(lambda c, y: (jnp.tanh(c + y), c * y), x[0], x)[1],
    "reduce_window_sum": lambda x: jax.lax.reduce_window(jnp.tanh(x), 0.0, jax.lax.add, (2,), (1,), "VALID"),
    "sort": lambda x: jnp.sort(jnp.tanh(x)),
}


def operators_in(fn):
    """The names of all equations of a function that depend on its vector, branches and loops included."""
    program = prepare(fn, (soundness.boxes(4)[0],), {}).program
    return names_in(program, program.open_slots()), len(program.equations)


def names_in(program, is_open):
    """The names of all equations that depend on open slots."""
    names = set()
    for equation in program.equations:
        if any(slot in is_open for slot in equation.inputs):
            names.add(equation.name)
            for part in [equation.params[k] for k in ("body",) if k in equation.params]:
                names |= names_in(part, part.open_slots())
    return names


def smallest_cases():
    """Operator -> the name of the case with the fewest equations among those that have it."""
    found = {}
    for name, fn in all_cases().items():
        operators, size = operators_in(fn)
        if name.startswith("control"):
            size += 1000  # where nothing else has it
        if fn in cases.BRANCHES:
            operators |= {"cond"}  # gone once a program is specialised
        for operator in operators:
            if operator not in found or size < found[operator][1]:
                found[operator] = (name, size)
    return {operator: name for operator, (name, _) in found.items()}


# Cells.


def measure(fn, box, methods, points=200):
    """Method -> the width of its bounds in sampled widths, or the reason why there is none."""

    def value(x):
        return soundness.flat(fn(x))

    units = soundness.as_float(soundness.units(box, points))
    # One at a time: some operations on sharded arrays cannot be batched.
    values = np.asarray(jax.jit(lambda us: jax.lax.map(lambda u: value(soundness.point(box, u)), us))(units))
    return {name: cell(make(fn), box, values) for name, make in methods.items()}


def cell(bound, box, values):
    """One cell of a table."""
    try:
        lower, upper = (np.asarray(end) for end in soundness.ends(jax.jit(bound)(box)))
    except jaxbound.UnsupportedError as error:
        return f"no rule: {str(error).split(':')[0]}"
    except Exception as error:  # whatever fails is part of the page
        return f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"
    slack = 10 * soundness.tolerance() * (1 + np.abs(values) + soundness.largest(lower, upper))
    if (np.maximum(lower - values, values - upper) > slack).any():
        return "UNSOUND"
    if not np.isfinite([lower, upper]).all():
        return "infinite"
    found, sampled = np.mean(upper - lower), np.mean(values.max(axis=0) - values.min(axis=0))
    if sampled == 0:
        return f"{found:.3g} wide" if found else "constant"
    return f"{found / sampled:.2f}"


def operator_rows(names, smallest, done):
    """A row for each operator: its case and its cells."""
    functions, box = all_cases(), soundness.boxes(4)[0]
    for name in names:
        if name not in smallest:
            yield name, {"case": "none", "reason": NOT_EMITTED.get(name, "NO CASE")}
            continue
        key = smallest[name]
        if key not in done:
            with jax.enable_x64(True):
                done[key] = measure(functions[key], soundness.as_float(box), OPERATOR_METHODS)
            print(key, done[key], flush=True)
        yield name, {"case": key, **done[key]}


def layer_rows(library, table, done):
    """A row for each layer, on a box of radius 0.1 around a random example."""
    for name, make in table.items():
        key = f"{library}: {name}"
        if key not in done:
            done[key] = _layer(make)
            print(key, done[key], flush=True)
        yield name, done[key]


def _layer(make):
    try:
        fn, shape = make()
    except Exception as error:  # a release of Flax without this layer is part of the page
        return dict.fromkeys(LAYER_METHODS, f"{type(error).__name__}: {error}".split("\n")[0][:80])
    box = soundness.box(np.random.default_rng(0).uniform(-1, 1, shape), 0.1)
    return measure(fn, box, LAYER_METHODS)


# The page.


def table(header, rows):
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(str(x).replace('|', '/') for x in line)} |" for line in lines)


def operator_table(names, smallest, done):
    """The rows of some operators."""
    rows = []
    for name, row in operator_rows(names, smallest, done):
        cells = [row[method] for method in OPERATOR_METHODS] if row["case"] != "none" else ["", "", ""]
        rows.append([f"`{name}`", *cells, row["case"] if row["case"] != "none" else row["reason"]])
    return table(["operator", *OPERATOR_METHODS, "case"], rows)


def layer_table(library, layers_, done):
    """The rows of a library's layers."""
    rows = [[name, *(row[m] for m in LAYER_METHODS)] for name, row in layer_rows(library, layers_, done)]
    return table(["layer", *LAYER_METHODS], rows)


def refused_table():
    """Primitives that are refused, with what the error says."""
    return table(["refused", "because"], [[f"`{name}`", reason] for name, reason in registry.refused().items()])


INTRODUCTION = """# What is bounded

Written by `python -m tests.matrix`, which runs every cell. A number is the mean width of the bounds divided by the mean
width of the values at {points} random points and at corners of one box, all of which were found inside the bounds. 1 is
as tight as can be; for many inputs the sampled width is short of the true one. `interval` is `ibp`, `backward` is
`crown_ibp` (whose lines are those of every backward method), `forward` is `lbp`. Cases are in `tests/rules`, layers in
`tests/layers.py`. jax {jax}, flax {flax}.
"""


def main(arguments=None):
    """Measures what the cache does not have, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cache", type=pathlib.Path, help="a file of cells measured before")
    parser.add_argument("--page", type=pathlib.Path, default=PAGE)
    options = parser.parse_args(arguments)
    done = json.loads(options.cache.read_text()) if options.cache and options.cache.exists() else {}
    done = Saved(done, options.cache)
    smallest, (operators, activations) = smallest_cases(), primitives()
    parts = [
        INTRODUCTION.format(points=200, jax=jax.__version__, flax=layers.flax_version),
        "## Primitives\n\n" + operator_table(operators, smallest, done),
        "## Activations that are bounded whole\n\n" + operator_table(activations, smallest, done),
        "## Layers of Linen\n\n" + layer_table("linen", layers.LINEN, done),
        "## Layers of NNX\n\n" + layer_table("nnx", layers.NNX, done),
        "## What is refused\n\nEvery error names the primitive, the user's line and the way out.\n\n" + refused_table(),
    ]
    options.page.write_text("\n\n".join(part.strip() for part in parts) + "\n", encoding="utf-8")
    return 0


class Saved(dict):
    """Cells, kept in a file as they are measured."""

    def __init__(self, cells, path):
        super().__init__(cells)
        self.path = path

    def __setitem__(self, key, value):
        super().__setitem__(key, value)
        if self.path:
            self.path.write_text(json.dumps(self, indent=1))


if __name__ == "__main__":
    sys.exit(main())
