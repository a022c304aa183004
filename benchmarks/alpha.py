"""A step of alpha-CROWN beside a backward pass and its gradient by hand: `python -m benchmarks.alpha --help`."""

import functools

import jax
import jax.numpy as jnp

import jaxbound
from benchmarks import bounds, models, reference
from benchmarks.timing import Comparison, compare, parse_flags, report

STEPS = 20


def by_jaxbound(network, params, x, labels, *, steps, chunk=512):
    """Lower bounds [B, S] of the margins by alpha-CROWN with exactly so many steps."""
    method = functools.partial(jaxbound.alpha_crown, steps=steps, patience=steps + 1, chunk=chunk)
    return bounds.jaxbound_margins(method, network, params, x=x, labels=labels)


def by_hand(network, params, x, labels):
    """The sum of CROWN-IBP's margins with a free slope for each row and unit, and its gradient."""
    box = bounds.box(x)
    lines = reference.relax(network, params, box)
    count = bounds.CLASSES - 1

    def total(slopes):
        free = {
            name: reference.Lines(
                jnp.where((upper > 0) & (upper < 1), slopes[name], upper), upper, lines[name].upper_offset
            )
            for name, upper in ((name, lines[name].upper_slope[:, None]) for name in lines)
        }
        coeffs, bias, _ = reference.linear_margins(network, params, _offsets_per_unit(free), labels=labels)
        return reference.concretize(coeffs, bias, box).sum()

    start = {name: jnp.repeat(each.lower_slope[:, None], count, axis=1) for name, each in lines.items()}
    return jax.value_and_grad(total)(start)


def _offsets_per_unit(lines):
    return {name: each._replace(upper_slope=each.upper_slope[:, 0]) for name, each in lines.items()}


def measure(flags):
    """Yield one `Comparison` per network, its last line the time of a step over that by hand."""
    for name in flags.models:
        network = models.NETWORKS[name]
        args = bounds.inputs(network, flags.batch)
        candidates = {
            f"jaxbound, {steps} steps": functools.partial(by_jaxbound, network, steps=steps) for steps in (STEPS, 0)
        } | {"backward pass and gradient by hand": functools.partial(by_hand, network)}
        timings = compare({}, candidates, args, rounds=flags.rounds)
        many, none, hand = timings
        ratios = [(a - b) / STEPS / c for a, b, c in zip(many.seconds, none.seconds, hand.seconds, strict=True)]
        yield Comparison(
            name, f"alpha-CROWN; a step over that by hand: {sorted(ratios)[len(ratios) // 2]:.2f}", timings
        )


def main():
    """Measure and report."""
    flags = parse_flags(__doc__)
    report(measure(flags), flags)


if __name__ == "__main__":
    main()
