"""Training steps with jaxbound, with hand-written JAX and without bounds: `python -m benchmarks.training --help`."""

import jax
import jax.numpy as jnp

import jaxbound
from benchmarks import models, reference
from benchmarks.bounds import box, inputs, jaxbound_margins
from benchmarks.convolutions import DERIVED
from benchmarks.timing import Comparison, compare, parse_flags, report

LEARNING_RATE = 0.1


def sgd_step(loss):
    """The function (params, images, labels) -> (new params, loss) that takes one gradient step."""

    def step(params, x, y):
        value, grads = jax.value_and_grad(loss)(params, x, y)
        return jax.tree.map(lambda p, g: p - LEARNING_RATE * g, params, grads), value

    return step


def cross_entropy(network, params, x, *, labels):
    """Mean cross-entropy of the plain network."""
    log_probabilities = jax.nn.log_softmax(models.forward(network.layers, params, x))
    return -jnp.mean(jnp.take_along_axis(log_probabilities, labels[:, None], axis=1))


def robust_steps(margins):
    """Steps on the robust loss of each candidate's margins, a function (params, images, labels) -> [B, S]."""
    return {
        name: sgd_step(lambda params, x, y, fn=fn: reference.robust_loss(fn(params, x, y)))
        for name, fn in margins.items()
    }


def quantities(network):
    """What is compared, as {quantity: {candidate: margins from (params, images, labels)}}, jaxbound first."""

    def by_hand(form, **options):
        return lambda params, x, y: form(network, params, box(x), labels=y, **options)

    def by_jaxbound(method):
        return lambda params, x, y: jaxbound_margins(method, network, params, x=x, labels=y)

    return {
        "IBP training step": {
            "jaxbound": by_jaxbound(jaxbound.ibp),
            "hand-written": by_hand(reference.ibp_margins),
        },
        "CROWN-IBP training step": {
            "jaxbound": by_jaxbound(jaxbound.crown_ibp),
            "hand-written, envelope": by_hand(reference.crown_ibp_margins_envelope),
            "hand-written, recursion, own rules": by_hand(reference.crown_ibp_margins),
            "hand-written, recursion": by_hand(reference.crown_ibp_margins, ops=DERIVED),
        },
    }


def measure(flags):
    """Yield one `Comparison` per network and kind of step."""
    for name in flags.models:
        network = models.NETWORKS[name]
        args = inputs(network, flags.batch)
        plain = sgd_step(lambda params, x, y, network=network: cross_entropy(network, params, x, labels=y))
        for quantity, margins in quantities(network).items():
            steps = robust_steps(margins)
            timings = compare(steps, {"plain training step": plain}, args, rounds=flags.rounds)
            yield Comparison(name, quantity, timings)


def main():
    """Measure and report."""
    flags = parse_flags(__doc__)
    report(measure(flags), flags)


if __name__ == "__main__":
    main()
