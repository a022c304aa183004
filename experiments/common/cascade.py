"""Decides examples one by one by a cascade: each stage sees only what those before it left undecided.

First come the stages that refute: an example is wrong if the image itself is misclassified, and falsified if an attack
finds a misclassified image in its set. Then bounds verify, from cheap to dear. What is left is unknown.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import evaluate, job
from experiments.common.data import Split
from experiments.common.errors import UserError
from experiments.common.records import Records
from jaxbound import attacks

UNKNOWN = "unknown"
Row = dict[str, Any]
# (variables, examples, radius, indices) -> arrays [B] by name, compiled
Check = Callable[..., dict[str, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Stage:
    """One way to decide examples.

    Attributes:
      name: as it stands in the results.
      status: of the examples that it decides.
      positive: whether those are the ones with a positive margin (a bound's), or all others (an image's).
      check: finds the `margin` and, where it may, the `prediction`.
      batch_size: examples at a time.
    """

    name: str
    status: str
    positive: bool
    check: Check
    batch_size: int


def settings(this: job.Job, step: Any) -> dict[str, Any]:
    """What all that is found of an example depends on, of a run at a step."""
    names = ("dataset", "model", "norm", "clip", "eval_lines", "eval_statistics")
    return {"step": int(step), **{name: getattr(this.config, name) for name in names}}


def stages(this: job.Job, names: Sequence[str]) -> list[Stage]:
    """The stages that refute, then the bounds of these names, from cheap to dear.

    Raises:
      UserError: a name that no bound has.
    """
    size = this.config.eval_batch_size
    return [
        Stage("clean", "wrong", False, _clean(this), size),
        Stage("pgd", "falsified", False, _attacked(this), size),
        *(
            Stage(name, "verified", True, bounded(this, bound), size)
            for name, (bound, size) in bounds(this, names).items()
        ),
    ]


def bounds(this: job.Job, names: Sequence[str]) -> dict[str, tuple[Callable[..., Any], int]]:
    """Those of `evaluate.bounds` that have these names, from cheap to dear.

    Raises:
      UserError: a name that no bound has, or no name.
    """
    known = evaluate.bounds(this.config, this.placement.rows)
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise UserError(f"--method={','.join(unknown)} is unknown: choose from {', '.join(known)}")
    return {name: pair for name, pair in known.items() if name in names}


def _clean(this: job.Job) -> Check:
    @evaluate.exact
    def check(variables: Any, examples: Split, radius: Any, indices: jax.Array) -> dict[str, jax.Array]:
        del radius, indices
        logits = this.network.apply(variables, evaluate.images_of(examples, this.config))
        return {"margin": _margins(logits, examples), "prediction": jnp.argmax(logits, axis=-1)}

    return check


def _attacked(this: job.Job) -> Check:
    logits = evaluate.attacked_logits(this.network, this.config)

    @evaluate.exact
    def check(variables: Any, examples: Split, radius: Any, indices: jax.Array) -> dict[str, jax.Array]:
        return {"margin": _margins(logits(variables, examples, radius, indices), examples)}

    return check


def bounded(this: job.Job, bound: Callable[..., Any]) -> Check:
    """Finds the lowest lower bound of an example's margins."""
    margins = evaluate.margin_bounds(this.network, this.config, bound)

    @evaluate.exact
    def check(variables: Any, examples: Split, radius: Any, indices: jax.Array) -> dict[str, jax.Array]:
        del indices
        return {"margin": jnp.min(margins(variables, examples, radius), axis=1)}

    return check


def _margins(logits: jax.Array, examples: Split) -> jax.Array:
    """The label's logit minus the largest other: positive where the classification is right."""
    return -jax.vmap(attacks.margin)(logits, examples.labels)


def run(this: job.Job, variables: Any, names: Sequence[str], *, radius: float, records: Records) -> dict[str, Any]:
    """Decides the test examples, and writes each down whenever a stage is through with it.

    An example that was decided before is left alone; one that was not skips the stages that it went through.

    Args:
      this: the run.
      variables: of its network.
      names: of the bounds.
      radius: of the sets.
      records: where the examples are written, the last line of each counts.

    Returns:
      What each stage did, and the errors: `summary`, and `compile_seconds` by stage.
    """
    examples = evaluate.Examples(this.test, this.placement)
    labels = enumerate(this.test.labels.tolist())
    rows = {i: {"index": i, "label": label, "status": UNKNOWN, "seconds": {}} for i, label in labels}
    rows |= {row["index"]: row for row in records.rows if row["index"] in rows}
    compiling = {}
    for stage in stages(this, names):
        left = np.array([i for i, row in rows.items() if row["status"] == UNKNOWN and stage.name not in row["seconds"]])
        if not left.size:
            continue
        options = {"chosen": left, "batch_size": stage.batch_size}
        check, compiling[stage.name] = compiled(stage.check, variables, examples, radius=radius, **options)
        for batch, found, seconds in timed(examples.batches(check, title=f"{stage.name} at {radius:g}", **options)):
            new = [
                _after(stage, rows[i], each, seconds) for i, each in zip(batch.tolist(), each_of(found), strict=True)
            ]
            records.append(new)
            rows |= {row["index"]: row for row in new}
    return {**summary(list(rows.values())), "compile_seconds": compiling}


