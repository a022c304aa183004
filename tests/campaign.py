"""`python -m tests.campaign --points=1e7`: the soundness campaign, random programs and networks against every method.

Each program is bounded on eight sets, two mild and six drawn from what is hard (points, ties, denormal and huge
numbers, no ends at all; balls of several norms, clipped or not; sets of two arguments), by one method: every other time
planes, which are held against the function pointwise, else one of those that give numbers. Corners, random points and
points where a gradient narrows the gap are compared with every bound. In float64 a violation is an error: it is shrunk
and printed as a test. Lower precisions have no protection against rounding; there violations are counted and the
largest relative one is told. Points and values are always computed in float64.

Everything follows from the seed and a program's number: `--first=N --programs=1` repeats one. Ctrl-C prints what was
found so far.
"""

import argparse
import collections
import dataclasses
import functools
import sys
import time

import jax
import numpy as np
import tqdm

from tests import cases, claims, shrink

THOROUGH = 13  # every thirteenth program is compiled as users' programs are
FORGET = 20  # programs after which compiled code is dropped


@dataclasses.dataclass
class Tally:
    """What was seen of one claim, on mild sets or on extreme ones."""

    comparisons: int = 0
    violations: int = 0
    vacuous: int = 0
    excess: float = 0.0

    def add(self, verdict, rows):
        """Adds a verdict on some of the sets."""
        share = rows.mean() if len(rows) else 0
        self.comparisons += int(verdict.comparisons * share)
        self.vacuous += verdict.vacuous[rows].sum()
        self.violations += int(verdict.wrong[rows].sum())
        self.excess = max(self.excess, verdict.excess[rows].max(initial=0))


@dataclasses.dataclass
class Report:
    """What a campaign has found so far."""

    programs: int = 0
    values: int = 0
    refused: list = dataclasses.field(default_factory=list)
    tallies: dict = dataclasses.field(default_factory=lambda: collections.defaultdict(Tally))
    worst: list = dataclasses.field(default_factory=list)

    @property
    def violations(self):
        return sum(tally.violations for tally in self.tallies.values())

    def table(self):
        """One line for each method and kind of set."""
        yield f"{'claim':32}{'comparisons':>14}{'violations':>12}{'largest':>10}{'vacuous':>12}"
        for name, t in sorted(self.tallies.items()):
            yield f"{name:32}{t.comparisons:>14,}{t.violations:>12,}{t.excess:>10.1e}{t.vacuous:>12,}"


def choose_claim(seed, index):
    """Planes for one program, for the next one of the methods that give numbers."""
    names = [name for name in claims.CLAIMS if name.startswith("planes") == (index % 2 == 0)]
    return str(np.random.default_rng((seed, index, 2)).choice(names))


def examine(seed, index, dtype, count):
    """A program on its sets: (program, sets, their names, values [sets, points, outputs], points, name -> Seen)."""
    program = cases.draw(seed, index)
    sets, names = cases.draw_regions(seed, index, program.shapes, dtype)
    rng = np.random.default_rng((seed, index, 3))
    units = [cases.unit_points(rng, cases.pick(region, 0), count) for region in sets]
    name = choose_claim(seed, index)
    one = functools.partial(claims.examine, program, {name: claims.CLAIMS[name]})
    points, values, seen = claims.run(jax.vmap(one, (0, None)), sets, units, quick=index % THOROUGH > 0)
    return program, sets, names, points, values, seen


def add(report, seed, index, dtype, count):
    """Examines one program, counts, and keeps the worst violation of each of its claims."""
    program, sets, names, points, values, seen = examine(seed, index, dtype, count)
    extreme = np.array([any(part in cases.EXTREME for part in name.split(" and ")) for name in names])
    report.programs += 1
    report.values += int(np.isfinite(values).sum())
    for name, what in seen.items():
        found = claims.verdict(name, values, what)
        for label, rows in (("", ~extreme), (", extreme sets", extreme)):
            report.tallies[name + label].add(found, rows)
        if found.wrong.any():
            row, point, output = np.unravel_index(np.argmax(found.excess), found.excess.shape)
            where = tuple(x[row, point] for x in points)
            case = shrink.Case(program, name, cases.pick(sets, row), dtype, found.excess.max(), where, int(output))
            report.worst.append((index, names[row], case))
            if dtype == "float64":
                tqdm.tqdm.write(heading(index, names[row], case))


def heading(index, name, case):
    return f"VIOLATION by {case.excess:.1e}: program {index}, {name}, {case.claim}: {case.program}"


def campaign(options, report):
    """Runs until all programs are done."""
    count = max(32, int(float(options.points) / options.programs / 8 / 5))
    progress = tqdm.tqdm(range(options.first, options.first + options.programs), mininterval=5, disable=None)
    with jax.enable_x64(True):
        for index in progress:
            try:
                add(report, options.seed, index, options.dtype, count)
            except Exception as error:  # noqa: BLE001 - what cannot be bounded must not end the campaign
                report.refused.append((index, f"{type(error).__name__}: {str(error).splitlines()[0]}"))
            progress.set_postfix(values=f"{report.values:,}", violations=report.violations)
            if index % FORGET == FORGET - 1:
                jax.clear_caches()


def show(report, options, seconds):
    """Prints everything; shrinks what was found in float64."""
    for line in report.table():
        print(line)
    for index, error in report.refused:
        print(f"REFUSED program {index}: {error}")
    report.worst.sort(key=lambda item: -item[2].excess)
    for index, name, case in report.worst[: options.show]:
        print("\n" + heading(index, name, case), flush=True)
        if options.dtype == "float64":
            print(shrink.as_test(shrink.shrink(case, attempts=options.attempts)), flush=True)
    comparisons = sum(tally.comparisons for tally in report.tallies.values())
    print(
        f"\n{options.dtype}, seed {options.seed}: {report.programs} programs, {report.values:,} sampled values, "
        f"{comparisons:,} comparisons, {report.violations:,} violations beyond {claims.TOLERANCE:.0e} "
        f"of {len(report.worst)} claims, {len(report.refused)} programs refused, {seconds:.0f} s"
    )


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--points", default="1e7", help="how many sampled values at least, (point, output) pairs")
    parser.add_argument("--programs", type=int, default=2000, help="how many programs")
    parser.add_argument("--first", type=int, default=0, help="the number of the first one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="float64", choices=("float64", "float32", "bfloat16", "float16"))
    parser.add_argument("--show", type=int, default=5, help="how many violations are shown (and shrunk)")
    parser.add_argument("--attempts", type=int, default=shrink.ATTEMPTS, help="simpler cases tried for each")
    options = parser.parse_args(arguments)
    start, report = time.perf_counter(), Report()
    try:
        campaign(options, report)
    except KeyboardInterrupt:
        print("\ninterrupted")
    show(report, options, time.perf_counter() - start)
    return 1 if options.dtype == "float64" and (report.violations or report.refused) else 0


if __name__ == "__main__":
    sys.exit(main())
