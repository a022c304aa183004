"""Sets of inputs: boxes, l_p balls, and convex sets known by their support functions.

A set stands where an array would: any leaf of a bound function's arguments may be one. Sets are plain pytrees of
arrays without operators, so `jax.vmap` over a batch of sets, `jit` and `grad` need nothing special.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

Array = Any  # jax.Array, numpy array, tracer or Python scalar


class Interval(NamedTuple):
    """A box: all arrays x with lower <= x <= upper, elementwise.

    Attributes:
      lower: the lower ends, any shape.
      upper: the upper ends, the same shape.

    A box with lower > upper or NaN anywhere is invalid; whatever is computed from it becomes (-inf, +inf).
    """

    lower: Array
    upper: Array


@functools.partial(jax.tree_util.register_dataclass, data_fields=["center", "radius", "clip"], meta_fields=["p"])
@dataclasses.dataclass(frozen=True)
class Ball:
    """An l_p ball, {center + radius * d : ||d||_p <= 1}, intersected with the box `clip` if there is one.

    Several inputs that share one radius are one Ball of a flat vector, which the function takes apart. Linear bounds
    then know what the inputs share; intervals do not, once these are apart.

    Attributes:
      center: array of any shape. The norm runs over all of its coordinates: a batch of balls is made by `jax.vmap`.
      radius: array of the same shape. Equal entries are the usual ball, others an ellipsoid (one radius per pixel, or
        a ball of pixel space seen in normalised space).
      p: 1, 2, or any other number >= 1; `math.inf` is a box.
      clip: an Interval, or None.

    Example:
      >>> from jax.flatten_util import ravel_pytree
      >>> inputs = {"pixels": jnp.array([0.5, 0.25]), "gain": jnp.array(2.0)}
      >>> flat, unravel = ravel_pytree(inputs)
      >>> def model(x):
      ...     return jnp.sum(x["pixels"]) + x["gain"]
      >>> joint = jaxbound.Ball(flat, jnp.full_like(flat, 0.1), p=1)
      >>> jaxbound.crown_ibp(lambda z: model(unravel(z)))(joint)  # with a ball for each it would be -+ 0.2
      Interval(lower=Array(2.65, dtype=float32), upper=Array(2.85, dtype=float32))
    """

    center: Array
    radius: Array
    p: float
    clip: Interval | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the inputs."""
        return jnp.shape(self.center)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["parameters", "box"], meta_fields=["support"])
@dataclasses.dataclass(frozen=True)
class SupportSet:
    """A convex set known by its support function, intersected with a box. `jaxbound.support_set` makes one.

    Bounds of linear functions are exact. Intervals (`ibp`) take the set through the first product with weights row by
    row, one value of the support function for each end, if its matrix has at most 2^22 elements; else they start from
    the box. Linear bounds (`crown_ibp`, `crown`, `lbp`) end on the set itself, whatever its size.

    Attributes:
      support: (c, *parameters) -> the largest <c, x> over the set, one number, for any c of the set's shape: a pure JAX
        function. Its derivative with respect to c, away from zero, is a point of the set where <c, x> is largest. (It
        serves gradients of bounds only. A norm of a part of c needs a derivative where that part is zero.)
      parameters: pytrees of arrays. What the set depends on belongs here rather than into the function, which counts as
        a constant: then sets can be made by `vmap`, pass through `jit`, and be differentiated.
      box: a finite Interval around the set.
    """

    support: Callable[..., Array]
    parameters: tuple[Any, ...]
    box: Interval

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the inputs."""
        return jnp.shape(self.box.lower)

    def largest(self, c: Array) -> Array:
        """The largest <c, x>, by the support function."""
        return self.support(c, *self.parameters)


Set = Interval | Ball | SupportSet


def is_set(leaf: Any) -> bool:
    """Whether a pytree leaf is a set; the `is_leaf` of every tree function that looks at arguments."""
    return isinstance(leaf, Interval | Ball | SupportSet)


def element(region: Set) -> Array:
    """An array of the shape and type of a set's elements."""
    if isinstance(region, Interval):
        return region.lower
    return region.center if isinstance(region, Ball) else region.box.lower


def midpoint(box: Interval) -> Array:
    """The centre of a box, (lower + upper) / 2, without overflow."""
    return box.lower / 2 + box.upper / 2


def radius(box: Interval) -> Array:
    """Half the width of a box, (upper - lower) / 2, without overflow."""
    return box.upper / 2 - box.lower / 2


def bounding_box(region: Set) -> Interval:
    """The smallest box known around a set (for a clipped ball: around the ball, intersected with the clip box)."""
    if isinstance(region, Interval):
        return region
    if isinstance(region, SupportSet):
        return region.box
    box = Interval(region.center - region.radius, region.center + region.radius)
    if region.clip is None:
        return box
    # Unlike `tightest` this lets the NaN of an invalid ball win.
    return Interval(jnp.maximum(box.lower, region.clip.lower), jnp.minimum(box.upper, region.clip.upper))


