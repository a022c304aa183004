"""The harness of every rule's and method's test: what each bound of each function must satisfy.

`check` takes a function and examples of its arguments, with sets in them, and holds its bounds against
- random points, corners, and the points that a gradient finds: all lie inside;
- the single point: at radius zero the bound is the function's value;
- a smaller set inside: never looser (where that is a theorem, see `NESTED`);
- finiteness.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

import jaxbound
from jaxbound.bounds import worst_input
from jaxbound.sets import bounding_box, is_set, norm

METHODS = {
    "ibp": jaxbound.ibp,
    "crown_ibp": functools.partial(jaxbound.crown_ibp, relu=jaxbound.relax.tight),
    "crown": functools.partial(jaxbound.crown, chunk=16),
}

# Interval arithmetic is inclusion isotone. A backward linear bound is not: on a larger set it takes other lines, whose
# coefficients may happen to cancel better further back, so a looser line somewhere can make a tighter bound.
NESTED = ("ibp",)


def tolerance():
    """The relative error that rounding is granted."""
    return 1e-12 if jax.config.jax_enable_x64 else 1e-5


def weights(*shape, seed=0):
    """Fixed random numbers; as float32 they take the precision of whatever they meet."""
    return np.random.default_rng((seed, *shape)).normal(size=shape).astype(np.float32)


def box(center, radius):
    """An Interval in the default precision; where its numbers are known, nothing is compiled for it."""
    numbers = jnp if isinstance(center, Tracer) or isinstance(radius, Tracer) else np
    center, radius = (numbers.asarray(x, jnp.result_type(float)) for x in (center, radius))
    return jaxbound.Interval(jnp.asarray(center - radius), jnp.asarray(center + radius))


def boxes(*shape, seed=0):
    """Ordinary, wide, tied and nearly degenerate boxes, all within [-3.5, 3.5]."""
    rng = np.random.default_rng((seed, *shape))
    some = rng.uniform(size=shape) < 0.5
    tied, top = box(np.full(shape, 0.25), 1.0), np.full(shape, 1.25, jnp.result_type(float))
    return [
        box(rng.uniform(-1.5, 1.5, shape), rng.uniform(0, 0.7, shape)),
        box(rng.uniform(-1.5, 1.5, shape), rng.uniform(0, 2.0, shape)),
        box(np.zeros(shape), 3.0),
        tied,
        jaxbound.Interval(tied.lower, jnp.asarray(np.where(some, np.nextafter(top, 9.0, dtype=top.dtype), top))),
        box(rng.uniform(-1.5, 1.5, shape), np.where(some, 0, rng.choice([1e-14, 1e-9, 1e-5, 1e-2], shape))),
    ]


# Arguments with sets in them.


def sets_of(args):
    """The sets among a tree of arguments."""
    return [leaf for leaf in jax.tree.leaves(args, is_leaf=is_set) if is_set(leaf)]


def with_arrays(args, arrays):
    """The arguments with an array in the place of each set."""
    arrays = iter(arrays)
    return jax.tree.map(lambda leaf: next(arrays) if is_set(leaf) else leaf, args, is_leaf=is_set)


def scaled(args, factor):
    """The arguments with every set shrunk around a point in it."""

    def shrink(region):
        if isinstance(region, jaxbound.Ball):
            return jaxbound.Ball(region.center, region.radius * factor, region.p, region.clip)
        low, high = map(np.asarray, region)
        pivot = low + 0.375 * (high - low)
        return jaxbound.Interval(*(jnp.asarray(pivot + factor * (end - pivot)) for end in (low, high)))

    return jax.tree.map(lambda leaf: shrink(leaf) if is_set(leaf) else leaf, args, is_leaf=is_set)


def flat(tree):
    """All numbers of a pytree as one vector."""
    return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def ends(bound):
    """Lower and upper ends of a pytree of Intervals as two vectors."""
    intervals = jax.tree.leaves(bound, is_leaf=is_set)
    return flat([i.lower for i in intervals]), flat([i.upper for i in intervals])


# Points of a set.


def units(region, count, seed=0):
    """Points of the unit cube (for an Interval) or of the unit ball: corners first, then random ones."""
    rng = np.random.default_rng(seed)
    shape, size = bounding_box(region).lower.shape, bounding_box(region).lower.size
    if isinstance(region, jaxbound.Interval):
        few = list(itertools.product((0.0, 1.0), repeat=size)) if size <= 6 else rng.integers(0, 2, (64, size))
        points = np.concatenate([np.array(few, float).reshape(len(few), size), rng.uniform(size=(count, size))])
        return points.reshape(-1, *shape)
    steps = rng.normal(size=(count, size)) ** 3
    steps /= np.array([float(norm(step, region.p)) for step in steps])[:, None]
    steps[::4] *= rng.uniform(size=(len(steps[::4]), 1))
    return np.concatenate([np.eye(size), -np.eye(size), steps]).reshape(-1, *shape)


def point(region, unit):
    """The point of a set with these coordinates of the unit cube or ball."""
    if isinstance(region, jaxbound.Interval):
        return jnp.clip(region.lower + unit * (region.upper - region.lower), region.lower, region.upper)
    x = region.center + region.radius * unit
    return x if region.clip is None else jnp.clip(x, *region.clip)


def slopes(fn):
    """The gradient of a function; forwards through what has no reverse mode, such as a `while`."""

    def at(x):
        try:
            return jax.grad(fn)(x)
        except ValueError:
            return jax.jacfwd(fn)(x)

    return at


def observe(fn, args, coordinates, directions, gradient=slopes):
    """Values [N, M] of a function at the given points of the sets, and where a gradient leads from their middles."""
    regions = sets_of(args)

    def value(*arrays):
        return flat(fn(*with_arrays(args, arrays)))

    def climb(direction):
        """Steps to where the linear model of one functional of the output is lowest."""
        x = [point(s, jnp.full(bounding_box(s).lower.shape, 0.5 * isinstance(s, jaxbound.Interval))) for s in regions]

        def step(x, rate):
            steepest = gradient(lambda arrays: direction @ value(*arrays))(x)
            targets = [worst_input(jnp.nan_to_num(g), s) for g, s in zip(steepest, regions, strict=True)]
            x = [(a + rate * (b - a)).astype(a.dtype) for a, b in zip(x, targets, strict=True)]
            return x, value(*x)

        found = jax.lax.scan(step, x, jnp.array([0.5, 1.0, 1.0]))[1]
        return jnp.concatenate([value(*x)[None], found])

    values = jax.vmap(value)(*(jax.vmap(point, (None, 0))(s, c) for s, c in zip(regions, coordinates, strict=True)))
    if gradient is None or any(isinstance(s, jaxbound.Ball) and s.clip is not None for s in regions):
        return values  # the worst point known of a clipped ball may lie outside it
    climbed = jax.vmap(climb)(directions)
    return jnp.concatenate([values, climbed.reshape(-1, values.shape[1])])


# The checks.


class Subject:
    """A function and its bounds, compiled once for all arguments of the same shapes."""

    def __init__(self, fn, methods=METHODS, seed=0, gradient=slopes):
        self.fn, self.methods, self.seed = fn, methods, seed
        self.bounds = jax.jit(lambda args: {name: ends(make(fn)(*args)) for name, make in methods.items()})
        self.observe = jax.jit(functools.partial(observe, fn, gradient=gradient))

    def values(self, args, count):
        """Observed values [N, M] on the sets."""
        out = jax.eval_shape(lambda args: flat(self.fn(*with_arrays(args, middles(args)))), args)
        directions = np.random.default_rng(self.seed).normal(size=(6, out.size))
        coordinates = [units(s, count, seed=(self.seed, k)) for k, s in enumerate(sets_of(args))]
        return np.asarray(self.observe(args, as_float(coordinates), as_float(directions)))

    def check(self, args, count=200, finite=True):
        """Every observed value lies inside every bound. Returns the bounds, and how many comparisons were made."""
        values, bounds = self.values(args, count), jax.tree.map(np.asarray, self.bounds(args))
        for name, (lower, upper) in bounds.items():
            slack = tolerance() * (1 + np.abs(values) + largest(lower, upper))
            outside = np.maximum(lower - values, values - upper) - slack
            assert not (outside > 0).any(), f"{name}: {describe(outside, values, lower, upper)} for {args}"
            assert not finite or np.isfinite([lower, upper]).all(), f"{name} is infinite: {lower}, {upper} for {args}"
        return bounds, values.size * len(bounds)

    def check_point(self, args, count):
        """On a single point every bound is the function's value."""
        args = scaled(args, 0.0)
        value = self.values(args, count)[0]
        for name, (lower, upper) in jax.tree.map(np.asarray, self.bounds(args)).items():
            slack = tolerance() * (1 + np.abs(value))
            np.testing.assert_array_less(np.abs(lower - value), slack, f"{name}, lower, at the point {args}")
            np.testing.assert_array_less(np.abs(upper - value), slack, f"{name}, upper, at the point {args}")

    def check_nesting(self, args, bounds):
        """On a smaller set the bounds are inside."""
        inner = jax.tree.map(np.asarray, self.bounds(scaled(args, 0.5)))
        for name in set(NESTED) & set(self.methods):
            (lower, upper), (low, high) = inner[name], bounds[name]
            slack = tolerance() * (1 + largest(low, high))
            assert (lower >= low - slack).all() and (upper <= high + slack).all(), f"{name} is not nested in {args}"


