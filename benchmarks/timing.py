"""Timing of compiled functions side by side, in alternation, and the tables that report it."""

import argparse
import dataclasses
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.models import NETWORKS

_SAMPLE_SECONDS = 0.05  # a sample repeats its call until it has taken about so long


@dataclasses.dataclass(frozen=True)
class Timing:
    """One candidate: seconds a call in each round, seconds to trace and compile, bytes that XLA sets aside to run."""

    name: str
    seconds: tuple[float, ...]
    compile_seconds: float
    temp_bytes: int | None

    @property
    def median(self):
        """Median seconds a call."""
        return statistics.median(self.seconds)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Candidates timed in one alternation; ratios are of the first one."""

    network: str
    quantity: str
    timings: tuple[Timing, ...]

    def ratio(self, other):
        """The first candidate's time over another's: the median over the rounds, each of which timed both."""
        return statistics.median(a / b for a, b in zip(self.timings[0].seconds, other.seconds, strict=True))


def compare(alike: Mapping[str, Callable], others: Mapping[str, Callable], args: Sequence, *, rounds: int):
    """Time functions of the same arguments, jitted, in alternating rounds that start at a different one each.

    Args:
      alike: {name: function} that must agree, since a timing of different results would mean nothing.
      others: {name: function} to time beside them.
      args: arrays, the same for all.
      rounds: samples per function.

    Returns:
      One `Timing` each, in the order given.

    Raises:
      AssertionError: two functions of `alike` differ.
    """
    compiled = {name: _compile(fn, args) for name, fn in {**alike, **others}.items()}
    if alike:
        check_agreement({name: compiled[name][0](*args) for name in alike})
    calls = {name: _calls_per_sample(run, args) for name, (run, _, _) in compiled.items()}
    samples = {name: [] for name in compiled}
    names = list(compiled)
    for index in range(rounds):
        start = index % len(names)
        for name in names[start:] + names[:start]:
            samples[name].append(_seconds_per_call(compiled[name][0], args, calls[name]))
    return tuple(Timing(name, tuple(samples[name]), *compiled[name][1:]) for name in names)


def _compile(fn, args):
    start = time.perf_counter()
    compiled = jax.jit(lambda *args: fn(*args)).lower(*args).compile()  # a new function: nothing is cached
    seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    return compiled, seconds, memory and memory.temp_size_in_bytes


def _calls_per_sample(run, args):
    _seconds_per_call(run, args, 1)  # the first call pays for what later ones do not
    return max(1, math.ceil(_SAMPLE_SECONDS / _seconds_per_call(run, args, 1)))


def _seconds_per_call(run, args, calls):
    start = time.perf_counter()
    for _ in range(calls):
        jax.block_until_ready(run(*args))
    return (time.perf_counter() - start) / calls


def check_agreement(outputs: Mapping[str, Any], *, tolerance: float = 1e-3) -> None:
    """Fail unless all outputs hold the same arrays.

    Args:
      outputs: {name: pytree of arrays}.
      tolerance: of a difference, relative to the array's largest element.

    Raises:
      AssertionError: naming the two and the difference.
    """
    first, *rest = outputs
    for name in rest:
        for ours, theirs in zip(jax.tree.leaves(outputs[name]), jax.tree.leaves(outputs[first]), strict=True):
            error = float(jnp.max(jnp.abs(ours - theirs)) / jnp.maximum(jnp.max(jnp.abs(theirs)), 1e-6))
            if not error <= tolerance:
                raise AssertionError(f"{name} and {first} differ by {error:.1e} of the largest element.")


def table(comparison: Comparison) -> str:
    """One comparison as text: a line per candidate with the first one's time over its own."""
    lines = [
        f"{comparison.network}: {comparison.quantity}",
        f"  {'':34}{'ms':>9}{'ratio':>8}{'compile s':>11}{'temp MiB':>10}",
    ]
    for timing in comparison.timings:
        memory = "-" if timing.temp_bytes is None else f"{timing.temp_bytes / 2**20:.1f}"
        lines.append(
            f"  {timing.name:34}{1e3 * timing.median:9.2f}{comparison.ratio(timing):8.2f}"
            f"{timing.compile_seconds:11.2f}{memory:>10}"
        )
    return "\n".join(lines)


def parse_flags(description: str) -> argparse.Namespace:
    """The command line that the benchmarks share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--batch", type=int, default=128, help="examples in a batch")
    parser.add_argument("--models", nargs="+", choices=sorted(NETWORKS), default=list(NETWORKS), help="networks")
    parser.add_argument("--rounds", type=int, default=7, help="alternating samples of each candidate")
    parser.add_argument("--json", type=Path, help="file to save all samples to")
    return parser.parse_args()


def report(comparisons, flags: argparse.Namespace) -> None:
    """Print each comparison when it is done, and save them all where `--json` says."""
    print(
        f"jax {jax.__version__}, {jax.devices()[0].device_kind}, {os.cpu_count()} cores, batch {flags.batch}, float32"
    )
    print("ratio: time of jaxbound over that line's, median of the rounds\n")
    done = []
    for comparison in comparisons:
        print(table(comparison), end="\n\n", flush=True)
        done.append(comparison)
    if flags.json:
        flags.json.write_text(json.dumps({"settings": _settings(flags), "results": _records(done)}, indent=2) + "\n")


def _settings(flags):
    return {
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        "batch": flags.batch,
        "rounds": flags.rounds,
    }


def _records(comparisons):
    return [
        {
            "network": comparison.network,
            "quantity": comparison.quantity,
            "median_seconds": timing.median,
            "jaxbound_over_it": comparison.ratio(timing),
            **dataclasses.asdict(timing),
        }
        for comparison in comparisons
        for timing in comparison.timings
    ]
