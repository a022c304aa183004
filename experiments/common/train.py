"""The trainer: one compiled step, and the loop that runs it.

It knows nothing of the method that it trains with. Parameters, optimiser state and step are the whole state: the order
of the data, the schedules and the random keys are functions of the seed and the step, so a run that was interrupted
anywhere and resumed from a checkpoint ends bit for bit as one that was not.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.common import data
from experiments.common.flags import UserError
from experiments.common.models import Apply
from jaxbound import attacks


class Batch(NamedTuple):
    """Examples as a network sees them: images, float32 [B, H, W, C] with pixels in [0, 1], and labels, int32 [B]."""

    images: jax.Array
    labels: jax.Array


class Knobs(NamedTuple):
    """What changes from step to step: the perturbation radius, the natural loss's weight, and a random key."""

    radius: jax.Array
    kappa: jax.Array
    key: jax.Array


# (params, batch, knobs) -> (loss, metrics): two scalars' worth, the metrics in percent.
Method = Callable[[Any, Batch, Knobs], tuple[jax.Array, dict[str, jax.Array]]]


class TrainState(NamedTuple):
    """All that a checkpoint holds.

    Attributes:
      step: number of steps taken.
      params: the network's parameters.
      opt_state: the optimiser's state.
      totals: sums of the loss and of the metrics over the epoch's steps so far.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    totals: dict[str, jax.Array]


class Diverged(UserError):
    """The loss or its gradient is no longer finite."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train.

    Attributes:
      method: the loss from step `warmup_steps` on.
      warmup: the loss before it. A network is trained without perturbation first; a method of its own costs less
        there than one with bounds around every activation, and compiling both beats a `lax.cond`, in which XLA's CPU
        compiler has no fast convolution gradients.
      knobs: step -> Knobs.
      optimizer: an optax transformation.
      warmup_steps, total_steps, steps_per_epoch: counts of steps.
      batch_size: B.
      seed: of the data's order.
    """

    method: Method
    warmup: Method
    knobs: Callable[[Any], Knobs]
    optimizer: optax.GradientTransformation
    warmup_steps: int
    total_steps: int
    steps_per_epoch: int
    batch_size: int
    seed: int


def natural(apply: Apply, *, metrics: tuple[str, ...] = ("verified_error",)) -> Method:
    """Ordinary training.

    Args:
      apply: the network.
      metrics: names of the perturbed errors to report besides `clean_error`: at radius 0 all of them equal it.

    Returns:
      A method.
    """

    def method(params: Any, batch: Batch, knobs: Knobs) -> tuple[jax.Array, dict[str, jax.Array]]:
        del knobs
        logits = apply(params, batch.images)
        clean = error(logits, batch.labels)
        return cross_entropy(logits, batch.labels), {"clean_error": clean, **dict.fromkeys(metrics, clean)}

    return method


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The mean cross-entropy of logits [B, K] with labels [B]."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def error(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The percentage of logits [B, K] that do not put the label first."""
    return 100 * jnp.mean(~(jax.vmap(attacks.margin)(logits, labels) < 0))


def init_state(params: Any, recipe: Recipe, *, shape: tuple[int, ...]) -> TrainState:
    """Returns the state before the first step, for images of this shape (H, W, C)."""
    batch = Batch(
        jax.ShapeDtypeStruct((recipe.batch_size, *shape), jnp.float32),
        jax.ShapeDtypeStruct((recipe.batch_size,), jnp.int32),
    )
    _, metrics = jax.eval_shape(recipe.warmup, params, batch, jax.eval_shape(recipe.knobs, 0))
    totals = {name: jnp.zeros((), jnp.float32) for name in ("loss", *metrics)}
    return TrainState(jnp.zeros((), jnp.int32), params, recipe.optimizer.init(params), totals)


def pixels(images: jax.Array) -> jax.Array:
    """Converts bytes to floats in [0, 1]."""
    return images.astype(jnp.float32) / 255


def _compile(method: Method, recipe: Recipe) -> Callable[..., TrainState]:
    """Compiles one step of a method: (state, examples, their order) -> state.

    A step whose loss or gradient is not finite changes nothing, its number included, so the state stays good and says
    where training broke off.
    """

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: TrainState, examples: data.Split, order: jax.Array) -> TrainState:
        position = state.step % recipe.steps_per_epoch
        chosen = jax.lax.dynamic_slice_in_dim(order, position * recipe.batch_size, recipe.batch_size)
        batch = Batch(pixels(examples.images[chosen]), examples.labels[chosen])
        grad = jax.value_and_grad(method, has_aux=True)
        (loss, metrics), gradients = grad(state.params, batch, recipe.knobs(state.step))
        updates, opt_state = recipe.optimizer.update(gradients, state.opt_state, state.params)
        figures = {"loss": loss, **metrics}
        totals = {name: jnp.where(position == 0, 0, state.totals[name]) + figures[name] for name in state.totals}
        new = TrainState(state.step + 1, optax.apply_updates(state.params, updates), opt_state, totals)
        finite = jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((loss, gradients))]).all()
        return jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, state)

    return step


def run(state: TrainState, recipe: Recipe, split: data.Split, *, every: int) -> Iterator[TrainState]:
    """Trains, from the state's step to the recipe's end.

    Args:
      state: where to start. It is consumed, as is every yielded state once the next one is asked for.
      recipe: how to train.
      split: the examples; they are kept on the device as bytes.
      every: steps between two yields.

    Yields:
      The state after every `every` steps and at every epoch's end.

    Raises:
      Diverged: where a loss or gradient was not finite; it names the step.
    """
    examples = data.Split(*map(jnp.asarray, split))
    warmup, main = (_compile(method, recipe) for method in (recipe.warmup, recipe.method))
    done = int(state.step)
    while done < recipe.total_steps:
        epoch, position = divmod(done, recipe.steps_per_epoch)
        order = jnp.asarray(data.permutation(split.size, seed=recipe.seed, epoch=epoch))
        while position < recipe.steps_per_epoch:
            count = min(every, recipe.steps_per_epoch - position)
            for step in range(done, done + count):
                state = (warmup if step < recipe.warmup_steps else main)(state, examples, order)
            done, position = done + count, position + count
            if int(state.step) != done:
                raise Diverged(
                    f"training diverged: the loss or its gradient is not finite at step {int(state.step)} "
                    f"(epoch {epoch + 1}). Checkpoints are as they were; try a smaller --learning_rate, a --grad_clip "
                    "or a longer ramp in another --workdir"
                )
            yield state
