"""Bounds by jaxbound, by hand-written JAX and the plain forward pass: `python -m benchmarks.bounds --help`."""

import functools

import jax
import jax.numpy as jnp

import jaxbound
from benchmarks import models, reference
from benchmarks.timing import Comparison, compare, parse_flags, report

RADIUS = 0.01
CLASSES = 10


def inputs(network, batch):
    """Random parameters, images [B, *input_shape] in [0, 1] and labels [B]."""
    keys = jax.random.split(jax.random.key(0), 3)
    images = jax.random.uniform(keys[1], (batch, *network.input_shape))
    return models.init(network, keys[0]), images, jax.random.randint(keys[2], (batch,), 0, CLASSES)


def box(x):
    """The box that the hand-written bounds are given."""
    return jnp.maximum(x - RADIUS, 0), jnp.minimum(x + RADIUS, 1)


def jaxbound_logits(network, params, x):
    """IBP bounds of the logits by jaxbound, as (lower, upper)."""
    bound = jaxbound.ibp(functools.partial(models.apply, network, params))
    return tuple(jax.vmap(bound)(jaxbound.linf_ball(x, RADIUS, clip=(0.0, 1.0))))


def jaxbound_margins(method, network, params, *, x, labels):
    """Lower bounds [B, S] of the margins by a method of jaxbound."""
    bound = method(functools.partial(models.apply, network, params))
    boxes = jaxbound.linf_ball(x, RADIUS, clip=(0.0, 1.0))
    return jax.vmap(lambda box, label: bound(box, spec=jaxbound.margin_spec(label, CLASSES)))(boxes, labels)


def quantities(network):
    """What is compared, as {quantity: {candidate: function of (params, images, labels)}}, jaxbound first."""
    return {
        "IBP bounds of the logits": {
            "jaxbound": lambda params, x, y: jaxbound_logits(network, params, x),
            "hand-written": lambda params, x, y: reference.interval_bounds(network.layers, params, box(x))[0],
        },
        "IBP margins": {
            "jaxbound": lambda params, x, y: jaxbound_margins(jaxbound.ibp, network, params, x=x, labels=y),
            "hand-written": lambda params, x, y: reference.ibp_margins(network, params, box(x), labels=y),
        },
        "CROWN-IBP margins": {
            "jaxbound": lambda params, x, y: jaxbound_margins(jaxbound.crown_ibp, network, params, x=x, labels=y),
            "hand-written": lambda params, x, y: reference.crown_ibp_margins(network, params, box(x), labels=y),
        },
    }


def measure(flags):
    """Yield one `Comparison` per network and quantity."""
    for name in flags.models:
        network = models.NETWORKS[name]
        args = inputs(network, flags.batch)
        for quantity, candidates in quantities(network).items():
            plain = {
                "plain forward pass": lambda params, x, y, network=network: models.forward(network.layers, params, x)
            }
            yield Comparison(name, quantity, compare(candidates, plain, args, rounds=flags.rounds))


def main():
    """Measure and report."""
    flags = parse_flags(__doc__)
    report(measure(flags), flags)


if __name__ == "__main__":
    main()
