"""Sums, products, quotients and contractions."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxbound.rules.convolution import convolve, convolve_to_transpose
from jaxbound.rules.curves import convex
from jaxbound.rules.discrete import as_box, integers, negated, where_known
from jaxbound.rules.registry import Coefficient, Linear, Nonlinear, register
from jaxbound.rules.relaxation import Affine, Freedom, Relaxation, choose, constant, line
from jaxbound.sets import Array, Interval, midpoint, radius


def _sum(x: Any, y: Any, **_: Any) -> Interval:
    x, y = as_box(x), as_box(y)
    return Interval(x.lower + y.lower, x.upper + y.upper)


def _difference(x: Any, y: Any, **_: Any) -> Interval:
    return _sum(x, negated(as_box(y)))


register("neg", Linear((0,), signs=(-1,), carries=True), integers(negated))
register("add", Linear(carries=True), integers(_sum))
register("add_any", Linear(carries=True))
register("sub", Linear(signs=(1, -1), carries=True), integers(_difference))


# Products of two sets: McCormick's planes.


def corners(x: Interval, y: Interval) -> Interval:
    """The exact range of x * y."""
    ends = [a * b for a in x for b in y]
    return Interval(jnp.minimum(*_pairs(jnp.minimum, ends)), jnp.maximum(*_pairs(jnp.maximum, ends)))


def _pairs(fn: Callable, ends: list[Array]) -> tuple[Array, Array]:
    return fn(ends[0], ends[1]), fn(ends[2], ends[3])


def mccormick(x: Interval, y: Interval, free: Freedom | None = None) -> Relaxation:
    """Planes around x * y, one below and one above.

    (x - lx)(y - ly) >= 0 gives x y >= ly x + lx y - lx ly; (ux - x)(y - ly) >= 0 gives x y <= ly x + ux y - ux ly. The
    other two corners give planes that are as good (equal at the centre); `free` is their weight.
    """
    below, above = (None, None) if free is None else ((part, part) for part in free)
    return Relaxation(_plane(jnp.multiply, x, y, below), _plane(jnp.multiply, x[::-1], y, above))


def _plane(op: Callable, x: tuple[Array, Array], y: tuple[Array, Array], weights: tuple[Array, Array] | None) -> Affine:
    """The plane that touches a product at the corner (x[0], y[0]), mixed with that at (x[1], y[1]).

    The weights of the second one have the layouts of x and of y; None for zero.
    """
    (first, second), (left, right) = x, y
    if weights is None:
        return Affine((left, first), -op(first, left))
    of_x, of_y = weights
    slopes = (left + of_y * (right - left), first + of_x * (second - first))
    return Affine(slopes, -op((1 - of_x) * first, left) - op(of_x * second, right))


def _product(x: Any, y: Any, **_: Any) -> Interval:
    return corners(as_box(x), as_box(y))


def _relax_product(x: Interval, y: Interval, free: Freedom | None = None, **_: Any) -> Relaxation:
    return mccormick(x, y, free)


register("mul", Coefficient(carries=True), Nonlinear(_product, _relax_product), integers(_product))


# Quotients: a set over a constant is linear, everything else goes through 1 / y.


def reciprocal_interval(y: Interval, **_: Any) -> Interval:
    """The range of 1 / y; (-inf, inf) where y can be zero, NaN where y is."""
    usable = (y.lower > 0) | (y.upper < 0)
    low, high = (jnp.where(usable, end, 1) for end in y)
    unknown = jnp.where((y.lower != y.lower) | (y.upper != y.upper), jnp.nan, jnp.inf)
    return Interval(jnp.where(usable, 1 / high, -unknown), jnp.where(usable, 1 / low, unknown))


def relax_reciprocal(y: Interval, free: Freedom | None = None) -> Relaxation:
    """Chord and tangent of 1 / y where y keeps its sign, infinite elsewhere."""
    positive, negative = y.lower > 0, y.upper < 0
    # The mirror image of a negative interval is positive, and 1 / y = -(1 / -y).
    size = Interval(*(jnp.where(positive, a, jnp.where(negative, -b, 1)) for a, b in (y, y[::-1])))
    lines = convex(size, lambda v: 1 / v, lambda v: -1 / (v * v), free)
    below, above = lines
    mirrored = Relaxation(line(above.slopes[0], -above.intercept), line(below.slopes[0], -below.intercept))
    infinite = constant(y, jnp.full_like(y.lower, -jnp.inf), jnp.full_like(y.lower, jnp.inf))
    return choose(positive | negative, choose(positive, lines, mirrored), infinite)


def _quotient(x: Any, y: Interval, **_: Any) -> Interval:
    """The exact range of x / y: by the ends of y where it keeps its sign, as 1 / y may be too small for its type."""
    usable = (y.lower > 0) | (y.upper < 0)
    safe = Interval(*(jnp.where(usable, end, 1) for end in y))
    ends = [a / b for a in as_box(x) for b in safe]
    exact = Interval(jnp.minimum(*_pairs(jnp.minimum, ends)), jnp.maximum(*_pairs(jnp.maximum, ends)))
    rest = corners(as_box(x), reciprocal_interval(y))
    return Interval(*(jnp.where(usable, end, other) for end, other in zip(exact, rest, strict=True)))


def _relax_quotient(x: Any, y: Interval, free: Freedom | None = None, **_: Any) -> Relaxation:
    if not isinstance(x, Interval):  # a constant over a set: its sign decides which line is which
        y = Interval(*(jnp.broadcast_to(end, jnp.broadcast_shapes(end.shape, jnp.shape(x))) for end in y))
        lines = relax_reciprocal(y, free)
        sides = choose(jnp.broadcast_to(x >= 0, y.lower.shape), lines, Relaxation(lines.upper, lines.lower))
        return jax.tree.map(lambda part: x * part, sides)
    planes, lines = mccormick(x, reciprocal_interval(y), free), relax_reciprocal(y)
    return Relaxation(_substituted(planes.lower, lines), _substituted(planes.upper, Relaxation(lines[1], lines[0])))


def _substituted(plane: Affine, lines: Relaxation) -> Affine:
    """a x + b r + c with r replaced by its first line where b >= 0, by its second elsewhere."""
    a, b = plane.slopes
    slope, intercept = (
        jnp.where(b >= 0, p, q) for p, q in zip(jax.tree.leaves(lines.lower), jax.tree.leaves(lines.upper), strict=True)
    )
    return Affine((a, b * slope), b * intercept + plane.intercept)


def _integer_quotient(x: Any, y: Array, **_: Any) -> Interval:
    """Towards zero, by a constant; by zero it is unknown."""
    ends = [jax.lax.div(end, y) for end in as_box(x)]
    return where_known(y != 0, Interval(jnp.minimum(*ends), jnp.maximum(*ends)))


register(
    "div", Coefficient((0,), carries=True), Nonlinear(_quotient, _relax_quotient), integers(_integer_quotient, (0,))
)


# Contractions: linear with one set; with two, McCormick for every product.

_LARGEST_TABLE = 2**24  # elements; beyond it the products of a contraction are not written out


def _centre_radius(op: Callable, x: Interval, y: Interval) -> Interval:
    mx, rx, my, ry = midpoint(x), radius(x), midpoint(y), radius(y)
    centre = op(mx, my)
    width = op(jnp.abs(mx), ry) + op(rx, jnp.abs(my) + ry)
    return Interval(centre - width, centre + width)


def _dot(x: Array, y: Array, *, dimension_numbers: Any, precision: Any, **params: Any) -> Array:
    preferred = params.get("preferred_element_type")
    return jax.lax.dot_general(x, y, dimension_numbers, precision=precision, preferred_element_type=preferred)


def _dot_interval(x: Interval, y: Interval, **params: Any) -> Interval:
    """The corners' products summed where they fit in memory, centre and radius (looser) elsewhere."""
    shape = jax.eval_shape(lambda a, b: _dot(a, b, **params), x.lower, y.lower).shape
    (contract_x, contract_y), (batch_x, batch_y) = params["dimension_numbers"]
    if not _fits(shape, x.lower.shape, contract_x):
        return _centre_radius(lambda a, b: _dot(a, b, **params), x, y)
    left = Interval(*(_left(end, batch_x, contract_x) for end in x))
    right = Interval(*(_right(end, batch_y, contract_y) for end in y))
    return Interval(*(jnp.sum(end, axis=2).reshape(shape) for end in corners(left, right)))