def middles(args):
    """A point of each set."""
    return [s.center if isinstance(s, jaxbound.Ball) else jaxbound.midpoint(s) for s in sets_of(args)]


def as_float(arrays):
    """NumPy arrays in the default precision."""
    return jax.tree.map(lambda x: jnp.asarray(x, float), arrays)


def largest(lower, upper):
    """The size of an interval's finite ends."""
    return np.nan_to_num(np.maximum(np.abs(lower), np.abs(upper)), posinf=0)


def describe(outside, values, lower, upper):
    """Where a bound is violated most, and by how much."""
    row, k = np.unravel_index(np.argmax(outside), outside.shape)
    return f"output {k} takes {values[row, k]!r} outside [{lower[k]!r}, {upper[k]!r}]"


def check(fn, *examples, methods=None, count=200, finite=True, nested=True, gradient=slopes):
    """Holds a function's bounds against all that must be true of them.

    Args:
      fn: a function of one example.
      *examples: its arguments, each a tuple or the single set; all of the same shapes. The first is taken for the
        checks at radius zero and of nesting.
      methods: name -> transform. By default all in float64; in float32 all but the costly `crown`.
      count: random points for each example.
      finite: whether all bounds must be finite.
      nested: whether interval bounds must be nested.
      gradient: finds slopes. None for functions without any.
    """
    if methods is None:
        methods = METHODS if jax.config.jax_enable_x64 else {name: METHODS[name] for name in ("ibp", "crown_ibp")}
    examples = [(e,) if is_set(e) else e for e in examples]
    subject = Subject(fn, methods, gradient=gradient)
    bounds = [subject.check(args, count, finite)[0] for args in examples]
    subject.check_point(examples[0], count)
    if nested:
        subject.check_nesting(examples[0], bounds[0])


def check_exact(fn, region, methods=None):
    """The bounds of a function that takes its extremes at corners are the extremes over the corners."""
    values = np.asarray(jax.vmap(lambda u: flat(fn(point(region, u))))(as_float(units(region, 0))))
    for name, make in (methods or METHODS).items():
        lower, upper = ends(jax.jit(make(fn))(region))
        slack = tolerance() * (1 + np.abs(values).max())
        np.testing.assert_allclose(lower, values.min(axis=0), rtol=0, atol=slack, err_msg=name)
        np.testing.assert_allclose(upper, values.max(axis=0), rtol=0, atol=slack, err_msg=name)


def assert_shard_map_is_vmap(bound, constants, boxes):
    """Bounds of a batch of sets inside `shard_map` are those of `vmap`; `bound` is of (constants, set)."""
    mesh = jax.make_mesh((1,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    whole, split = jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec("batch")
    batched = jax.vmap(bound, (None, 0))
    found = jax.jit(jax.shard_map(batched, mesh=mesh, in_specs=(whole, split), out_specs=split))(constants, boxes)
    expected = jax.jit(batched)(constants, boxes)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-12), found, expected)
