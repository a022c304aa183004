"""`python -m tests.milp --nets=50`: how far each method's bounds of small ReLU networks are from the exact minimum.

Prints the mean distance of every method's lower bounds of the margins to the minimum by a mixed-integer program, and
which share of the distance that full CROWN (adaptive lines) leaves a method closes. A method to be measured
gets a line in METHODS. The exit status is 1 if a bound is above what the network takes somewhere in the box.
"""

import argparse
import functools
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

import jaxbound
from jaxbound import relax
from tests import oracles

# name -> transform of a function of (network, input).
METHODS = {
    "ibp": jaxbound.ibp,
    "crown_ibp adaptive": jaxbound.crown_ibp,
    "crown_ibp tight": functools.partial(jaxbound.crown_ibp, relu=relax.tight),
    "lbp tight": jaxbound.lbp,
    "crown_lbp tight": jaxbound.crown_lbp,
    "crown adaptive": jaxbound.crown,
    "crown tight": functools.partial(jaxbound.crown, relu=relax.tight),
    "crown same_slope": functools.partial(jaxbound.crown, relu=relax.same_slope),
    "alpha_crown 20": jaxbound.alpha_crown,
    "alpha_crown 100": functools.partial(jaxbound.alpha_crown, steps=100),
    "alpha_crown joint 20": functools.partial(jaxbound.alpha_crown, intermediate=jaxbound.shared_lines),
    "alpha_crown joint 100": functools.partial(jaxbound.alpha_crown, steps=100, intermediate=jaxbound.shared_lines),
}
BASELINE = "crown adaptive"


def apply(network, x):
    """A network of `oracles` in JAX."""
    for weights, bias in network[:-1]:
        x = jax.nn.relu(weights @ x + bias)
    weights, bias = network[-1]
    return weights @ x + bias


def margins(classes, label):
    """The rows [classes - 1, classes] of class `label` less every other."""
    rows = -np.eye(classes)
    rows[:, label] += 1
    return np.delete(rows, label, axis=0)


def bounds():
    """name -> lower bounds, of (network, box, rows); compiled once for all networks of the same sizes."""

    def bound(network, box, rows):
        return {name: make(apply)(network, box, spec=rows) for name, make in METHODS.items()}

    return jax.jit(bound)


def instance(sizes, radius, seed):
    """A random network, a box around a random input, and the rows of the margins there."""
    network = oracles.random_network(sizes, seed)
    center = np.random.default_rng((seed, 1)).uniform(-1, 1, sizes[0])
    label = int(np.argmax(oracles.evaluate(network, center)))
    return network, (center - radius, center + radius), margins(sizes[-1], label)


def measure(nets, sizes, radius, seed):
    """Optima, and name -> bounds, one for each row of each network; all [rows]."""
    bound, optima, found = bounds(), [], []
    with jax.enable_x64(True):
        for k in tqdm.trange(nets, disable=None):
            network, box, rows = instance(sizes, radius, seed + k)
            optima += [oracles.minimum(network, row, box) for row in rows]
            found.append(bound(network, jaxbound.Interval(*map(jnp.asarray, box)), rows))
    return optima, {name: np.concatenate([f[name] for f in found]) for name in METHODS}


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--nets", type=int, default=50)
    parser.add_argument("--sizes", default="4,12,12,3", help="units of each layer, inputs and outputs included")
    parser.add_argument("--radius", type=float, default=0.2, help="of the box around the input")
    parser.add_argument("--seed", type=int, default=0, help="of the first network; the next ones follow")
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    sizes = [int(n) for n in options.sizes.split(",")]
    optima, found = measure(options.nets, sizes, options.radius, options.seed)
    exact, proven = (np.array([getattr(o, name) for o in optima]) for name in ("value", "bound"))
    loose = exact - found[BASELINE] > oracles.SOLVER_TOLERANCE
    print(f"{'method':24}{'mean bound':>12}{'mean distance':>15}{'share closed':>14}{'worst excess':>14}")
    print(f"{'exact':24}{exact.mean():>12.6f}{0.0:>15.6f}{'100.0 %':>14}")
    for name, bound in found.items():
        share = 1 - np.sum((exact - bound)[loose]) / np.sum((exact - found[BASELINE])[loose])
        excess = np.max(bound - exact)
        print(f"{name:24}{bound.mean():>12.6f}{(exact - bound).mean():>15.6f}{100 * share:>12.1f} %{excess:>14.1e}")
    wrong = sum(int(np.sum(bound > exact + 1e-9 * (1 + np.abs(exact)))) for bound in found.values())
    print(
        f"{options.nets} networks of {options.sizes} units, {len(exact)} margins, of which {loose.sum()} are not exact "
        f"by {BASELINE}; the solver leaves at most {np.max(exact - proven):.1e} open; {wrong} bounds above a value of "
        f"the network; {time.perf_counter() - start:.0f} s"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
