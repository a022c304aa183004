"""The trainer: one compiled step, and the loop that runs it.

It knows nothing of the method that it trains with. Parameters, optimiser state and step are the whole state: the order
of the data, the schedules and the random keys are functions of the seed and the step, so a run that was interrupted
anywhere and resumed from a checkpoint ends bit for bit as one that was not.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxbound.nn
from experiments.common import data
from experiments.common.errors import UserError
from experiments.common.placement import Placement

AHEAD = 2  # batches sent to the devices before they are needed


class Batch(NamedTuple):
    """Examples as a network sees them: images, float32 [B, H, W, C] with pixels in [0, 1], and labels, int32 [B]."""

    images: jax.Array
    labels: jax.Array


class Knobs(NamedTuple):
    """What changes from step to step. A Python number is known when the step is compiled: 0 leaves a term out.

    Attributes:
      radius: of the perturbation.
      kappa: the natural loss's weight.
      beta: the linear bound's weight against the interval bound.
      regularization: the weight of the warm-up's regularisers.
      slope: of the activations below zero; None where it does not change.
      key: a random key.
    """

    radius: Any
    kappa: Any
    beta: Any
    regularization: Any
    slope: Any
    key: jax.Array


# (variables, batch, knobs) -> (loss, (metrics, batch_stats)): metrics in percent, the statistics of this very batch.
Method = Callable[[Any, Batch, Knobs], tuple[jax.Array, tuple[dict[str, jax.Array], Any]]]


class TrainState(NamedTuple):
    """All that a checkpoint holds.

    Attributes:
      step: number of steps taken.
      seed: of the random keys.
      variables: the network's parameters and whatever else it needs, such as running averages of batch statistics.
      opt_state: the optimiser's state.
      totals: sums of the loss and of the metrics over the epoch's steps so far.
    """

    step: jax.Array
    seed: jax.Array
    variables: dict[str, Any]
    opt_state: Any
    totals: dict[str, jax.Array]


class Diverged(UserError):
    """The loss or its gradient is no longer finite."""


class Phase(NamedTuple):
    """A part of training that is compiled on its own, because some of its knobs are known beforehand.

    Compiling twice beats a `lax.cond`, in which XLA's CPU compiler has no fast convolution gradients.

    Attributes:
      begin: its first step.
      knobs: (step, key) -> Knobs.
      enter: (variables, examples) -> variables, done once before its first step.
    """

    begin: int
    knobs: Callable[[Any, Any], Knobs]
    enter: Callable[[Any, data.Split], Any] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train.

    Attributes:
      method: the loss.
      phases: in the order of their first steps; the first one begins at 0.
      optimizer: an optax transformation.
      augment: (key, images) -> images, uint8, run inside the compiled step.
      settle: (key, params, step) -> params, after every step.
      total_steps, steps_per_epoch: counts of steps.
      batch_size: B.
      seeds: of the data's order, one for each state that is trained.
      momentum: of the running average of batch statistics.
      precision: of matrix products, as JAX names it.
    """

    method: Method
    phases: tuple[Phase, ...]
    optimizer: optax.GradientTransformation
    augment: Callable[[jax.Array, jax.Array], jax.Array] = lambda key, images: images
    settle: Callable[[jax.Array, Any, Any], Any] = lambda key, params, step: params
    total_steps: int
    steps_per_epoch: int
    batch_size: int
    seeds: tuple[int, ...]
    momentum: float = 0.9
    precision: str = "highest"

    def phase(self, step: int) -> Phase:
        """The phase that a step belongs to."""
        return [phase for phase in self.phases if phase.begin <= step][-1]


def init_state(variables: Mapping[str, Any], recipe: Recipe, *, seed: int, shape: tuple[int, ...]) -> TrainState:
    """Returns the state before the first step, for images of this shape (H, W, C) as the network gets them."""
    batch = Batch(
        jax.ShapeDtypeStruct((recipe.batch_size, *shape), jnp.float32),
        jax.ShapeDtypeStruct((recipe.batch_size,), jnp.int32),
    )
    knobs = recipe.phases[0].knobs(0, jax.random.key(seed))
    _, (metrics, _) = jax.eval_shape(lambda v, b: recipe.method(v, b, knobs), variables, batch)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        seed=jnp.asarray(seed, jnp.int32),
        variables=dict(variables),
        opt_state=recipe.optimizer.init(variables["params"]),
        totals={name: jnp.zeros((), jnp.float32) for name in ("loss", *metrics)},
    )


def stack(states: Sequence[TrainState]) -> TrainState:
    """One state out of the states of several seeds, which are trained side by side; of one seed, that one."""
    return states[0] if len(states) == 1 else jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


def members(state: TrainState) -> list[TrainState]:
    """The states that `stack` was given."""
    if not state.step.ndim:
        return [state]
    return [jax.tree.map(lambda leaf, k=k: leaf[k], state) for k in range(len(state.step))]


def steps_taken(state: TrainState) -> int:
    """The number of steps that every seed has taken."""
    return int(jnp.min(state.step))


