"""What the campaign is about: programs of three kinds, and sets that are meant to be hard."""

import importlib
import re

import jax
import jax.numpy as jnp
import numpy as np

import jaxbound
from tests import architectures, programs
from tests.methods import test_control
from tests.soundness import flat

# Every case of the rules' own tests is a program of one step.
RULES = {
    f"{module}.{name}": fn
    for module in (
        "activations arithmetic convolution discrete indexing normalization piecewise reduction selection shape smooth "
        "softmax special"
    ).split()
    for name, fn in importlib.import_module(f"tests.rules.test_{module}").CASES.items()
} | {f"control.{name}": fn for name, fn in (test_control.BRANCHES | test_control.LOOPS).items()}


BRANCHES = tuple(test_control.BRANCHES.values())


def draw(seed, index):
    """The program of this number: of eleven, six are chains, four networks, and one is the next of the rules' cases."""
    rng = np.random.default_rng((seed, index))

    def choose(n):
        return int(rng.integers(n))

    if index % 11 == 10:
        return parse(f"v1 = {sorted(RULES)[index // 11 % len(RULES)]}(0,)", outputs=1)
    if index % 11 >= 6:
        return architectures.generate(choose)
    return programs.generate(choose, inputs=2 if choose(4) == 0 else 1)


def parse(text, shapes=((programs.SIZE,),), outputs=2):
    """The program that prints as `text`."""
    steps = []
    for part in text.split("; "):
        name, operands = re.fullmatch(r"v\d+ = (.*)\(([\d, ]*)\)", part).groups()
        steps.append(step(name, tuple(int(k) for k in re.findall(r"\d+", operands))))
    return programs.Program(tuple(steps), shapes, outputs)


def step(name, operands):
    """A step of any kind by its name."""
    if name in RULES:
        return programs.Step(name, lambda x: flat(RULES[name](x)), operands)
    return (architectures if name.startswith(architectures.PREFIX) else programs).step(name, operands)


# Sets. Each entry makes lower and upper ends from random numbers; they are rounded to the precision in question.


def around(center, radius):
    return center - radius, center + radius


def scattered(rng, shape, low=-1.5, high=1.5):
    return rng.uniform(low, high, shape)


def some(rng, shape, value, other):
    """One of two values, for each element."""
    return np.where(rng.uniform(size=shape) < 0.5, value, other)


BOXES = {
    "ordinary": lambda rng, n: around(scattered(rng, n), scattered(rng, n, 0, 0.7)),
    "wide": lambda rng, n: around(scattered(rng, n), scattered(rng, n, 0, 4)),
    "tied": lambda rng, n: around(np.zeros(n), np.full(n, rng.choice([0.5, 1.0, 3.0]))),
    "nearly tied": lambda rng, n: (np.full(n, -1.0), 1 + rng.choice([0, 2.3e-16, -1.2e-16, 1e-7, -1e-12], n)),
    "touching zero": lambda rng, n: (some(rng, n, 0.0, -1.3), some(rng, n, 0.0, 0.8)),
    "at a bend": lambda rng, n: around(some(rng, n, 1.0, 0.0), 10.0 ** rng.uniform(-16, -4, n)),
    "a point": lambda rng, n: around(scattered(rng, n), np.zeros(n)),
    "partly a point": lambda rng, n: around(scattered(rng, n), some(rng, n, 0.0, 0.6)),
    "all scales": lambda rng, n: around(scattered(rng, n), 10.0 ** rng.uniform(-14, 1.5, n)),
    "tiny": lambda rng, n: around(scattered(rng, n, -1e-30, 1e-30), scattered(rng, n, 0, 2e-30)),
    "denormal": lambda rng, n: around(scattered(rng, n, -1e-310, 1e-310), scattered(rng, n, 0, 2e-310)),
    "far away": lambda rng, n: around(scattered(rng, n, -1e6, 1e6), scattered(rng, n, 0, 1)),
    "large": lambda rng, n: around(scattered(rng, n), scattered(rng, n, 0, 1e6)),
    "huge": lambda rng, n: around(scattered(rng, n, -1e30, 1e30), scattered(rng, n, 0, 2e30)),
    "half infinite": lambda rng, n: (some(rng, n, -np.inf, -0.7), some(rng, n, np.inf, 0.9)),
    "infinite": lambda rng, n: (np.full(n, -np.inf), np.full(n, np.inf)),
}
# What is certain to be as inexact as its own size; reported apart.
EXTREME = ("far away", "large", "huge", "half infinite", "infinite")
SIZES = {"ordinary": 0.6, "wide": 3.0, "tiny": 1e-30, "denormal": 1e-310, "large": 1e6, "huge": 1e30, "a point": 0.0}


