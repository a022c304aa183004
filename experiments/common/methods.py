"""What networks are trained with: the losses of the literature, made of jaxbound's parts.

Every method is one function of variables, batch and knobs. Knobs that are Python numbers are known when a step is
compiled, so that the warm-up is ordinary training and CROWN-IBP, once its weight is gone, costs what IBP costs.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import jaxbound
from experiments.common.flags import Config, CrownConfig, GlobalConfig
from experiments.common.models import Network
from experiments.common.train import Batch, Knobs, Method
from jaxbound import attacks, losses, regularizers

SMALLEST_RADIUS = 1e-6  # at which the regularisers look at the layers' bounds while training is unperturbed


class Robust(NamedTuple):
    """What bounding examples gives: their robust losses, whether they are verified, their layers' bounds (or none)."""

    loss: jax.Array
    verified: jax.Array
    layers: dict[str, jaxbound.Interval]


# (variables, batch, knobs) -> Robust of B examples
Bound = Callable[[Any, Batch, Knobs], Robust]


def region(image: jax.Array, radius: Any, config: Config) -> jaxbound.Interval | jaxbound.Ball:
    """The set of perturbed images of one image, or of a batch of images."""
    clip = (0.0, 1.0) if config.clip else None
    balls = {"inf": jaxbound.linf_ball, "2": jaxbound.l2_ball, "1": jaxbound.l1_ball}
    return balls[config.norm](image, radius, clip=clip)


def of_margins(lower: jax.Array) -> Robust:
    """The loss of lower bounds of margins, [K-1]."""
    return Robust(losses.robust_cross_entropy(lower), jnp.all(lower > 0), {})


def ibp(network: Network, config: Config) -> Bound:
    """Margins by interval bound propagation."""
    bounds = jaxbound.layer_bounds(network.apply)

    def bound(variables: Any, batch: Batch, knobs: Knobs) -> Robust:
        def one(image: jax.Array, label: jax.Array) -> Robust:
            spec = jaxbound.margin_spec(label, network.num_classes)
            lower, layers = bounds(variables, region(image, knobs.radius, config), spec=spec)
            return of_margins(lower)._replace(layers=layers)

        return jax.vmap(one)(*batch)

    return bound


def crown_ibp(network: Network, config: CrownConfig) -> Bound:
    """Margins by CROWN-IBP, mixed with those of IBP by beta; or the loss itself, by loss fusion."""

    def bound(variables: Any, batch: Batch, knobs: Knobs) -> Robust:
        mixed = jaxbound.crown_ibp(network.apply, beta=knobs.beta)
        fused = jaxbound.fused_cross_entropy(network.apply, beta=knobs.beta)

        def one(image: jax.Array, label: jax.Array) -> Robust:
            box = region(image, knobs.radius, config)
            if config.loss_fusion:
                loss = fused(variables, box, label=label)
                # Below log 2 no wrong class can have the larger logit.
                return Robust(loss, loss < jnp.log(2.0), {})
            if config.runner_up:
                spec = jaxbound.runner_up_spec(network.apply(variables, image), label)
            else:
                spec = jaxbound.margin_spec(label, network.num_classes)
            return of_margins(mixed(variables, box, spec=spec))

        return jax.vmap(one)(*batch)

    return bound


def global_robust(network: Network, config: GlobalConfig) -> Bound:
    """Margins at several radii at once, the losses weighed by how small the radius is."""
    weights, shares = config.radius_weights(), jnp.asarray(config.shares())
    count = len(weights)

    def bound(variables: Any, batch: Batch, knobs: Knobs) -> Robust:
        mixed = jaxbound.crown_ibp(network.apply, beta=knobs.beta)

        def one(image: jax.Array, label: jax.Array, radius: jax.Array) -> jax.Array:
            spec = jaxbound.margin_spec(label, network.num_classes)
            return mixed(variables, region(image, radius, config), spec=spec)

        # Radii and examples share one axis: XLA's CPU compiler sums gradients over one long axis faster than over two.
        # An example's radii stay together, so that a batch which is spread over devices stays where it is.
        size = len(batch.labels)
        images, labels = (jnp.repeat(leaf, count, axis=0) for leaf in batch)
        radii = jnp.tile(shares * knobs.radius, size)
        lower = jnp.moveaxis(jax.vmap(one)(images, labels, radii).reshape(size, count, -1), 1, 0)
        return Robust(losses.weighted_robust_cross_entropy(lower, weights), jnp.all(lower[-1] > 0, axis=-1), {})

    return bound


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The mean cross-entropy of logits [B, K] with labels [B]."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def error(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The percentage of logits [B, K] that do not put the label first."""
    return 100 * jnp.mean(~(jax.vmap(attacks.margin)(logits, labels) < 0))


def _known(knob: Any, value: float) -> bool:
    """Whether a knob has this value already when a step is compiled."""
    return isinstance(knob, int | float) and knob == value


def make(network: Network, config: Config, bound: Bound) -> Method:
    """The method that trains by a bound: kappa * natural + (1 - kappa) * robust loss, and regularisers.

    Args:
      network: what is trained.
      config: the run's flags.
      bound: of a batch.
    """

    def method(variables: Any, batch: Batch, knobs: Knobs) -> tuple[jax.Array, tuple[dict[str, jax.Array], Any]]:
        logits, stats = network.train(variables, batch.images)
        natural, clean = cross_entropy(logits, batch.labels), error(logits, batch.labels)
        # The bounds take the batch's statistics as they are: one forward pass makes them, nothing else moves them.
        fixed = {**variables, "batch_stats": stats} if stats else variables
        if config.stability or not _known(knobs.regularization, 0):
            # The regularisers' layers and boxes are those of the same radius, which the loss takes with them.
            knobs = knobs._replace(radius=jnp.maximum(knobs.radius, SMALLEST_RADIUS))
        if _known(knobs.kappa, 1):
            loss, verified, layers = natural, clean, None
        else:
            robust = bound(fixed, batch, knobs)
            loss = losses.mixed(natural, robust.loss.mean(), knobs.kappa)
            verified, layers = 100 * (~robust.verified).mean(), robust.layers
        loss = loss + _penalty(network, config, fixed, batch, knobs=knobs, layers=layers)
        return loss, ({"clean_error": clean, "verified_error": verified}, stats)

    return method


def _penalty(
    network: Network, config: Config, variables: Any, batch: Batch, *, knobs: Knobs, layers: Any
) -> jax.Array | float:
    """The regularisers: of the weights, of the activations' stability, of the warm-up."""
    total = config.l1 * regularizers.l1(variables["params"]) if config.l1 else 0.0
    if _known(knobs.regularization, 0) and not config.stability:
        return total
    boxes = jax.vmap(lambda image: region(image, knobs.radius, config))(batch.images)
    if not layers:
        layers = jax.vmap(functools.partial(jaxbound.layer_bounds(network.apply), variables))(boxes)
    if config.stability:
        total += config.stability * regularizers.stability(layers)
    if not _known(knobs.regularization, 0):
        width = jnp.mean(jaxbound.radius(boxes) / network.scale)
        penalty = regularizers.tightness(layers, width) + regularizers.balance(layers)
        total += knobs.regularization * penalty
    return total
