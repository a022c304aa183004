"""What the methods claim of a function on a set, held against its values.

Every claim is a pair of planes, lower <= f <= upper at each point of the set: those of `linear_bounds`, and for a
method that gives numbers planes without slope. The points are corners, random ones, and those to which a projected
gradient leads that narrows the gap between a plane and the function, below zero if that is possible. Points, values and
planes are evaluated in float64, whatever the precision of the bounds, so that all that is seen is the bounds' error,
and that of the function itself where it cancels huge numbers: it is known from runs whose last digits are shaken.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxbound
from jaxbound import relax
from jaxbound.sets import bounding_box, norm
from tests import programs, soundness

STRATEGIES = {name: getattr(relax, name) for name in ("adaptive", "tight", "one", "same_slope", "constant")}


def elided(fn):
    """Interval bounds by a spec: the last linear layers together."""

    def bound(*args):
        eye = jnp.eye(jax.eval_shape(fn, *map(example, args)).size, dtype=example(args[0]).dtype)
        return jaxbound.Interval(jaxbound.ibp(fn)(*args, spec=eye), -jaxbound.ibp(fn)(*args, spec=-eye))

    return bound


METHODS = {
    "crown_ibp": jaxbound.crown_ibp,
    "crown": jaxbound.crown,
    "alpha_crown": functools.partial(jaxbound.alpha_crown, steps=2),
    "lbp": jaxbound.lbp,
    "crown_lbp": jaxbound.crown_lbp,
    "relaxed_crown(1)": functools.partial(jaxbound.relaxed_crown, depth=1),
    "relaxed_crown(2)": functools.partial(jaxbound.relaxed_crown, depth=2),
    "planes": jaxbound.linear_bounds,
}
# name -> transform of a function of arrays that returns one vector.
CLAIMS = {"ibp": jaxbound.ibp, "elided ibp": elided} | {
    f"{method} {strategy}": functools.partial(make, relu=lines)
    for method, make in METHODS.items()
    for strategy, lines in STRATEGIES.items()
}
# Compiles a small program several times faster than the default does; newer compilers do not have the second option.
QUICK = {"xla_backend_optimization_level": 0}
QUICKER = QUICK | {"xla_cpu_use_fusion_emitters": False}
STEPS, STARTS = 8, 3
SHAKEN = 3  # runs with other last digits
TOLERANCE = 1e-9


class Seen(NamedTuple):
    """A claim at points: arrays [points, outputs].

    Attributes:
      lower, upper: the planes' heights.
      scale: the size of what was added up.
      doubt: how far the function's own rounding may have moved its value.
    """

    lower: Any
    upper: Any
    scale: Any
    doubt: Any


def example(region):
    """An array of a set's shape."""
    return bounding_box(region).lower


def vector(program, *arrays):
    """All outputs of a program as one vector."""
    return soundness.flat(program(*arrays))


def in_double(tree):
    return jax.tree.map(lambda x: jnp.asarray(x, float), tree)


def point(region, unit):
    """The point of a set with these coordinates; where a box has no end, of a part of it that has."""
    if isinstance(region, jaxbound.Ball):
        x = region.center + region.radius * unit
        return x if region.clip is None else jnp.clip(x, *region.clip)
    low, high = region
    reach = 10.0 + 1e5 * (unit == 0) + 1e5 * (unit == 1)
    start = jnp.where(jnp.isfinite(low), low, jnp.minimum(jnp.where(jnp.isfinite(high), high, 0), 0) - reach)
    stop = jnp.where(jnp.isfinite(high), high, jnp.maximum(start, 0) + reach)
    return jnp.clip(start * (1 - unit) + stop * unit, low, high)


def retract(region, unit):
    """Coordinates that are inside."""
    if isinstance(region, jaxbound.Interval):
        return jnp.clip(unit, 0, 1)
    return unit / jnp.maximum(norm(unit, region.p), 1)


def stride(region, slope):
    """A step down a slope, of the length of the set."""
    if isinstance(region, jaxbound.Interval):
        return -jnp.sign(slope)
    return -2 * slope / jnp.maximum(norm(slope, 2), jnp.finfo(float).tiny)


def climb(gap, regions, starts):
    """Coordinates to which steps that shrink, down the gradient, lead from the given ones."""

    def step(k, units):
        slopes = soundness.slopes(gap)(units)
        rate = 0.8 * 0.55**k
        return [
            retract(s, u + rate * stride(s, jnp.nan_to_num(g))) for s, u, g in zip(regions, units, slopes, strict=True)
        ]

    return jax.lax.fori_loop(0, STEPS, step, starts)


def height(plane, xs):
    """A plane's values [outputs] at one point, and the size of the terms."""
    value, size = plane.bias, jnp.abs(plane.bias)
    for coeffs, x in zip(jax.tree.leaves(plane.coeffs), xs, strict=True):
        terms = jnp.where(coeffs == 0, 0, coeffs * x)  # in low precision a coordinate may be infinite
        axes = tuple(range(1, terms.ndim))
        value, size = value + jnp.sum(terms, axis=axes), size + jnp.sum(jnp.abs(terms), axis=axes)
    return value, size


def claimed(make, fn, regions):
    """The planes that a method claims, in float64."""
    found = make(fn)(*regions)
    if isinstance(found, jaxbound.Planes):
        return in_double(found)
    flat = [jnp.zeros((end.size, *example(s).shape)) for end in found[:1] for s in regions]
    return jaxbound.Planes(*(jaxbound.LinearBound(flat, end) for end in in_double(found)))


