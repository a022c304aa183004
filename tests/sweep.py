"""`python -m tests.sweep`: 10^6 and more sampled checks over generated programs and every case of the rules' tests.

Each program and each case is bounded by every method on several boxes in float64, and its values at thousands of random
points, at all corners and where gradients lead are compared with every bound. Prints what was checked and each
violation; the exit status is 1 if there is one.
"""

import argparse
import sys
import time

import jax
import numpy as np

from tests import programs, soundness
from tests.rules import (
    test_activations,
    test_arithmetic,
    test_convolution,
    test_discrete,
    test_indexing,
    test_piecewise,
    test_reduction,
    test_selection,
    test_shape,
    test_smooth,
    test_special,
)

RULES = (
    test_activations,
    test_arithmetic,
    test_convolution,
    test_discrete,
    test_indexing,
    test_piecewise,
    test_reduction,
    test_selection,
    test_shape,
    test_smooth,
    test_special,
)


def subjects(count, seed):
    """Name and function of all that is checked: the rules' cases, then generated programs."""
    for module in RULES:
        for name, fn in module.CASES.items():
            yield f"{module.__name__.split('.')[-1]} {name}", fn
    rng = np.random.default_rng(seed)
    for k in range(count):
        program = programs.generate(lambda n: int(rng.integers(n)))
        yield f"program {k}: {program}", program


def sweep(count, points, seed, regions):
    """Checks everything; returns how many functions, points times outputs, comparisons, and the violations."""
    functions = observed = comparisons = 0
    violations = []
    for name, fn in subjects(count, seed):
        subject = soundness.Subject(fn, seed=seed)
        for k, region in enumerate(soundness.boxes(programs.SIZE, seed=seed)[:regions]):
            try:
                # Infinite bounds are sound: deep programs may divide by what can be zero.
                _, made = subject.check((region,), points, finite=False)
            except AssertionError as error:
                violations.append(f"{name}, box {k}: {error}")
            else:
                comparisons += made
                observed += made // len(subject.methods)
        functions += 1
        if functions % 20 == 0:
            print(f"{functions} functions, {observed:,} sampled values, {len(violations)} violations", flush=True)
            jax.clear_caches()
    return functions, observed, comparisons, violations


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--programs", type=int, default=220, help="how many programs to generate")
    parser.add_argument("--points", type=int, default=5000, help="random points in each box")
    parser.add_argument("--boxes", type=int, default=3, help="boxes for each function")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    with jax.enable_x64(True):
        functions, observed, comparisons, violations = sweep(
            options.programs, options.points, options.seed, options.boxes
        )
    for violation in violations:
        print("VIOLATION", violation)
    print(
        f"{functions} functions ({options.programs} generated), {observed:,} sampled values, {comparisons:,} "
        f"comparisons with bounds, {len(violations)} violations, {time.perf_counter() - start:.0f} s"
    )
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