def compiled(
    check: Check, variables: Any, examples: evaluate.Examples, *, chosen: np.ndarray, batch_size: int, radius: float
) -> tuple[Callable[..., Any], float]:
    """A check as a function of a batch and its indices, and how many seconds it took to compile."""
    indices = np.resize(chosen, examples.placement.filled(batch_size))
    size = jnp.asarray(radius, jnp.result_type(float))
    began = time.perf_counter()
    program = check.lower(variables, examples.placement.take(examples.split, indices), size, indices).compile()
    return lambda batch, indices: program(variables, batch, size, indices), round(time.perf_counter() - began, 3)


def timed(batches: Iterable[tuple[np.ndarray, Any]]) -> Iterator[tuple[np.ndarray, Any, float]]:
    """Batches, with the seconds that an example of each took."""
    began = time.perf_counter()
    for batch, found in batches:
        yield batch, found, round((time.perf_counter() - began) / len(batch), 6)
        began = time.perf_counter()


def each_of(found: Mapping[str, np.ndarray]) -> Iterator[dict[str, Any]]:
    """A check's arrays [B] as B dictionaries of numbers; None stands for what is not finite."""
    for values in zip(*(array.tolist() for array in found.values()), strict=True):
        yield {name: value if math.isfinite(value) else None for name, value in zip(found, values, strict=True)}


def _after(stage: Stage, row: Row, found: Mapping[str, Any], seconds: float) -> Row:
    """An example after a stage."""
    decided = (found["margin"] is not None and found["margin"] > 0) == stage.positive
    return {
        "index": row["index"],
        "label": row["label"],
        "prediction": found.get("prediction", row.get("prediction")),
        "status": stage.status if decided else UNKNOWN,
        "method": stage.name,
        "margin": found["margin"],
        "seconds": {**row["seconds"], stage.name: seconds},
    }


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """What each stage did: examples that reached it, that it decided, and its seconds; and the errors in percent."""
    names = dict.fromkeys(name for row in rows for name in row["seconds"])
    counts = {
        status: sum(row["status"] == status for row in rows) for status in ("wrong", "falsified", "verified", UNKNOWN)
    }
    share = {status: 100 * count / len(rows) for status, count in counts.items()}
    return {
        "examples": len(rows),
        **counts,
        "clean_error": round(share["wrong"], 4),
        "pgd_error": round(share["wrong"] + share["falsified"], 4),
        "verified_error": round(100 - share["verified"], 4),
        "stages": {name: _of_stage(name, rows) for name in names},
    }


def _of_stage(name: str, rows: Sequence[Row]) -> dict[str, Any]:
    reached = [row for row in rows if name in row["seconds"]]
    decided = [row for row in reached if row["method"] == name and row["status"] != UNKNOWN]
    seconds = sum(row["seconds"][name] for row in reached)
    return {"examples": len(reached), "decided": len(decided), "seconds": round(seconds, 3)}


def table(content: Mapping[str, Any]) -> str:
    """The summary for the terminal."""
    lines = [f"{'stage':12}{'examples':>10}{'decided':>10}{'seconds':>10}{'ms each':>10}"]
    for name, stage in content["stages"].items():
        each = 1000 * stage["seconds"] / stage["examples"]
        lines.append(f"{name:12}{stage['examples']:10}{stage['decided']:10}{stage['seconds']:10.1f}{each:10.2f}")
    counts = ", ".join(f"{content[status]} {status}" for status in ("wrong", "falsified", "verified", UNKNOWN))
    lines.append(f"of {content['examples']} examples: {counts}")
    names = ("clean_error", "pgd_error", "verified_error")
    lines.append(
        "errors in percent: " + ", ".join(f"{name.removesuffix('_error')} {content[name]:.2f}" for name in names)
    )
    return "\n".join(lines)