def _dot_peak(x: Array, y: Array, **params: Any) -> Array | None:
    shape = jax.eval_shape(lambda a, b: _dot(a, b, **params), x, y).shape
    (contract_x, contract_y), (batch_x, batch_y) = params["dimension_numbers"]
    if not _fits(shape, x.shape, contract_x):
        return None
    return jnp.max(_left(x, batch_x, contract_x) * _right(y, batch_y, contract_y), axis=2).reshape(shape)


def _fits(result: Sequence[int], shape: Sequence[int], contracted: Sequence[int]) -> bool:
    """Whether all products of a contraction may be written out."""
    return math.prod(result) * math.prod(shape[axis] for axis in contracted) <= _LARGEST_TABLE


def _left(x: Array, batch: Sequence[int], contract: Sequence[int]) -> Array:
    """[batch, free, contracted, 1], each flattened: times `_right` all products of a contraction."""
    free = [axis for axis in range(x.ndim) if axis not in (*batch, *contract)]
    return _flattened(x, (batch, free, contract))[..., None]


def _right(x: Array, batch: Sequence[int], contract: Sequence[int]) -> Array:
    """[batch, 1, contracted, free], each flattened."""
    free = [axis for axis in range(x.ndim) if axis not in (*batch, *contract)]
    return _flattened(x, (batch, contract, free))[:, None]


