"""A violation, made as simple as it gets, and printed as a test."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

import jaxbound
from tests import cases, claims
from tests.programs import Program

COUNT = 128  # points tried for each simpler case
ATTEMPTS = 60


@dataclasses.dataclass(frozen=True)
class Case:
    """A program, a claim and one set for each input, and where the claim is wrong.

    Attributes:
      excess: by how much, relative to the size of what was added up.
      points: where.
      output: which output.
    """

    program: Program
    claim: str
    sets: tuple
    dtype: str
    excess: float = np.inf
    points: tuple = ()
    output: int = 0


def judge(case, *, tolerance=claims.TOLERANCE, quick=True):
    """The case with the place where it is worst, or None where the claim holds."""
    rng = np.random.default_rng(0)
    units = [cases.unit_points(rng, region, COUNT) for region in case.sets]
    with jax.enable_x64(True):
        examine = functools.partial(claims.examine, case.program, {case.claim: claims.CLAIMS[case.claim]})
        try:
            xs, values, seen = claims.run(examine, case.sets, units, quick=quick)
        except (TypeError, ValueError, IndexError, jaxbound.UnsupportedError):
            return None  # what a smaller program is no longer able to take
    found = claims.verdict(case.claim, values, seen[case.claim], tolerance)
    if not found.wrong.any():
        return None
    row, output = np.unravel_index(np.argmax(found.excess), found.excess.shape)
    points = tuple(x[row] for x in xs)
    return dataclasses.replace(case, excess=found.excess[row, output], points=points, output=int(output))


def without(program, index):
    """The program with one step left out; what read its result reads the step's first operand."""
    gone = len(program.shapes) + index
    source = program.steps[index].operands[0]
    kept = [
        dataclasses.replace(s, operands=tuple(source if k == gone else k - (k > gone) for k in s.operands))
        for s in program.steps
    ]
    return dataclasses.replace(program, steps=tuple(kept[:index] + kept[index + 1 :]), outputs=1)


def simpler_programs(case):
    """Fewer steps, fewer outputs."""
    steps = case.program.steps
    for length in {len(steps) // 2, len(steps) - 1} - {0, len(steps)}:
        yield dataclasses.replace(case.program, steps=steps[:length], outputs=1)
    if case.program.outputs > 1:
        yield dataclasses.replace(case.program, outputs=1)
    if len(steps) > 1:
        yield from (without(case.program, k) for k in range(len(steps)))


def simpler_sets(region, x):
    """Smaller sets around a point, and ones with fewer digits."""
    if isinstance(region, jaxbound.Ball):
        yield jaxbound.Interval(*(jnp.asarray(end) for end in claims.bounding_box(region)))
        if region.clip is not None:
            yield dataclasses.replace(region, clip=None)
        yield dataclasses.replace(region, center=rounded(region.center), radius=rounded(region.radius))
        return
    fixed = np.arange(x.size).reshape(x.shape) * 2 // max(x.size, 1)
    x = jnp.asarray(x, region.lower.dtype)
    for half in (0, 1):
        yield jaxbound.Interval(*(jnp.where(fixed == half, x, end) for end in region))
    if x.size <= 8:
        for k in range(x.size):
            single = np.arange(x.size).reshape(x.shape) == k
            yield jaxbound.Interval(*(jnp.where(single, x, end) for end in region))
    yield jaxbound.Interval(*map(rounded, region))
    yield jaxbound.Interval(*(jnp.where(jnp.isfinite(end), (end + x) / 2, x) for end in region))


def rounded(x):
    """Two significant digits."""
    shorter = np.array([float(f"{v:.1e}") for v in np.ravel(x).astype(float)])
    return jnp.asarray(shorter.reshape(np.shape(x)), x.dtype)


def candidates(case):
    for program in simpler_programs(case):
        yield dataclasses.replace(case, program=program)
    for k, (region, x) in enumerate(zip(case.sets, case.points, strict=True)):
        for smaller in simpler_sets(region, x):
            if repr(smaller) != repr(region):
                yield dataclasses.replace(case, sets=(*case.sets[:k], smaller, *case.sets[k + 1 :]))


def shrink(case, *, tolerance=claims.TOLERANCE, attempts=ATTEMPTS):
    """Takes the first simpler case that is still violated, again and again.

    Args:
      case: a violated one.
      tolerance: what counts as rounding, relative. The shrunk case is violated by a tenth of the first's excess at
        least, so that a large error does not shrink to a small one of another kind.
      attempts: how many simpler cases are tried at most.
    """
    tolerance = max(tolerance, min(case.excess, 1.0) / 10)
    with jax.enable_x64(True):
        found = case
        while found is not None and attempts > 0:
            case, found = found, None
            for candidate in itertools.islice(candidates(case), attempts):
                attempts -= 1
                found = judge(candidate, tolerance=tolerance)
                if found is not None:
                    break
    return found or case


# Source code.


def literal(tree):
    """The Python expression of a set or an array; floats are written with all their digits."""
    if isinstance(tree, jaxbound.Interval):
        return f"jaxbound.Interval({literal(tree.lower)}, {literal(tree.upper)})"
    if isinstance(tree, jaxbound.Ball):
        clip = "None" if tree.clip is None else literal(tree.clip)
        p = "np.inf" if tree.p == np.inf else repr(tree.p)
        return f"jaxbound.Ball({literal(tree.center)}, {literal(tree.radius)}, {p}, {clip})"
    numbers = str(np.asarray(tree, float).tolist()).replace("inf", "np.inf").replace("nan", "np.nan")
    return f"np.array({numbers})"


def as_test(case):
    """A module with one test, which fails as long as the claim is wrong."""
    sets, points = (f"({', '.join(map(literal, group))},)" for group in (case.sets, case.points))
    program = case.program
    return f"""import numpy as np

import jaxbound
from tests import cases, claims


def test_{"".join(c if c.isalnum() else "_" for c in case.claim)}_holds():
    program = cases.parse({str(program)!r}, {program.shapes}, outputs={program.outputs})
    sets = {sets}
    points = {points}
    claims.assert_sound(program, {case.claim!r}, sets, points, dtype={case.dtype!r})
"""
