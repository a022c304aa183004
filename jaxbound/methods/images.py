"""Support sets through linear equations: the largest <c, A x + b> over a set is its largest <A^T c, x>, plus <c, b>."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxbound.methods.rows import varying
from jaxbound.program import Equation
from jaxbound.sets import Array, Interval, SupportSet, element
from jaxbound.support import box_around

_LARGEST_MATRIX = 2**22  # elements; a linear function with a larger matrix takes the box, not the set


def images(equation: Equation, operands: Sequence[Any], boxes: Sequence[Interval]) -> Sequence[Any]:
    """The results of a linear equation with a SupportSet among its operands, all others constants, within boxes."""
    if equation.name == "stop_gradient":  # to `vjp` it is zero
        return boxes
    (k,) = (k for k, x in enumerate(operands) if isinstance(x, SupportSet))

    def result(number: int, x: Array) -> Array:
        return equation.apply(*operands[:k], x, *operands[k + 1 :])[number]

    return [image(operands[k], functools.partial(result, number), box) for number, box in enumerate(boxes)]


def image(region: SupportSet, affine: Callable[[Array], Array], box: Interval) -> SupportSet:
    """A set's image under an affine function, within a box."""

    def support(c: Array) -> Array:
        offset, pullback = jax.vjp(affine, varying(jnp.zeros_like(element(region)), region))
        (direction,) = pullback(varying(c, offset))
        return region.largest(direction) + jnp.sum(c * offset)

    return SupportSet(support, (), box)


def image_box(region: SupportSet, linear: Callable[[Array], Array], box: Interval) -> Interval:
    """The box of a set's image under a linear function, row by row where that is cheap; else the box given."""
    kind = jax.ShapeDtypeStruct(box.lower.shape, box.lower.dtype)
    if math.prod(kind.shape) * element(region).size > _LARGEST_MATRIX:
        return box
    found = box_around(image(region, linear, box).support, kind, ())
    # Unlike `tightest` this lets the NaN of an invalid set win.
    return Interval(jnp.maximum(box.lower, found.lower), jnp.minimum(box.upper, found.upper))