def contains(region: Set, x: Array, *, tolerance: float = 0.0) -> Array:
    """Whether x lies in the set: a scalar bool.

    Args:
      region: the set.
      x: array of the set's shape.
      tolerance: how far outside still counts, in the set's own units (for a ball: a fraction of its radius).

    Raises:
      TypeError: a SupportSet, of which no finite number of values of its support function says whether x is inside.

    Example:
      >>> box = jaxbound.linf_ball(jnp.array([0.5, 0.95]), 0.1)
      >>> bool(jaxbound.contains(box, jnp.array([0.45, 1.0]))), bool(jaxbound.contains(box, jnp.array([0.45, 1.01])))
      (True, False)
    """
    if isinstance(region, Interval):
        return jnp.all((x >= region.lower - tolerance) & (x <= region.upper + tolerance))
    if isinstance(region, SupportSet):
        raise TypeError("a support function does not say which points are in its SupportSet; its `box` contains it")
    fixed = region.radius == 0
    offset = (x - region.center) / jnp.where(fixed, 1, region.radius)
    outside = jnp.any(fixed & (jnp.abs(offset) > tolerance))
    inside = norm(jnp.where(fixed, 0, offset), region.p) <= 1 + tolerance
    return inside & ~outside & (True if region.clip is None else contains(region.clip, x, tolerance=tolerance))


def norm(x: Array, p: float) -> Array:
    """The l_p norm over all coordinates, with a zero (not NaN) gradient at zero."""
    size = jnp.abs(x)
    if p == math.inf:
        return jnp.max(size, initial=0)
    if p == 1:
        return jnp.sum(size)
    power = jnp.sum(size**p) if p != 2 else jnp.sum(size * size)
    return root(power, p)


def root(power: Array, p: float) -> Array:
    """power^(1/p), with a zero gradient at zero. NaN stays NaN: the radius of an invalid ball is not zero."""
    return jnp.where(power == 0, 0, jnp.where(power == 0, 1, power) ** (1 / p))


def dual_exponent(p: float) -> float:
    """q with 1/p + 1/q = 1."""
    return math.inf if p == 1 else 1.0 if p == math.inf else p / (p - 1)


def tightest(first: Any, second: Any) -> Any:
    """The tighter of two valid bounds, elementwise.

    Two Intervals are intersected, two arrays of lower bounds (the result of a `spec=`) take their maximum; pytrees of
    these are walked. Both must bound the same thing; an end that is NaN never wins.

    Example:
      >>> a, b = jaxbound.Interval(jnp.array(0.0), jnp.array(2.0)), jaxbound.Interval(jnp.array(1.0), jnp.array(3.0))
      >>> [float(end) for end in jaxbound.tightest(a, b)]
      [1.0, 2.0]
    """

    def pair(a: Any, b: Any) -> Any:
        if isinstance(a, Interval):
            return Interval(jnp.fmax(a.lower, b.lower), jnp.fmin(a.upper, b.upper))
        return jnp.fmax(a, b)

    return jax.tree.map(pair, first, second, is_leaf=is_set)


def linf_ball(x: Any, eps: Any, clip: tuple[Any, Any] | None = (0.0, 1.0), *, mean: Any = None, std: Any = None) -> Any:
    """The box of all inputs within `eps` of x in every coordinate, as the network sees it.

    {(z - mean) / std : |z - x| <= eps, clip[0] <= z <= clip[1]}, taken elementwise.

    Args:
      x: array, or a pytree of arrays, in pixel space.
      eps: radius in pixel units: a scalar; one per example (its shape is a prefix of x's, e.g. [B]); or one per pixel
        (x's shape, or x's rank with ones).
      clip: lowest and highest pixel value, or None.
      mean, std: if the network's input is normalised, its constants (broadcast against x's trailing axes, e.g. [C]).

    Returns:
      An Interval for every array of x.

    Raises:
      ValueError: eps is negative or NaN, x has a NaN or lies outside of `clip`, or the shapes do not fit.
      TypeError: x has integers.

    Example:
      >>> jaxbound.linf_ball(jnp.array([0.2, 0.95]), 0.1)
      Interval(lower=Array([0.1       , 0.84999996], dtype=float32), upper=Array([0.3, 1. ], dtype=float32))

    References:
      Gowal et al. 2018, arXiv:1810.12715.
    """

    def box(leaf: Array) -> Interval:
        leaf, size = _checked(leaf, eps)
        _refuse_outside(leaf, clip)
        ends = Interval(leaf - size, leaf + size)
        return _normalised(_clipped(ends, clip), mean, std)

    return jax.tree.map(box, x)


