"""Trains a network on digits by interval bound propagation, and verifies it.

    python -m experiments.mnist_ibp --flagfile=experiments/flags/mnist_5k.flags

References:
  Gowal et al. 2018, arXiv:1810.12715.
"""

from typing import Any

import jax

import jaxbound
from experiments.common import run
from experiments.common.flags import Config
from experiments.common.models import Apply
from experiments.common.train import Batch, Knobs, Method, cross_entropy, error
from jaxbound import losses

NAME = "mnist_ibp"
DEFAULTS = Config()


def ibp(apply: Apply, num_classes: int) -> Method:
    """The method: kappa * natural loss + (1 - kappa) * robust loss of the margins that IBP bounds.

    Args:
      apply: the network.
      num_classes: K.
    """

    def method(params: Any, batch: Batch, knobs: Knobs) -> tuple[jax.Array, dict[str, jax.Array]]:
        def margins(box: jaxbound.Interval, label: jax.Array) -> jax.Array:
            return jaxbound.ibp(apply)(params, box, spec=jaxbound.margin_spec(label, num_classes))

        logits = apply(params, batch.images)
        lower = jax.vmap(margins)(jaxbound.linf_ball(batch.images, knobs.radius), batch.labels)
        robust = losses.robust_cross_entropy(lower).mean()
        loss = losses.mixed(cross_entropy(logits, batch.labels), robust, knobs.kappa)
        verified = (lower > 0).all(axis=-1)
        return loss, {"clean_error": error(logits, batch.labels), "verified_error": 100 * (~verified).mean()}

    return method


if __name__ == "__main__":
    run.main(NAME, ibp, DEFAULTS)