def _flattened(x: Array, groups: Sequence[Sequence[int]]) -> Array:
    """Merges each group of axes into one."""
    sizes = [math.prod(x.shape[axis] for axis in axes) for axes in groups]
    return jnp.transpose(x, [axis for axes in groups for axis in axes]).reshape(sizes)


def _conv_peak(x: Array, kernel: Array, **params: Any) -> Array:
    """One entry of the window at a time, so that the memory is that of a few results."""
    features = params["dimension_numbers"].rhs_spec[0]
    shape = tuple(1 if axis == features else size for axis, size in enumerate(kernel.shape))
    size = math.prod(shape)

    def entry(index: Array) -> Array:
        return convolve(x, kernel * jax.nn.one_hot(index, size, dtype=kernel.dtype).reshape(shape), **params)

    first = entry(jnp.zeros((), int))
    peak, _ = jax.lax.scan(lambda most, k: (jnp.maximum(most, entry(k)), None), first, jnp.arange(1, size))
    return peak


def _conv_interval(x: Interval, y: Interval, **params: Any) -> Interval:
    return _centre_radius(lambda a, b: convolve(a, b, **params), x, y)


def _contraction(op: Callable, interval: Callable, *, shape: Callable, axes: Callable) -> Nonlinear:
    """The rule of a contraction of two sets: one pair of planes for all products with the same contracted index.

    Args:
      op: the contraction.
      interval: its interval.
      shape: (x, y, **params) -> the shape of the planes' weights.
      axes: (**params) -> where the weights' axes are in x, and in y.
    """

    def relax(x: Interval, y: Interval, free: Freedom | None = None, **params: Any) -> Relaxation:
        def plane(ends: tuple[Array, Array], weight: Array | None) -> Affine:
            if weight is None:
                return _plane(functools.partial(op, **params), ends, y, None)
            of_x, of_y = axes(**params)
            weights = _laid_out(weight, of_x, x.lower.ndim), _laid_out(weight, of_y, y.lower.ndim)
            return _plane(functools.partial(op, **params), ends, y, weights)

        below, above = (None, None) if free is None else free
        return Relaxation(plane(x, below), plane(x[::-1], above))

    def evaluate(slopes: tuple[Array, Array], x: Array, y: Array, **params: Any) -> Array:
        with_x, with_y = slopes
        return op(x, with_x, **params) + op(with_y, y, **params)

    return Nonlinear(interval, relax, evaluate=evaluate, freedom=shape)


def _laid_out(weight: Array, axes: Sequence[int], ndim: int) -> Array:
    """The array with its axes where an operand has them, of size 1 elsewhere."""
    ordered = jnp.transpose(weight, sorted(range(len(axes)), key=lambda k: axes[k]))
    return jnp.expand_dims(ordered, [axis for axis in range(ndim) if axis not in axes])


def _dot_axes(*, dimension_numbers: Any, **_: Any) -> tuple[Sequence[int], Sequence[int]]:
    """Batch and contracted axes of each operand."""
    (contract_x, contract_y), (batch_x, batch_y) = dimension_numbers
    return (*batch_x, *contract_x), (*batch_y, *contract_y)


def _dot_weights(x: Interval, y: Interval, **params: Any) -> tuple[int, ...]:
    del y
    return tuple(x.lower.shape[axis] for axis in _dot_axes(**params)[0])


register(
    "dot_general", Coefficient(peak=_dot_peak), _contraction(_dot, _dot_interval, shape=_dot_weights, axes=_dot_axes)
)
register(
    "conv_general_dilated",
    Coefficient(apply=convolve, apply_to_transpose=convolve_to_transpose, peak=_conv_peak),
    _contraction(convolve, _conv_interval, shape=lambda *_, **__: (), axes=lambda **_: ((), ())),
)