def regions(rng, shape, kinds, dtype):
    """A batch of sets, all Intervals or all Balls of one norm, and what each is: the first two are always mild."""
    with np.errstate(over="ignore"):  # the largest have no end in lower precisions
        return _regions(rng, shape, kinds, dtype)


def _regions(rng, shape, kinds, dtype):
    if kinds == "boxes":
        names = ["ordinary", "wide", *rng.choice(sorted(BOXES), 6)]
        ends = [BOXES[name](rng, shape) for name in names]
        lower, upper = (jnp.asarray(np.stack(end), dtype) for end in zip(*ends, strict=True))
        return jaxbound.Interval(jnp.minimum(lower, upper), jnp.maximum(lower, upper)), names
    names = ["ordinary", "wide", *rng.choice(sorted(SIZES), 6)]
    p, clipped = kinds
    center = scattered(rng, (8, *shape))
    sizes = np.array([SIZES[name] for name in names]).reshape(8, *(1 for _ in shape))
    radius = sizes * np.where(rng.uniform(size=center.shape) < 0.2, 0, rng.uniform(0.3, 1, center.shape))
    limits = [center + sign * sizes * rng.uniform(0, 0.8, center.shape) for sign in (-1, 1)]
    center, radius, *limits = (jnp.asarray(x, dtype) for x in (center, radius, *limits))
    return jaxbound.Ball(center, radius, p, jaxbound.Interval(*limits) if clipped else None), names


def draw_regions(seed, index, shapes, dtype):
    """Batches of sets for the inputs of a program, and what they are."""
    rng = np.random.default_rng((seed, index, 1))
    found = []
    for shape in shapes:
        balls = [(p, clipped) for p in (1, 2, 3, np.inf) for clipped in (False, True)]
        kinds = balls[rng.integers(8)] if rng.uniform() < 0.4 else "boxes"
        found.append(regions(rng, shape, kinds, dtype))
    sets, names = zip(*found, strict=True)
    return tuple(sets), [" and ".join(pair) for pair in zip(*names, strict=True)]


def pick(sets, index):
    """One set of each batch."""
    return jax.tree.map(lambda x: x[index], sets)


def unit_points(rng, region, count):
    """Coordinates [count, *shape] in the unit cube (of an Interval) or unit ball: corners and random points."""
    shape = region.center.shape if isinstance(region, jaxbound.Ball) else region.lower.shape
    corners, inside = rng.integers(0, 2, (count, *shape)), rng.uniform(size=(count, *shape))
    kind = rng.integers(0, 3, (count, *(1 for _ in shape)))
    if isinstance(region, jaxbound.Interval):
        mixed = np.where(rng.uniform(size=inside.shape) < 0.5, corners, inside)
        return np.where(kind == 0, corners, np.where(kind == 1, inside, mixed)).astype(float)
    steps = rng.normal(size=(count, *shape)) ** 3
    axes = tuple(range(1, steps.ndim))
    size = np.max(np.abs(steps), axis=axes, keepdims=True)
    power = 1 if region.p == np.inf else region.p
    length = size if region.p == np.inf else np.sum(np.abs(steps) ** power, axis=axes, keepdims=True) ** (1 / power)
    on_axis = steps * (np.abs(steps) == size) / size
    return np.where(kind == 0, on_axis, steps / length * np.where(kind == 1, 1, rng.uniform(size=kind.shape)))
