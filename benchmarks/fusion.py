"""Training steps with many classes, with and without loss fusion, and several radii in one step.

python -m benchmarks.fusion --help
"""

import argparse
import functools
import os

import jax
import jax.numpy as jnp
import numpy as np

import jaxbound
from benchmarks import models
from benchmarks.timing import Comparison, compare, table
from experiments.common import memory
from jaxbound import losses

BODY = models.hidden_and_relu(
    (
        models.Conv("conv1", 32, 3),
        models.Conv("conv2", 32, 4, 2),
        models.Conv("conv3", 64, 3),
        models.Conv("conv4", 64, 4, 2),
        models.Dense("dense1", 512),
        models.Dense("dense2", 512),
    )
)
INPUT_SHAPE = (28, 28, 1)
RADIUS = 0.01
BETA = 0.5
RADII = RADIUS * np.arange(1, 5) / 4
KEY = jax.random.key(0)


def network(classes, body=BODY):
    """The body with a last layer of this many classes."""
    return models.Network(f"{classes} classes", INPUT_SHAPE, (*body, models.Dense("out", classes)))


def inputs(batch, classes=10):
    """Random images [B, 28, 28, 1] and labels [B]."""
    keys = jax.random.split(KEY, 2)
    return jax.random.uniform(keys[0], (batch, *INPUT_SHAPE)), jax.random.randint(keys[1], (batch,), 0, classes)


# Losses [B] of (network, params, images, labels, beta).


def fused(net, params, x, labels, beta):
    """The cross-entropy bounded by one backward row."""
    bound = jaxbound.fused_cross_entropy(functools.partial(models.apply, net, params), beta=beta)
    return jax.vmap(lambda box, label: bound(box, label=label))(jaxbound.linf_ball(x, RADIUS), labels)


def by_rows(net, params, x, labels, beta):
    """The robust cross-entropy of the margins, a backward row for each."""
    bound = jaxbound.crown_ibp(functools.partial(models.apply, net, params), beta=beta)
    spec = functools.partial(jaxbound.margin_spec, num_classes=net.layers[-1].features)
    lower = jax.vmap(lambda box, label: bound(box, spec=spec(label)))(jaxbound.linf_ball(x, RADIUS), labels)
    return losses.robust_cross_entropy(lower)


def by_intervals(net, params, x, labels, beta):
    """The robust cross-entropy of IBP's margins: no backward row."""
    del beta
    return fused(net, params, x, labels, 0)


def step(loss, net):
    """The function (params, images, labels, beta) -> (mean loss, gradients)."""
    return lambda params, *rest: jax.value_and_grad(lambda p: loss(net, p, *rest).mean())(params)


def of_classes(loss, few, many, *, batch, rounds, body=BODY):
    """A step with many classes timed beside one with few."""
    nets = [network(many, body), network(few, body)]
    params = {net.name: models.init(net, KEY) for net in nets}
    # beta is an argument of the compiled step, as it is where training anneals it.
    args = (params, *inputs(batch, few), jnp.array(BETA))
    first, second = (
        {net.name: lambda params, *rest, net=net: step(loss, net)(params[net.name], *rest)} for net in nets
    )
    return compare(first, second, args, rounds=rounds)


# Several radii.


def at_once(net, params, x, labels, radii):
    """The weighted robust loss [B] at several radii, by IBP; radii and examples share one axis, as in training."""
    bound = jaxbound.ibp(functools.partial(models.apply, net, params))
    spec = functools.partial(jaxbound.margin_spec, num_classes=net.layers[-1].features)
    count = len(radii)
    images, labels = (jnp.concatenate([leaf] * count) for leaf in (x, labels))
    one = lambda x, label, radius: bound(jaxbound.linf_ball(x, radius), spec=spec(label))  # noqa: E731
    lower = jax.vmap(one)(images, labels, jnp.repeat(radii, len(x)))
    return losses.weighted_robust_cross_entropy(lower.reshape(count, len(x), -1), losses.arithmetic_weights(count))


def of_radii(batch, rounds, body=BODY):
    """One step at all radii timed beside a step at one radius, and the largest relative error of its gradients."""
    net = network(10, body)
    args = (models.init(net, KEY), *inputs(batch), jnp.array(RADII, jnp.float32))
    several = step(at_once, net)
    single = lambda params, x, y, radii: step(at_once, net)(params, x, y, radii[-1:])  # noqa: E731
    timings = compare({f"{len(RADII)} radii": several}, {"1 radius": single}, args, rounds=rounds)
    _, gradients = jax.jit(several)(*args)
    one = jax.jit(step(at_once, net))
    weights = losses.arithmetic_weights(len(RADII))
    each = [one(*args[:3], args[3][i : i + 1])[1] for i in range(len(RADII))]
    expected = jax.tree.map(lambda *leaves: sum(w * leaf for w, leaf in zip(weights, leaves, strict=True)), *each)
    errors = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b))), gradients, expected)
    return timings, max(jax.tree.leaves(errors))


def parse_flags():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32, help="examples in a batch")
    parser.add_argument("--few", type=int, default=10, help="the smaller number of classes")
    parser.add_argument("--many", type=int, default=200, help="the larger number of classes")
    parser.add_argument("--rounds", type=int, default=7, help="alternating samples of each candidate")
    return parser.parse_args()


def main():
    """Measure and print."""
    memory.keep_freed()  # as the training programs do
    flags = parse_flags()
    print(
        f"jax {jax.__version__}, {jax.devices()[0].device_kind}, {os.cpu_count()} cores, batch {flags.batch}, float32"
    )
    print("ratio: time of the first line over that line's, median of the rounds\n")
    for title, loss in {
        "IBP training step": by_intervals,
        "CROWN-IBP training step, with loss fusion": fused,
        "CROWN-IBP training step, a row for each margin": by_rows,
    }.items():
        timings = of_classes(loss, flags.few, flags.many, batch=flags.batch, rounds=flags.rounds)
        print(table(Comparison("DM-medium", title, timings)), end="\n\n", flush=True)
    for name, body in {"DM-small": models.DM_SMALL.layers[:-1], "DM-medium": BODY}.items():
        timings, error = of_radii(flags.batch, flags.rounds, body)
        comparison = Comparison(name, f"IBP training step at several radii, batch {flags.batch}", timings)
        share = comparison.ratio(timings[1]) / len(RADII)
        print(table(comparison))
        print(f"  all radii at once over one step for each: {share:.2f}; gradients differ by {error:.1e}\n", flush=True)


if __name__ == "__main__":
    main()