def attack(fn, planes, regions, starts):
    """Coordinates where each plane may be violated: [planes * 2 * outputs * starts, *shape] for each set."""

    def gap(row, units):
        """How far one output stays above the lower plane, or below the upper one."""
        sign, unit, coeffs = row
        xs = [point(s, u) for s, u in zip(regions, units, strict=True)]
        return sign * (unit @ fn(*xs) - sum(jnp.sum(c * x) for c, x in zip(coeffs, xs, strict=True)))

    rows = []
    for pair in planes:
        for sign, plane in zip((1.0, -1.0), pair, strict=True):
            count = plane.bias.size
            coeffs = [jnp.nan_to_num(c) for c in jax.tree.leaves(plane.coeffs)]
            rows.append((jnp.full(count, sign), jnp.eye(count), coeffs))
    rows = jax.tree.map(lambda *parts: jnp.concatenate(parts), *rows)
    ends = jax.vmap(lambda row: jax.vmap(lambda s: climb(functools.partial(gap, row), regions, s))(starts))(rows)
    return [end.reshape(-1, *end.shape[2:]) for end in ends]


def examine(program, claims, regions, units):
    """Claims on sets, at points of them.

    Args:
      program: a `programs.Program`.
      claims: name -> transform.
      regions: one set for each argument.
      units: coordinates [N, *shape] for each.

    Returns:
      The points [P, *shape], the values [P, outputs], and name -> Seen.
    """
    fn = functools.partial(vector, program)
    exact = in_double(regions)
    planes = {name: claimed(make, fn, regions) for name, make in claims.items()}
    # Planes without slope are attacked alike: where the function is extreme.
    sloped = [pair for name, pair in planes.items() if name.startswith("planes")]
    flat = [pair for name, pair in planes.items() if not name.startswith("planes")][:1]
    found = attack(fn, flat + sloped, exact, [u[:STARTS] for u in units])
    units = [jnp.concatenate(pair) for pair in zip(units, found, strict=True)]

    def at(*unit):
        # Rounded to the precision of the sets, where the exact ends still hold.
        xs = [point(s, u) for s, u in zip(exact, unit, strict=True)]
        return in_double([x.astype(example(s).dtype) for x, s in zip(xs, regions, strict=True)])

    return jax.vmap(lambda *unit: observe(program, planes, at(*unit)))(*units)


def observe(program, planes, xs):
    """A point, the program's values there, and the planes' heights."""
    values, seen = vector(program, *xs), {}
    shaken = [vector(programs.shaken(program, seed), *xs) for seed in range(SHAKEN)]
    doubt = 4 * sum(jnp.nan_to_num(jnp.abs(other - values), posinf=0) for other in shaken)
    for name, pair in planes.items():
        (low, size), (high, other) = (height(plane, xs) for plane in pair)
        seen[name] = Seen(low, high, jnp.maximum(size, other), doubt)
    return xs, values, seen


@functools.cache
def quick_options():
    """The options that this compiler has."""
    try:
        jax.jit(jnp.negative).lower(1.0).compile(compiler_options=QUICKER)
    except jax.errors.JaxRuntimeError:
        return QUICK
    return QUICKER


def run(fn, *args, quick=True):
    """A function's results as NumPy arrays, compiled fast, or as users' are."""
    compiled = jax.jit(fn).lower(*args).compile(compiler_options=quick_options() if quick else None)
    return jax.tree.map(np.asarray, compiled(*args))


# Verdicts.


@dataclasses.dataclass(frozen=True)
class Verdict:
    """One claim held against values [..., outputs].

    Attributes:
      comparisons: how many were made.
      wrong: which values are outside by more than rounding, or between bounds that cross.
      excess: by how much, relative to the size of what was added up; infinite where a number is NaN.
      vacuous: for each value, how many sides of the bounds are NaN: planes that claim nothing.
    """

    comparisons: int
    wrong: np.ndarray
    excess: np.ndarray
    vacuous: np.ndarray


def verdict(name, values, seen, tolerance=TOLERANCE):
    """Judges one claim."""
    lower, upper, scale, doubt = seen
    with np.errstate(invalid="ignore", over="ignore"):
        size = 1 + np.where(np.isfinite(values), np.abs(values), 0) + np.where(np.isfinite(scale), scale, 0)
        # Bounds that cross are wrong, even where the function has no value to tell of which side.
        outside = np.fmax(np.fmax(lower - values, values - upper) - doubt, (lower - upper) / 2)
        excess = np.nan_to_num(outside, nan=-np.inf) / size
    if not name.startswith("planes"):
        excess = np.where(np.isnan(lower) | np.isnan(upper), np.inf, excess)
    missing = np.isnan(lower).astype(int) + np.isnan(upper)
    return Verdict(2 * values.size, excess > tolerance, excess, missing)


def assert_sound(program, name, sets, points, *, dtype="float64", tolerance=TOLERANCE):
    """Holds one claim against the values at one point of the sets: what a violation is reported as."""
    with jax.enable_x64(True):
        regions = jax.tree.map(lambda x: jnp.asarray(x, dtype), sets)
        xs = in_double(points)
        for region, x in zip(regions, xs, strict=True):
            assert jaxbound.contains(in_double(region), x, tolerance=1e-9), f"{x} is not in {region}"
        fn = functools.partial(vector, program)
        planes = functools.partial(claimed, CLAIMS[name], fn)
        pair = run(planes, regions)
        _, values, seen = jax.tree.map(np.asarray, observe(program, {name: in_double(pair)}, xs))
        found = verdict(name, values, seen[name], tolerance)
        k = int(np.argmax(found.excess))
        assert not found.wrong.any(), (
            f"output {k} is {values[k]!r}, outside [{seen[name].lower[k]!r}, {seen[name].upper[k]!r}] by {name}, "
            f"which is {found.excess[k]:.1e} of what was added up"
        )
