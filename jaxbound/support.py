"""Convex sets by their support functions: one's own, and sentences with words replaced."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxbound.sets import Array, Interval, SupportSet

_LARGEST_BLOCK = 2**22  # elements of the directions that look for a box at once


def support_set(
    support: Callable[..., Array], *parameters: Any, shape: tuple[int, ...] | None = None, box: Interval | None = None
) -> SupportSet:
    """The convex set whose support function is given: the set is all x with <c, x> <= support(c) for every c.

    A support function says all about a closed convex set, and for many sets it is one line: of a ball it is
    <c, center> + radius * (dual norm of c), of the hull of some points the largest <c, point>; of a sum of sets it is
    the sum of their support functions, of the image A x it is support(A^T c). Of a set that is not convex it makes the
    hull, whose linear bounds are the same.

    Args:
      support: (c, *parameters) -> a scalar, the largest <c, x> over the set, for c of the set's shape, as `SupportSet`
        says it. Its rounding is that of the bounds: ask for `precision=jax.lax.Precision.HIGHEST` in matrix products.
        `jaxbound.testing.check_support` samples whether it can be one.
      *parameters: pytrees of arrays that the function takes.
      shape: of x; only needed without a box.
      box: a finite Interval that contains the set. Without one it is found from the support function's values at the
        positive and the negative unit vectors: 2 evaluations for each element of x.

    Returns:
      A SupportSet. A batch of them is made by `jax.vmap`, of a function that maps arrays to the set.

    Raises:
      ValueError: the support function does not return a scalar; neither box nor shape is given, or they differ.
      TypeError: it does not return a floating point number, or the box is no Interval.

    Example:
      >>> def disk_and_segment(c, center, radius, step):  # all center + radius * d + t * step, |d| <= 1, |t| <= 1
      ...     return jnp.sum(c * center) + radius * jnp.sqrt(jnp.sum(c * c)) + jnp.abs(jnp.sum(c * step))
      >>> region = jaxbound.support_set(disk_and_segment, jnp.zeros(2), 1.0, jnp.array([1.0, 2.0]), shape=(2,))
      >>> region.box
      Interval(lower=Array([-2., -3.], dtype=float32), upper=Array([2., 3.], dtype=float32))
      >>> jaxbound.crown_ibp(lambda x: 2 * x[0] - x[1])(region)  # the box alone has -+ 7
      Interval(lower=Array(-2.236068, dtype=float32), upper=Array(2.236068, dtype=float32))
    """
    if box is None:
        if shape is None:
            raise ValueError("a support_set needs the shape of its elements, or a box around it")
        dtypes = [leaf.dtype for leaf in map(jnp.asarray, jax.tree.leaves(parameters))]
        kind = jax.ShapeDtypeStruct(tuple(shape), jnp.result_type(float, *dtypes))
        _check_value(support, kind, parameters)
        return SupportSet(support, parameters, box_around(support, kind, parameters))
    if not isinstance(box, Interval):
        raise TypeError(f"the box around a support_set must be a jaxbound.Interval, got {type(box).__name__}")
    if shape is not None and jnp.shape(box.lower) != tuple(shape):
        raise ValueError(f"the box around a support_set has the shape {jnp.shape(box.lower)}, not {tuple(shape)}")
    return checked_support(SupportSet(support, parameters, Interval(*map(jnp.asarray, box))))


def checked_support(region: SupportSet) -> SupportSet:
    """The same set.

    Raises:
      ValueError, TypeError: its support function does not return a scalar of floating point.
    """
    ends = [jnp.asarray(end) for end in region.box]
    _check_value(region.support, jax.ShapeDtypeStruct(ends[0].shape, jnp.result_type(*ends)), region.parameters)
    return region


def _check_value(support: Callable[..., Array], kind: jax.ShapeDtypeStruct, parameters: tuple[Any, ...]) -> None:
    try:
        value = jax.eval_shape(support, kind, *parameters)
    except Exception as error:
        shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(parameters)]
        error.add_note(
            f"jaxbound called the support function with c of shape {kind.shape} and parameters of shapes {shapes}. A "
            f"batch of sets is mapped by jax.vmap."
        )
        raise
    shape = getattr(value, "shape", None)
    if shape != ():
        raise ValueError(
            f"a support function must return one number, the largest <c, x> over the set; for c of shape {kind.shape} "
            f"it returns {'a pytree' if shape is None else f'the shape {shape}'}. Sum over all elements of x."
        )
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise TypeError(f"a support function must return a floating point number, got {value.dtype}")


def box_around(support: Callable[..., Array], kind: jax.ShapeDtypeStruct, parameters: tuple[Any, ...]) -> Interval:
    """The box of a support function's set, from its values at all unit vectors; blocks of them bound the memory."""
    size = math.prod(kind.shape)

    def ends(index: Array) -> Interval:
        unit = jax.nn.one_hot(index, size, dtype=kind.dtype).reshape(kind.shape)
        return Interval(-support(-unit, *parameters), support(unit, *parameters))

    found = jax.lax.map(ends, jnp.arange(size), batch_size=max(1, min(size, _LARGEST_BLOCK // max(1, size))))
    return Interval(*(end.astype(kind.dtype).reshape(kind.shape) for end in found))


def substitutions(
    embeddings: Array, alternatives: Array, mask: Array | None = None, *, budget: Any = None
) -> SupportSet:
    """The embedded sentences in which up to `budget` tokens are replaced by one of their alternatives.

    It is the convex hull of these finitely many sentences, whose support function is

        <c, embeddings> + the sum over the `budget` largest of max(0, max_k <c_l, alternatives_lk - embeddings_l>),

    so the bounds of a linear function are those of an enumeration of all sentences. Where the network begins with
    layers that map tokens one by one, it is tighter, and cheap, to put these before the set, even if they are
    nonlinear, and only the rest into the bounded function: `substitutions(layer(embeddings), layer(alternatives))`.

    Args:
      embeddings: [L, D], a vector for each token of the sentence; [*B, L, D] for a batch.
      alternatives: [L, K, D], the vectors of what each token may be replaced by; [*B, L, K, D] for a batch.
      mask: booleans [L, K] (or [*B, L, K]), which alternatives there are; the others are padding, of any value (but a
        layer before the set has no derivative at NaN). None if there are all.
      budget: how many tokens may be replaced at once: an integer, or [*B] of them. None for any number.

    Returns:
      A SupportSet of [L, D]; leading axes of the arguments lead in every array of it, to be mapped by `jax.vmap`.

    Raises:
      ValueError: shapes that do not fit each other, or a negative budget. A negative budget that is traced cannot
        raise: it makes the bounds infinite.
      TypeError: embeddings that are not floating point, a mask that is not boolean, or a budget that is no integer.

    Example:
      >>> table = jnp.array([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])  # four words
      >>> sentence, alternatives = jnp.array([1, 2]), jnp.array([[0, 2], [3, 0]])
      >>> mask = jnp.array([[True, True], [True, False]])  # the second word has one alternative
      >>> def model(x):
      ...     return jnp.sum(x)  # at first 1 + 2
      >>> for budget in (0, 1, 2):
      ...     region = jaxbound.substitutions(table[sentence], table[alternatives], mask, budget=budget)
      ...     print(*jaxbound.crown_ibp(model)(region))
      3.0 3.0
      2.0 7.0
      2.0 8.0

    References:
      Jia et al. 2019, arXiv:1909.00986; Huang et al. 2019, arXiv:1909.01492: certified robustness to such
      substitutions, by interval bound propagation.
    """
    embeddings, alternatives = jnp.asarray(embeddings), jnp.asarray(alternatives)
    lead, shape = embeddings.shape[:-2], embeddings.shape
    if embeddings.ndim < 2 or alternatives.shape[:-2] != shape[:-1] or alternatives.shape[-1:] != shape[-1:]:
        raise ValueError(
            f"alternatives must have a vector [K, D] for each vector of embeddings [L, D]: [L, K, D]; got the shapes "
            f"{alternatives.shape} and {shape}"
        )
    if not (jnp.issubdtype(embeddings.dtype, jnp.floating) and jnp.issubdtype(alternatives.dtype, jnp.floating)):
        raise TypeError(
            f"substitutions are of embedded tokens, got {embeddings.dtype} and {alternatives.dtype}: look tokens up in "
            f"the embedding first, table[tokens], table[alternatives]"
        )
    changes = alternatives - embeddings[..., None, :]
    if mask is not None:
        changes = jnp.where(_checked_mask(mask, changes.shape[:-1])[..., None], changes, 0)
    low, high = jnp.min(changes, axis=-2, initial=0), jnp.max(changes, axis=-2, initial=0)
    if budget is not None:
        budget = _checked_budget(budget, lead)
        # A budget that is only known when the program runs makes an invalid set invalid.
        reach = jnp.where(budget > 0, 1, jnp.where(budget == 0, 0, jnp.nan)).astype(changes.dtype)[..., None, None]
        low, high = low * reach, high * reach
    box = Interval(embeddings + low, embeddings + high)
    return SupportSet(_of_substitutions, (embeddings, changes, budget), box)


def _of_substitutions(c: Array, embeddings: Array, changes: Array, budget: Array | None) -> Array:
    gains = jnp.einsum("ld,lkd->lk", c, changes, precision=jax.lax.Precision.HIGHEST)
    gains = jnp.max(gains, axis=1, initial=0)
    if budget is not None:
        gains = jnp.where(jnp.arange(gains.size) < budget, jnp.sort(gains, descending=True), 0)
    return jnp.sum(c * embeddings) + jnp.sum(gains)


def _checked_mask(mask: Any, shape: tuple[int, ...]) -> Array:
    mask = jnp.asarray(mask)
    if mask.dtype != bool:
        raise TypeError(f"the mask of the alternatives must be boolean, got {mask.dtype}")
    if mask.shape != shape:
        raise ValueError(f"the mask must say for each alternative whether it is one, {list(shape)}; got {mask.shape}")
    return mask


def _checked_budget(budget: Any, lead: tuple[int, ...]) -> Array:
    budget = jnp.asarray(budget)
    if not jnp.issubdtype(budget.dtype, jnp.integer):
        raise TypeError(f"the budget is a number of tokens, an integer; got {budget.dtype}")
    if budget.shape not in ((), lead):
        raise ValueError(f"the budget must be one integer, or one for each sentence {list(lead)}; got {budget.shape}")
    if not isinstance(budget, Tracer) and (np.asarray(budget) < 0).any():
        raise ValueError(f"the budget, how many tokens may be replaced, must not be negative; got {np.asarray(budget)}")
    return jnp.broadcast_to(budget, lead)
