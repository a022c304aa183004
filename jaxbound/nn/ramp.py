"""ParamRamp: an activation whose upper bend is a trained parameter of each neuron."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxbound.rules.activations import ramp

_COLLECTION, _SLOPE, _TOP = "schedule", "slope", "top"


class ParamRamp(nn.Module):
    """`jaxbound.ramp` with a trained parameter `top` for each neuron: slope * x + (1 - slope) * clip(x, 0, top).

    It begins with top = inf, as the leaky ReLU (the ReLU, at slope 0), and without a gradient for `top`. After some
    epochs of ordinary training `start_ramps` gives every neuron its top. An optimiser that multiplies parameters
    (weight decay) must leave `top` alone.

    Attributes:
      neuron_ndim: how many trailing axes of the input are the index of a neuron: 1 behind a dense layer, 3 behind a
        convolution of images [..., H, W, C]. All axes before them are batch axes.
      slope: in [0, 1]. A value `slope` in the collection "schedule" takes its place, see `ramp_slopes`.
      top_init: (key, shape, dtype) -> initial tops.
      param_dtype: their type.

    Example:
      >>> layer = jaxbound.nn.ParamRamp(slope=0.5)
      >>> layer.apply({"params": {"top": jnp.array([1.0, jnp.inf])}}, jnp.array([[3.0, 3.0], [-1.0, -1.0]]))
      Array([[ 2. ,  3. ],
             [-0.5, -0.5]], dtype=float32)

    References:
      Lyu et al. 2021, CVPR, section 4.
    """

    neuron_ndim: int = 1
    slope: float = 0.0
    top_init: nn.initializers.Initializer = nn.initializers.constant(jnp.inf)
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Any) -> jax.Array:
        """The same shape.

        Raises:
          ValueError: x has fewer axes than a neuron's index.
        """
        batch_ndim = jnp.ndim(x) - self.neuron_ndim
        if batch_ndim < 0:
            raise ValueError(
                f"ParamRamp {'/'.join(self.path)!r} got the shape {jnp.shape(x)}, but the index of a neuron has "
                f"{self.neuron_ndim} axes: set neuron_ndim to 1 behind a dense layer, to 3 behind a convolution of "
                f"images"
            )
        top = self.param(_TOP, self.top_init, jnp.shape(x)[batch_ndim:], self.param_dtype)
        slope = self.get_variable(_COLLECTION, _SLOPE) if self.has_variable(_COLLECTION, _SLOPE) else self.slope
        return ramp(x, top, slope)


def ramp_slopes(params: Mapping[str, Any], slope: Any) -> dict[str, Any]:
    """The collection "schedule" that gives every ParamRamp of a model this slope.

    Args:
      params: the model's parameters.
      slope: in [0, 1]; it may be traced, so a training step can compute it from its number.

    Returns:
      What belongs into the variables as "schedule", a tree of scalars.

    Example:
      >>> variables = {"params": {"ParamRamp_0": {"top": jnp.ones(2)}}}
      >>> variables["schedule"] = jaxbound.nn.ramp_slopes(variables["params"], 0.01)
      >>> variables["schedule"]
      {'ParamRamp_0': {'slope': Array(0.01, dtype=float32)}}
    """
    slopes: dict[str, Any] = {}
    for name, part in params.items():
        if isinstance(part, Mapping):
            if inner := ramp_slopes(part, slope):
                slopes[name] = inner
        elif name == _TOP:
            slopes[_SLOPE] = jnp.asarray(slope, part.dtype)
    return slopes


def start_ramps(
    model_apply: Callable[[Any, Any], Any],
    variables: Mapping[str, Any],
    batches: Iterable[Any],
    *,
    minimum: float = 1e-4,
) -> dict[str, Any]:
    """Turns the ramps on: gives every neuron of a ParamRamp its mean activation as top.

    Args:
      model_apply: (variables, batch) -> anything; a function around Flax modules that is not itself under `jit`.
      variables: of the model, with "params".
      batches: of inputs, leading axis B: usually the training set, once. Each example counts the same.
      minimum: of the tops.

    Returns:
      The variables with new tops, the mean over examples (and over all other batch axes) of each ParamRamp's output,
      negative values included.

    Raises:
      ValueError: there is no batch, or no ParamRamp was called.

    Example:
      >>> layer = jaxbound.nn.ParamRamp()
      >>> variables = layer.init(jax.random.key(0), jnp.zeros(2))
      >>> jaxbound.nn.start_ramps(layer.apply, variables, [jnp.array([[1.0, -1.0], [2.0, 4.0]])])
      {'params': {'top': Array([1.5, 2. ], dtype=float32)}}
    """

    @jax.jit
    def update(means: Any, variables: Any, batch: Any, weight: Any) -> Any:
        found = _mean_activations(model_apply, variables, batch)
        return {path: (1 - weight) * means.get(path, 0) + weight * mean for path, mean in found.items()}

    means: dict[tuple[str, ...], Any] = {}
    count = 0
    for batch in batches:
        count += len(batch)
        means = update(means, variables, batch, len(batch) / count)
    if not means:
        reason = "no ParamRamp was called: is model_apply under jit?" if count else "there is no batch"
        raise ValueError(f"start_ramps found no mean activation, because {reason}")

    def started(path: tuple[str, ...], top: Any) -> Any:
        return jnp.maximum(means[path], minimum).astype(top.dtype) if path in means else top

    return {**variables, "params": _map_tops(started, variables["params"])}


def clamp_ramps(params: Any, minimum: float = 1e-4) -> Any:
    """The parameters with every ParamRamp's tops at least `minimum`, to be used after each step of an optimiser.

    Example:
      >>> jaxbound.nn.clamp_ramps({"ParamRamp_0": {"top": jnp.array([-1.0, 2.0, jnp.inf])}}, minimum=0.5)
      {'ParamRamp_0': {'top': Array([0.5, 2. , inf], dtype=float32)}}
    """
    return _map_tops(lambda _, top: jnp.maximum(top, minimum), params)


def perturb_ramps(key: jax.Array, params: Any, scale: float = 0.01) -> Any:
    """Adds Gaussian noise to every ParamRamp's tops, against overfitting; `clamp_ramps` follows.

    Args:
      key: of the noise.
      params: of the model.
      scale: the noise's standard deviation, in units of the mean top of the layer.

    Returns:
      The parameters; infinite tops are as before.

    Example:
      >>> params = {"ParamRamp_0": {"top": jnp.array([1.0, jnp.inf])}}
      >>> noisy = jaxbound.nn.perturb_ramps(jax.random.key(0), params)["ParamRamp_0"]["top"]
      >>> bool(0 < abs(noisy[0] - 1) < 0.1), float(noisy[1])
      (True, inf)
    """
    keys = iter(jax.random.split(key, max(1, len(jax.tree.leaves(params)))))

    def noisy(_: Any, top: Any) -> Any:
        finite = jnp.isfinite(top)
        total = jnp.sum(jnp.where(finite, top, 0)) / jnp.maximum(jnp.sum(finite), 1)
        return top + jnp.where(finite, scale * total * jax.random.normal(next(keys), top.shape, top.dtype), 0)

    return _map_tops(noisy, params)


def _map_tops(fn: Callable[[tuple[str, ...], Any], Any], params: Any) -> Any:
    """Applies (path of the module, top) -> top to the parameters that are tops."""

    def each(path: tuple[Any, ...], leaf: Any) -> Any:
        names = tuple(str(getattr(entry, "key", entry)) for entry in path)
        return fn(names[:-1], leaf) if names[-1:] == (_TOP,) else leaf

    return jax.tree_util.tree_map_with_path(each, params)


def _mean_activations(model_apply: Callable, variables: Any, batch: Any) -> dict[tuple[str, ...], Any]:
    """The mean output of every ParamRamp over all batch axes, by the path of the module."""
    outputs: dict[tuple[str, ...], list[Any]] = {}

    def interceptor(call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        output = call(*args, **kwargs)
        if isinstance(context.module, ParamRamp) and context.method_name == "__call__":
            neurons = jnp.shape(output)[jnp.ndim(output) - context.module.neuron_ndim :]
            outputs.setdefault(context.module.path, []).append(output.reshape(-1, *neurons))
        return output

    with nn.intercept_methods(interceptor):
        model_apply(variables, batch)
    return {path: jnp.mean(jnp.concatenate(calls), axis=0) for path, calls in outputs.items()}
