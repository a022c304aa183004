"""The statistics of one batch, for certified training of networks with batch normalisation.

A training step runs the clean batch through the network once in training mode and takes the batch's means and
variances from that pass. Everything else in the step (attacks, bounds) runs the network in evaluation mode with these
statistics in its variables. They are functions of the parameters, so gradients flow through them; the running average
is kept by the training step and only evaluation uses it.

Never bound a network that is in training mode: a bound is about one example, and the statistics of one example are not
those of the batch. The bound would be valid for another network than the one that is evaluated.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

COLLECTION = "batch_stats"
_NAMES = ("mean", "var")


def batch_statistics(apply: Callable) -> Callable:
    """Turns a Flax Linen `apply` in training mode into one that also returns the batch's own statistics.

    Flax returns a running average, momentum * old + (1 - momentum) * batch. Here each `BatchNorm` begins at zero and
    its result is divided by 1 - momentum, so what comes back is the batch's mean and variance to rounding error,
    whatever the momentum and the old average are, and differentiable with respect to the parameters.

    Args:
      apply: `(variables, x, *, mutable, **kwargs) -> output`, as `functools.partial(model.apply, train=True)`.

    Returns:
      `(variables, x, **kwargs) -> (output, batch_stats)`: `batch_stats` has the tree of `variables["batch_stats"]` and
      is {} for a network without batch normalisation.

    Raises:
      ValueError: when called, if a `BatchNorm` is in evaluation mode, gets a batch of one example (as it does where
        each example of a `jax.vmap` is a batch), has momentum 1, is applied twice in one pass, or has no statistics
        in `variables`. A missing batch axis ([H, W, C] instead of [B, H, W, C]) cannot be recognised.

    Example:
      >>> import flax.linen, functools
      >>> class Model(flax.linen.Module):
      ...     @flax.linen.compact
      ...     def __call__(self, x, train=False):
      ...         return flax.linen.BatchNorm(use_running_average=not train)(x)
      >>> x = jnp.array([[1.0, 0.0], [3.0, 0.0]])
      >>> variables = Model().init(jax.random.key(0), x)
      >>> train = jaxbound.nn.batch_statistics(functools.partial(Model().apply, train=True))
      >>> train(variables, x)[1]["BatchNorm_0"]["mean"]
      Array([2., 0.], dtype=float32)

    References:
      Shi et al. 2021, arXiv:2103.17268.
    """

    def statistics(variables: Mapping[str, Any], x: Any, **kwargs: Any) -> tuple[Any, Any]:
        met: list[nn.Module] = []

        def interceptor(call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
            if not isinstance(context.module, nn.BatchNorm) or context.method_name != "__call__":
                return call(*args, **kwargs)
            _check_first_call(context.module, _place(context.module), met)
            return _exact(context.module, call, args, kwargs)

        with nn.intercept_methods(interceptor):
            output, updated = apply(variables, x, mutable=[COLLECTION], **kwargs)
        return output, updated.get(COLLECTION, {})

    return statistics


def _check_first_call(module: Any, place: str, met: list[Any]) -> None:
    # Identity, not the path: a loop's body is traced more than once, each time with new modules on the same paths.
    if any(module is other for other in met):
        raise ValueError(f"{place} is applied twice in one pass: it has no single statistics of the batch")
    met.append(module)


def _exact(module: nn.BatchNorm, call: Callable, args: tuple, kwargs: dict) -> Any:
    """Calls a BatchNorm and leaves the statistics of this very call in its variables."""
    if not all(module.has_variable(COLLECTION, name) for name in _NAMES):
        raise ValueError(
            f"{_place(module)} has no statistics: pass the variables that init returned, {COLLECTION!r} too"
        )
    shape = jnp.shape(args[0] if args else kwargs["x"])
    _check_batch(shape, _place(module), split=module.axis_name is not None)
    if module.momentum == 1:
        raise ValueError(f"{_place(module)} has momentum 1, which forgets the batch: choose one below 1")
    zeros = {name: jnp.zeros_like(module.get_variable(COLLECTION, name)) for name in _NAMES}
    for name, value in zeros.items():
        module.put_variable(COLLECTION, name, value)
    output = call(*args, **kwargs)
    for name, before in zeros.items():
        after = module.get_variable(COLLECTION, name)
        if after is before:  # an update makes a new array even where the numbers are the same
            raise ValueError(_evaluation_mode(_place(module)))
        module.put_variable(COLLECTION, name, after / (1 - module.momentum))
    return output


def _place(module: nn.Module) -> str:
    return f"{type(module).__name__} {'/'.join(module.path)!r}"


def _check_batch(shape: tuple[int, ...], place: str, *, split: bool) -> None:
    """Refuses a batch of one example, unless the rest of the batch is on other devices."""
    if (len(shape) < 2 or shape[0] == 1) and not split:
        raise ValueError(
            f"{place} got the shape {shape}, a batch of one example, whose statistics are not the batch's: pass the "
            "whole batch here, and bound each example in evaluation mode with the statistics that this returns"
        )


def _evaluation_mode(place: str) -> str:
    return f"{place} is in evaluation mode (use_running_average): its statistics did not move; pass the training mode"


def nnx_batch_statistics(model: Any, x: Any, **kwargs: Any) -> tuple[Any, nnx.State]:
    """Calls a Flax NNX module in training mode and returns the batch's own statistics, leaving the module as it was.

    It is `batch_statistics` for NNX. The statistics are computed here because those that NNX keeps have no gradient.

    Args:
      model: a callable `nnx.Module`, in training mode (`model.train()`).
      x: a batch of inputs, leading axis B.
      **kwargs: further arguments of the module.

    Returns:
      The output, and the `nnx.BatchStat` part of the state, empty without batch normalisation: a copy in evaluation
      mode takes it by `nnx.update(copy, statistics)`.

    Raises:
      ValueError: a `BatchNorm` is in evaluation mode, gets a batch of one example, or is applied twice.

    Example:
      >>> from flax import nnx
      >>> norm = nnx.BatchNorm(2, rngs=nnx.Rngs(0))
      >>> _, statistics = jaxbound.nn.nnx_batch_statistics(norm, jnp.array([[1.0, 0.0], [3.0, 0.0]]))
      >>> statistics["mean"][...], norm.mean[...]
      (Array([2., 0.], dtype=float32), Array([0., 0.], dtype=float32))

    References:
      Shi et al. 2021, arXiv:2103.17268.
    """
    copy = nnx.clone(model)
    met: list[Any] = []
    for path, module in nnx.iter_modules(copy):
        if isinstance(module, nnx.BatchNorm):
            place = f"BatchNorm {'/'.join(map(str, path))!r}"
            module.__class__ = _recording(type(module), place, met)
    return copy(x, **kwargs), nnx.state(copy, nnx.BatchStat)


def _recording(kind: type[nnx.BatchNorm], place: str, met: list[Any]) -> type[nnx.BatchNorm]:
    """A kind of batch norm that stores the statistics of its input, then normalises by what it has stored."""

    class Recording(kind):
        def __call__(self, x: Any, use_running_average: bool | None = None, *, mask: Any = None) -> Any:
            if use_running_average or (use_running_average is None and self.use_running_average):
                raise ValueError(_evaluation_mode(place))
            _check_batch(jnp.shape(x), place, split=self.axis_name is not None)
            _check_first_call(self, place, met)
            self.mean[...], self.var[...] = _moments(self, x, mask)
            return super().__call__(x, use_running_average=True)

    return Recording


def _moments(norm: nnx.BatchNorm, x: Any, mask: Any) -> tuple[Any, Any]:
    """Mean and variance of each feature over all other axes, and over the devices that share the batch."""
    kept = {axis % x.ndim for axis in (norm.axis if isinstance(norm.axis, Sequence) else [norm.axis])}
    axes = tuple(axis for axis in range(x.ndim) if axis not in kept)
    x = x.astype(norm.dtype or x.dtype)  # what the layer sees
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))

    def average(values: Any) -> Any:
        mean = jnp.mean(values, axes, where=mask, keepdims=True)
        if norm.axis_name is None:
            return mean
        return jax.lax.pmean(mean, norm.axis_name, axis_index_groups=norm.axis_index_groups)

    mean = average(x)
    return jnp.squeeze(mean, axes), jnp.squeeze(average(jnp.square(x - mean)), axes)


def running_average(old: Any, new: Any, momentum: float = 0.9) -> Any:
    """Moves the running statistics towards a batch's: momentum * old + (1 - momentum) * new, leaf by leaf.

    Args:
      old: the running statistics, a pytree.
      new: one batch's, of the same structure.
      momentum: how much of the old stays, in [0, 1].

    Returns:
      The new running statistics.

    Example:
      >>> jaxbound.nn.running_average({"mean": jnp.zeros(1)}, {"mean": jnp.ones(1)}, momentum=0.75)
      {'mean': Array([0.25], dtype=float32)}
    """
    return jax.tree.map(lambda a, b: momentum * a + (1 - momentum) * b, old, new)


def population_statistics(statistics_of_batches: Iterable[Any]) -> Any:
    """The statistics of a whole data set from those of its batches.

    Exact where all batches have the same size: the mean is the mean of the means, and the variance is the mean of the
    variances plus the variance of the means (the plain average of the variances, which is often used instead, leaves
    out the second part). Exact, that is, for these activations: behind another batch normalisation they are those of
    batches normalised each by its own statistics. So draw the batches at random, as in training: in batches of
    neighbours that are alike, such as images of one writer or one class, they may be far from what the network sees.

    Args:
      statistics_of_batches: what `batch_statistics` returned for every batch; read once, so a generator will do.

    Returns:
      Statistics of the same structure. Leaves that are neither a mean nor a variance are the last batch's.

    Raises:
      ValueError: there is no batch.

    Example:
      >>> batches = [{"mean": jnp.array([m]), "var": jnp.array([v])} for m, v in ((1.0, 0.5), (3.0, 1.5))]
      >>> jaxbound.nn.population_statistics(batches)
      {'mean': Array([2.], dtype=float32), 'var': Array([2.], dtype=float32)}
    """
    total = None
    for count, statistics in enumerate(statistics_of_batches, 1):
        total = statistics if total is None else _merged(total, statistics, weight=1 / count)
    if total is None:
        raise ValueError("population_statistics needs the statistics of at least one batch")
    return total


def _merged(total: Any, new: Any, weight: float) -> Any:
    """The statistics of the batches so far and of one more, which has `weight` of the whole."""
    names, leaves, structure = _flatten(total)
    before, after = dict(zip(names, leaves, strict=True)), dict(zip(names, jax.tree.leaves(new), strict=True))

    def merged(name: tuple[str, ...]) -> Any:
        old, latest = before[name], after[name]
        if name[-1] == "mean":
            return old + weight * (latest - old)
        mean = (*name[:-1], "mean")
        if name[-1] != "var" or mean not in before:
            return latest
        between = weight * (1 - weight) * (after[mean] - before[mean]) ** 2
        return old + weight * (latest - old) + between

    return jax.tree.unflatten(structure, [merged(name) for name in names])


def _flatten(tree: Any) -> tuple[list[tuple[str, ...]], list[Any], Any]:
    """The names on the path to every leaf (without the attribute that an NNX variable keeps its value in), and all."""
    flat, structure = jax.tree_util.tree_flatten_with_path(tree)
    names = [
        tuple(str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey | jax.tree_util.FlattenedIndexKey))
        for path, _ in flat
    ]
    return names, [leaf for _, leaf in flat], structure
