"""From flags, in epochs, to a recipe, in steps: schedules, phases, the optimiser."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxbound.nn
from experiments.common import augment, data, models, train
from experiments.common.flags import Config
from experiments.common.placement import Placement
from jaxbound import schedules

Schedule = Callable[[Any], Any]


def make(
    network: models.Network, config: Config, method: train.Method, *, steps_per_epoch: int, placement: Placement
) -> train.Recipe:
    """The recipe of a run.

    Args:
      network: what is trained.
      config: its flags.
      method: its loss.
      steps_per_epoch: batches that an epoch has.
      placement: where batches go.
    """
    total = config.epochs * steps_per_epoch
    clip = optax.clip_by_global_norm(config.grad_clip) if config.grad_clip else optax.identity()
    optimizer = optax.chain(clip, optax.adam(_of_updates(config, learning_rate(config, steps_per_epoch))))
    if config.accumulation > 1:
        optimizer = optax.MultiSteps(optimizer, config.accumulation).gradient_transformation()
    return train.Recipe(
        method=method,
        phases=_phases(network, config, placement, steps_per_epoch=steps_per_epoch),
        optimizer=optimizer,
        augment=augment.RECIPES[config.augmentation].train,
        settle=_settle(config),
        total_steps=min(total, config.max_steps or total),
        steps_per_epoch=steps_per_epoch,
        batch_size=config.batch_size,
        seeds=config.seeds,
        precision=config.precision,
    )


def initial(network: models.Network, config: Config) -> dict[str, Any]:
    """The variables before the first step."""
    variables = dict(network.variables)
    if config.slope_end >= 0:
        variables["schedule"] = jaxbound.nn.ramp_slopes(variables["params"], models.LEAKY_SLOPE)
    return variables


def learning_rate(config: Config, steps_per_epoch: int) -> optax.Schedule:
    """Step -> learning rate."""
    decays = {epoch * steps_per_epoch: config.lr_decay for epoch in config.lr_milestones}
    return optax.piecewise_constant_schedule(config.learning_rate, decays)


def _of_updates(config: Config, schedule: optax.Schedule) -> optax.Schedule:
    """The schedule as the optimiser counts: one update for several accumulated steps."""
    return lambda update: schedule(update * config.accumulation)


def _phases(
    network: models.Network, config: Config, placement: Placement, *, steps_per_epoch: int
) -> tuple[train.Phase, ...]:
    """Ordinary training, the ramp, and what follows it: each with as many knobs as possible known beforehand."""
    begin, end = (n * steps_per_epoch for n in (config.warmup_epochs, config.warmup_epochs + config.ramp_epochs))
    smoothed = functools.partial(schedules.smoothed, mid=config.ramp_mid)
    ramp = {"linear": schedules.linear, "smoothed": smoothed}[config.ramp]
    radius = ramp(0.0, config.radius, begin=begin, end=end)
    slope = _slope(config, steps_per_epoch)

    def following(start: float, stop: float) -> Schedule:
        if start == stop:
            return lambda step: start
        return schedules.following(radius, start, stop, full=config.radius)

    kappa, beta = following(config.kappa_start, config.kappa_end), following(*config.betas)
    fading = following(config.regularization, 0.0)

    def warmup(step: Any, key: Any) -> train.Knobs:
        return train.Knobs(0.0, 1, 0, config.regularization, slope(step), key)

    def growing(step: Any, key: Any) -> train.Knobs:
        return train.Knobs(radius(step), kappa(step), beta(step), fading(step), slope(step), key)

    def full(step: Any, key: Any) -> train.Knobs:
        return train.Knobs(config.radius, config.kappa_end, config.betas[1], 0, slope(step), key)

    start = _start_ramps(network, config, placement) if config.has_ramps else None
    phases = (train.Phase(0, warmup), train.Phase(begin, growing, start), train.Phase(end, full))
    return phases if begin else (phases[1]._replace(begin=0), phases[2])


def _slope(config: Config, steps_per_epoch: int) -> Schedule:
    """The activations' slope below zero, or None where it stays what it is."""
    if config.slope_end < 0:
        return lambda step: None
    begin = config.slope_begin_epoch * steps_per_epoch
    end = begin + config.slope_epochs * steps_per_epoch
    return schedules.linear(models.LEAKY_SLOPE, config.slope_end, begin=begin, end=end)


def _start_ramps(network: models.Network, config: Config, placement: Placement) -> Callable[[Any, data.Split], Any]:
    """Turns ParamRamp's bends on: each begins at its neuron's mean activation over the training set."""

    def enter(variables: Any, examples: data.Split) -> Any:
        batches = evaluation_batches(config, examples, placement)
        with jax.default_matmul_precision(config.precision):
            return jaxbound.nn.start_ramps(network.apply, variables, batches)

    return enter


def evaluation_batches(config: Config, examples: data.Split, placement: Placement) -> Iterator[jax.Array]:
    """Batches of training images as an evaluation sees them; the last one is left out where it is not full.

    They are drawn as in training: neighbours in a file are often alike, and batch statistics then differ from batch to
    batch more than those that the network was trained with.
    """
    crop, size = augment.RECIPES[config.augmentation].test, config.batch_size
    order = np.random.default_rng(config.seed).permutation(examples.size)
    for start in range(0, examples.size - size + 1, size):
        yield train.pixels(crop(placement.take(examples, order[start : start + size]).images))


def _settle(config: Config) -> Callable[[jax.Array, Any, Any], Any]:
    """What is done to the parameters after each step; noise only where the step has updated them."""
    if not config.has_ramps:
        return lambda key, params, step: params

    def settle(key: jax.Array, params: Any, step: Any) -> Any:
        if config.ramp_noise:
            updated = (step + 1) % config.accumulation == 0
            params = jaxbound.nn.perturb_ramps(key, params, scale=jnp.where(updated, config.ramp_noise, 0.0))
        return jaxbound.nn.clamp_ramps(params)

    return settle