def l2_ball(x: Any, eps: Any, clip: tuple[Any, Any] | None = None, *, mean: Any = None, std: Any = None) -> Any:
    """The inputs within Euclidean distance `eps` of x, as the network sees them.

    Args and errors as for `linf_ball`; `eps` and the distance are in pixel units, the norm runs over all coordinates
    of one example (a batch is made by `jax.vmap` over the returned Ball). Clipping is optional: bounds then use the
    better of the ball and its clipped bounding box.

    Example:
      >>> jaxbound.l2_ball(jnp.zeros(3), 0.5).p
      2
    """
    return _ball(x, eps, 2, clip, mean, std)


def l1_ball(x: Any, eps: Any, clip: tuple[Any, Any] | None = None, *, mean: Any = None, std: Any = None) -> Any:
    """The inputs whose absolute differences from x sum to at most `eps`; otherwise as `l2_ball`.

    Example:
      >>> jaxbound.l1_ball(jnp.zeros(3), 0.5).p
      1
    """
    return _ball(x, eps, 1, clip, mean, std)


def _ball(x: Any, eps: Any, p: float, clip: Any, mean: Any, std: Any) -> Any:
    def ball(leaf: Array) -> Ball:
        leaf, size = _checked(leaf, eps)
        limits = _clipped(Interval(jnp.full_like(leaf, -jnp.inf), jnp.full_like(leaf, jnp.inf)), clip)
        center, _ = _normalised(Interval(leaf, leaf), mean, std)
        scaled = jnp.broadcast_to(size if std is None else size / jnp.asarray(std), center.shape)
        return Ball(center, scaled, p, None if clip is None else _normalised(limits, mean, std))

    return jax.tree.map(ball, x)


def _clipped(box: Interval, clip: tuple[Any, Any] | None) -> Interval:
    if clip is None:
        return box
    return Interval(jnp.maximum(box.lower, clip[0]), jnp.minimum(box.upper, clip[1]))


def _refuse_outside(x: Array, clip: tuple[Any, Any] | None) -> None:
    """Raises where clipping is known to leave x out of its own set, as it does with inputs that are normalised."""
    if clip is None or not all(map(_concrete, (x, *clip))):
        return
    pixels, low, high = (np.asarray(value, np.float64) for value in (x, *clip))
    outside = int(((pixels < low - 1e-3 * (high - low)) | (pixels > high + 1e-3 * (high - low))).sum())
    if outside:
        raise ValueError(
            f"{outside} of the {x.size} elements of the input lie outside of clip=({low}, {high}), the range of "
            f"pixels: pass pixels, with mean= and std= if the network's input is normalised, or another clip= "
            f"(None: no range)"
        )


def _normalised(box: Interval, mean: Any, std: Any) -> Interval:
    for name, value in (("mean", mean), ("std", std)):
        if value is not None and jnp.broadcast_shapes(jnp.shape(value), box.lower.shape) != box.lower.shape:
            raise ValueError(f"{name} of shape {jnp.shape(value)} does not fit an input of shape {box.lower.shape}")
    if mean is not None:
        box = Interval(box.lower - jnp.asarray(mean), box.upper - jnp.asarray(mean))
    if std is not None:
        if _concrete(std) and not np.all(np.asarray(std) > 0):
            raise ValueError(f"std must be positive, got {np.asarray(std)}")
        box = Interval(box.lower / jnp.asarray(std), box.upper / jnp.asarray(std))
    return box


def _checked(x: Array, eps: Any) -> tuple[Array, Array]:
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"a set of {x.dtype} values has no meaning: convert the input to floats first (x / 255.0)")
    size = jnp.asarray(eps, x.dtype)
    if _concrete(x) and np.isnan(np.asarray(x)).any():
        raise ValueError(f"the input of shape {x.shape} has NaN in it; a ball around NaN bounds nothing")
    if _concrete(size) and not (np.asarray(size) >= 0).all():
        raise ValueError(f"the radius eps must not be negative or NaN, got {np.asarray(size)}")
    # An invalid radius that is only known when the program runs makes the set invalid, and so every bound infinite.
    size = _aligned(size, x.shape)
    return x, jnp.where(size >= 0, size, jnp.nan)


def _aligned(size: Array, shape: tuple[int, ...]) -> Array:
    """Gives the radius x's rank: a prefix of x's shape (one radius per example) gets trailing ones."""
    if size.ndim < len(shape) and size.shape == shape[: size.ndim]:
        return size.reshape(size.shape + (1,) * (len(shape) - size.ndim))
    if size.ndim == len(shape) and all(n in (1, m) for n, m in zip(size.shape, shape, strict=True)):
        return size
    raise ValueError(
        f"eps of shape {size.shape} does not fit an input of shape {shape}: give a scalar, one per example "
        f"(a prefix of the input's shape), or one per coordinate (the input's shape, or its rank with ones)"
    )


def _concrete(x: Any) -> bool:
    return not isinstance(x, Tracer)
