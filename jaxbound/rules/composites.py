"""Functions that arrive as several primitives: how they are computed, and what stands for them in a bound.

Each `Composite` pairs a reference, an ordinary JAX function, with one that is equal to it and made of calls that have
rules of their own. Functions of `jax.nn` are their own reference, so they follow its releases; Flax's normalisation
layers are written here as Flax computes them.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxbound.rules.activations import wavy, whole
from jaxbound.rules.normalization import layer_norm, rms_norm
from jaxbound.rules.softmax import log_softmax, logsumexp, softmax
from jaxbound.sets import Array


class Sum(NamedTuple):
    """A sum in the program, which tells the axes of what is recognised.

    Attributes:
      axes, shape: it sums an array of this shape over these axes.
      mapped: the axis of x over which `jax.vmap` maps, if it does; it is the first one of the sum and of the result.
    """

    axes: tuple[int, ...]
    shape: tuple[int, ...]
    mapped: int | None = None


class Composite(NamedTuple):
    """A function that is recognised by its primitives.

    Attributes:
      key: a primitive that it has and few other functions have.
      reference, standing: (x, *operands, over: Sum) -> result; without `reduces` they take no sum.
      operands: what they take besides x: "eps", a number, and "scale", a factor for each feature (the last axis).
      reduces: whether they reduce axes.
      keeps_shape: whether the result has the shape of x; else it lacks the axes of the sum.
    """

    key: str
    reference: Callable[..., Array]
    standing: Callable[..., Array]
    operands: tuple[str, ...] = ()
    reduces: bool = True
    keeps_shape: bool = True


def mapped(fn: Callable[..., Array], over: Sum) -> Callable[..., Array]:
    """A reference with its sum, under `jax.vmap` if the sum says so. That may transpose arrays halfway through."""
    if over.mapped is None:
        return functools.partial(fn, over=over)
    inner = functools.partial(fn, over=Sum(tuple(axis - 1 for axis in over.axes), over.shape[1:]))
    return lambda x, *operands: jax.vmap(lambda part: inner(part, *operands), in_axes=over.mapped)(x)


def in_front(fn: Callable[..., Array], over: Sum) -> Callable[..., Array]:
    """What stands for a reference, on x with the mapped axis as the first one."""
    axis = over.mapped
    if axis is None:
        return functools.partial(fn, over=over)
    return lambda x, *operands: fn(jnp.moveaxis(x, axis, 0), *operands, over=over._replace(mapped=None))


def rows(x: Array, over: Sum) -> Array:
    """[..., n] with the axes of the sum as one, the last."""
    x = x.reshape(over.shape)
    kept = [axis for axis in range(x.ndim) if axis not in over.axes]
    return jnp.transpose(x, (*kept, *over.axes)).reshape(*(x.shape[axis] for axis in kept), -1)


def _along(fn: Callable[..., Array]) -> Callable[..., Array]:
    """A function of rows as one of the axes of a sum."""

    def standing(x: Array, *operands: Array, over: Sum) -> Array:
        order = [axis for axis in range(len(over.shape)) if axis not in over.axes] + list(over.axes)
        result = fn(rows(x, over), *operands).reshape([over.shape[axis] for axis in order])
        return jnp.transpose(result, [order.index(axis) for axis in range(len(order))]).reshape(x.shape)

    return standing


# Softmax and its relatives.


def _reducing(fn: Callable[..., Array], **options: Any) -> Callable[..., Array]:
    return lambda x, over: fn(x, axis=over.axes, **options)


def _kept(x: Array, over: Sum) -> Array:
    return logsumexp(rows(x, over)).reshape([1 if k in over.axes else n for k, n in enumerate(over.shape)])


_SOFTMAX = (
    Composite("exp", _reducing(jax.nn.softmax), _along(softmax)),
    Composite("log", _reducing(jax.nn.log_softmax), _along(log_softmax)),
    Composite("log", _reducing(jax.nn.logsumexp), lambda x, over: logsumexp(rows(x, over)), keeps_shape=False),
    Composite("log", _reducing(jax.nn.logsumexp, keepdims=True), _kept, keeps_shape=False),
)


# GELU: minimum and inflections to double precision, by bisection of the derivatives with 50 digits.

_GELU = tuple(
    Composite(key, fn, whole(fn, name, wavy(fn, minimum, (-inflection, inflection))), reduces=False)
    for (key, name, minimum, inflection), fn in (
        (("erfc", "gelu", -0.7517915246935645, math.sqrt(2)), functools.partial(jax.nn.gelu, approximate=False)),
        (
            ("tanh", "gelu_tanh", -0.7524614220710163, 1.4185040087908283),
            functools.partial(jax.nn.gelu, approximate=True),
        ),
    )
)


# Flax's layers: mean and variance, then (x - mean) * (rsqrt(var + eps) * scale).

Statistics = Callable[[Array, tuple[int, ...]], tuple[Array, Array]]


def _fast(x: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    mean = jnp.mean(x, axes)
    return mean, jnp.maximum(0.0, jnp.mean(x * x, axes) - mean * mean)


def _exact(x: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    mean = jnp.mean(x, axes)
    return mean, jnp.mean(jnp.square(x - jnp.expand_dims(mean, axes)), axes)


def _around_zero(x: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    var = jnp.mean(x * x, axes)
    return jnp.zeros_like(var), var


def _flax(statistics: Statistics, x: Array, eps: Array, scale: Array | None = None, *, over: Sum) -> Array:
    mean, var = statistics(x.reshape(over.shape), over.axes)
    axes = over.axes
    if over.shape != x.shape:  # groups of features, the last axis
        mean, var = (jnp.repeat(part, over.shape[-1], axis=-1) for part in (mean, var))
        axes = axes[:-1]
    mean, var = (jnp.expand_dims(part, axes) for part in (mean, var))
    factor = jax.lax.rsqrt(var + eps)
    return (x - mean) * (factor if scale is None else factor * scale)


def _scaled(normalize: Callable[..., Array]) -> Callable[..., Array]:
    def standing(x: Array, eps: Array, scale: Array | None = None, *, over: Sum) -> Array:
        normalized = _along(normalize)(x, eps, over=over)
        return normalized if scale is None else normalized * scale

    return standing


_FLAX = tuple(
    Composite("rsqrt", functools.partial(_flax, statistics), _scaled(normalize), operands)
    for statistics, normalize in ((_fast, layer_norm), (_exact, layer_norm), (_around_zero, rms_norm))
    for operands in (("eps", "scale"), ("eps",))
)


# What is written by hand: rows, or what is left of them without their mean, over the root of a mean square.

Power = Callable[..., Array]  # (x, y, axis=, keepdims=) -> of the row x, or of y, which is x without its mean


def _divided(power: Power, x: Array, eps: Array | None = None, *, over: Sum, form: tuple[bool, bool, bool]) -> Array:
    center, keepdims, by_rsqrt = form
    y = x - jnp.mean(x, over.axes, keepdims=keepdims) if center else x
    size = power(x, y, axis=over.axes, keepdims=keepdims)
    size = size if eps is None else size + eps
    return y * jax.lax.rsqrt(size) if by_rsqrt else y / jnp.sqrt(size)


def _sum_of_squares(x: Array, y: Array, **options: Any) -> Array:
    return jnp.sum(y * y, **options)


def _mean_of_squares(x: Array, y: Array, **options: Any) -> Array:
    return jnp.mean(y * y, **options)


def _variance(x: Array, y: Array, **options: Any) -> Array:
    return jnp.var(x, **options)


def _rms(x: Array, eps: Array | float = 0.0) -> Array:
    return rms_norm(x, jnp.asarray(eps, x.dtype))


def _unit(x: Array, eps: Array | float = 0.0) -> Array:
    return _rms(x, eps / x.shape[-1]) / math.sqrt(x.shape[-1])


def _layer(x: Array, eps: Array | float = 0.0) -> Array:
    return layer_norm(x, jnp.asarray(eps, x.dtype))


def _by_hand() -> Iterator[Composite]:
    kinds = (
        (_sum_of_squares, False, _unit),
        (_mean_of_squares, False, _rms),
        (_mean_of_squares, True, _layer),
        (_variance, True, _layer),
    )
    for (power, center, normalize), keepdims, by_rsqrt in itertools.product(kinds, (True, False), (True, False)):
        reference = functools.partial(_divided, power, form=(center, keepdims, by_rsqrt))
        for operands in (("eps",), ()):
            yield Composite("rsqrt" if by_rsqrt else "sqrt", reference, _along(normalize), operands)


def _standardize(x: Array, eps: Array, *, over: Sum) -> Array:
    return jax.nn.standardize(x, axis=over.axes, epsilon=eps)


COMPOSITES = (
    *_SOFTMAX,
    *_GELU,
    *_FLAX,
    Composite("rsqrt", _standardize, _along(_layer), ("eps",)),
    *_by_hand(),
)