def pixels(images: jax.Array) -> jax.Array:
    """Converts bytes to floats in [0, 1]."""
    return images.astype(jnp.float32) / 255


def compile_step(phase: Phase, recipe: Recipe, shardings: Any = None) -> Callable[..., TrainState]:
    """Compiles one step of a phase: (state, batch as bytes) -> state, which consumes the one given.

    A step whose loss or gradient is not finite changes nothing, its number included, so the state stays good and says
    where training broke off.

    Args:
      phase: what is known beforehand.
      recipe: how to train.
      shardings: of the state, before and after; None for wherever it is.
    """

    def step(state: TrainState, chosen: data.Split) -> TrainState:
        position = state.step % recipe.steps_per_epoch
        augment, settle, key = jax.random.split(jax.random.fold_in(jax.random.key(state.seed), state.step), 3)
        batch = Batch(pixels(recipe.augment(augment, chosen.images)), chosen.labels)
        knobs = phase.knobs(state.step, key)
        old = state.variables
        if knobs.slope is not None:
            old = {**old, "schedule": jaxbound.nn.ramp_slopes(old["params"], knobs.slope)}

        def loss_of(params: Any) -> Any:
            return recipe.method({**old, "params": params}, batch, knobs)

        (loss, (metrics, stats)), gradients = jax.value_and_grad(loss_of, has_aux=True)(old["params"])
        updates, opt_state = recipe.optimizer.update(gradients, state.opt_state, old["params"])
        params = recipe.settle(settle, optax.apply_updates(old["params"], updates), state.step)
        variables = {**old, "params": params}
        if stats:
            variables["batch_stats"] = jaxbound.nn.running_average(old["batch_stats"], stats, momentum=recipe.momentum)
        figures = {"loss": loss, **metrics}
        totals = {name: jnp.where(position == 0, 0, state.totals[name]) + figures[name] for name in state.totals}
        new = TrainState(state.step + 1, state.seed, variables, opt_state, totals)
        finite = jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((loss, gradients))]).all()
        return jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, state)

    def together(state: TrainState, chosen: data.Split) -> TrainState:
        with jax.default_matmul_precision(recipe.precision):
            return (step if len(recipe.seeds) == 1 else jax.vmap(step))(state, chosen)

    return jax.jit(together, donate_argnums=0, out_shardings=shardings)


def batches(recipe: Recipe, split: data.Split, placement: Placement, *, step: int) -> Iterator[data.Split]:
    """The batches from a step on, to the end; a few are always on their way to the devices before they are asked for.

    Args:
      recipe: how to train.
      split: the examples.
      placement: where a batch goes.
      step: the first one's.
    """
    waiting: collections.deque[data.Split] = collections.deque()
    orders, of_epoch = np.empty(0), -1
    for number in range(step, recipe.total_steps):
        epoch, position = divmod(number, recipe.steps_per_epoch)
        if epoch != of_epoch:
            orders = np.stack([data.permutation(split.size, seed=seed, epoch=epoch) for seed in recipe.seeds])
            orders, of_epoch = orders if len(recipe.seeds) > 1 else orders[0], epoch
        chosen = orders[..., position * recipe.batch_size : (position + 1) * recipe.batch_size]
        waiting.append(placement.take(split, chosen))
        if len(waiting) > AHEAD:
            yield waiting.popleft()
    yield from waiting


def _enter(phase: Phase, state: TrainState, examples: data.Split) -> TrainState:
    """The state as a phase begins with it."""
    if phase.enter is None:
        return state
    return stack([each._replace(variables=phase.enter(each.variables, examples)) for each in members(state)])


def run(
    state: TrainState, recipe: Recipe, split: data.Split, *, every: int, placement: Placement
) -> Iterator[TrainState]:
    """Trains, from the state's step to the recipe's end.

    Args:
      state: where to start, placed. It is consumed, as is every yielded state once the next one is asked for.
      recipe: how to train.
      split: the examples.
      every: steps between two yields.
      placement: where the state is and where batches go.

    Yields:
      The state after every `every` steps and at every epoch's end.

    Raises:
      Diverged: where a loss or gradient was not finite; it names the step.
    """
    shardings = placement.of_state(state, stacked=len(recipe.seeds) > 1)
    steps = {phase.begin: compile_step(phase, recipe, shardings) for phase in recipe.phases}
    done = steps_taken(state)
    feed = batches(recipe, split, placement, step=done)
    while done < recipe.total_steps:
        epoch, position = divmod(done, recipe.steps_per_epoch)
        end = min(done - position + recipe.steps_per_epoch, recipe.total_steps)
        while done < end:
            for _ in range(min(every, end - done)):
                phase = recipe.phase(done)
                if done == phase.begin:
                    state = jax.device_put(_enter(phase, state, split), shardings)
                state = steps[phase.begin](state, next(feed))
                done += 1
            if steps_taken(state) != done:
                raise Diverged(
                    f"training diverged: the loss or its gradient is not finite at step {steps_taken(state)} "
                    f"(epoch {epoch + 1}). Checkpoints are as they were; try a smaller --learning_rate, a --grad_clip "
                    "or a longer ramp in another --workdir"
                )
            yield state
