"""Penalties that are added to a certified-training loss.

Those on bounds take the intervals of all layers' pre-activations for a whole batch, as `jax.vmap` of
`jaxbound.layer_bounds` returns them. Each is a scalar with a finite value and gradient whatever the bounds are: where a
layer's numbers are not finite, the layer gets a constant.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxbound.sets import Array, Interval, midpoint, radius

Layers = Mapping[str, Interval] | Sequence[Interval]  # each [B, *neurons]


def tightness(layers: Layers, input_radius: Array, *, tolerance: float = 0.5) -> Array:
    """Penalises layers whose intervals are much wider than the input's.

    (1/n) sum_i max(0, tolerance - Delta_0 / Delta_i) / tolerance over n layers, where Delta_i is the mean radius over
    batch and neurons. It is in [0, 1], and 0 where no layer's mean radius exceeds Delta_0 / tolerance.

    Args:
      layers: the layers' intervals, [B, *neurons] each.
      input_radius: the radius of the input box, any shape (its mean counts), in units of what the first layer gets: a
        network that divides pixels by a standard deviation gets the pixel radius divided by it. At 0 every layer is
        maximally loose and the gradient vanishes, so give the bounds a small radius during a clean phase.
      tolerance: in (0, 1].

    Returns:
      A scalar. A layer that is not finite contributes its largest value, 1.

    Example:
      >>> layer = jaxbound.Interval(jnp.array([[0.0, 1.0]]), jnp.array([[8.0, 9.0]]))
      >>> print(jaxbound.regularizers.tightness([layer], input_radius=0.5))
      0.75

    References:
      Shi et al. 2021, arXiv:2103.17268.
    """
    initial = jnp.mean(jnp.asarray(input_radius))

    def term(box: Interval) -> Array:
        return _hinge(initial / jnp.maximum(jnp.mean(radius(box)), 1e-12), tolerance)

    return _mean([_finite(term, box, otherwise=1.0) for box in _boxes(layers)])


def balance(layers: Layers, *, tolerance: float = 0.5) -> Array:
    """Penalises layers whose surely active and surely inactive neurons are out of balance.

    With c the midpoint of [l, u] and means over batch and neurons: a = mean(c [l > 0]) and b = -mean(c [u < 0]) are
    what either kind contributes to the mean, V+ and V- the sums of (c - mean(c))^2 over either kind. The penalty is
    (1/n) sum_i (max(0, tolerance - rho(a, b)) + max(0, tolerance - rho(V+, V-))) / tolerance with
    rho(p, q) = min(p / q, q / p), in [0, 2].

    Args:
      layers: the layers' intervals, [B, *neurons] each.
      tolerance: in (0, 1].

    Returns:
      A scalar. A layer without any stable neuron, where rho is 0/0, or with numbers that are not finite contributes 0.

    Example:
      >>> layer = jaxbound.Interval(jnp.array([[1.0, -3.0]]), jnp.array([[3.0, -1.0]]))
      >>> print(jaxbound.regularizers.balance([layer]))
      0.0

    References:
      Shi et al. 2021, arXiv:2103.17268.
    """

    def term(box: Interval) -> Array:
        active, inactive = box.lower > 0, box.upper < 0
        largest = jax.lax.stop_gradient(jnp.max(jnp.abs(midpoint(box))))
        center = midpoint(box) / jnp.where(largest > 0, largest, 1)  # ratios ignore the scale; squares could overflow
        spread = jnp.square(center - jnp.mean(center))
        means = jnp.mean(jnp.where(active, center, 0)), -jnp.mean(jnp.where(inactive, center, 0))
        spreads = jnp.sum(jnp.where(active, spread, 0)), jnp.sum(jnp.where(inactive, spread, 0))
        defined = (jnp.maximum(*means) > 0) & (jnp.maximum(*spreads) > 0)
        return jnp.where(defined, _hinge(_ratio(*means), tolerance) + _hinge(_ratio(*spreads), tolerance), 0)

    return _mean([_finite(term, box, otherwise=0.0) for box in _boxes(layers)])


def stability(layers: Layers) -> Array:
    """Rewards neurons that are active or inactive on the whole set: the mean of -tanh(1 + l u) over all neurons.

    It is -1 where l u is large (one sign, far from zero) and 1 where it is very negative. The mean weighs every neuron
    of every layer alike.

    Args:
      layers: the layers' intervals, [B, *neurons] each.

    Returns:
      A scalar in [-1, 1]. A layer that is not finite counts as unstable.

    Example:
      >>> layer = jaxbound.Interval(jnp.array([[-1.0, 3.0]]), jnp.array([[1.0, 4.0]]))
      >>> print(jaxbound.regularizers.stability([layer]))
      -0.5

    References:
      Xiao et al. 2019, arXiv:1809.03008.
    """
    boxes = _boxes(layers)
    sizes = [jnp.size(box.lower) for box in boxes]

    def term(box: Interval) -> Array:
        return -jnp.mean(jnp.tanh(1 + box.lower * box.upper))

    terms = [size * _finite(term, box, otherwise=1.0) for size, box in zip(sizes, boxes, strict=True)]
    return sum(terms[1:], terms[0]) / sum(sizes)


def l1(params: Any) -> Array:
    """The sum of |W| over all weights: leaves with two axes or more, so neither biases nor scales.

    The tops of ramps (`jaxbound.nn.ParamRamp`), which have the axes of a neuron's index, are left out by their name.

    Args:
      params: a pytree.

    Returns:
      A scalar.

    Example:
      >>> print(jaxbound.regularizers.l1({"kernel": jnp.array([[1.0, -2.0]]), "bias": jnp.array([5.0])}))
      3.0
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    tops = (jax.tree_util.DictKey("top"),)
    weights = [leaf for path, leaf in leaves if jnp.ndim(leaf) >= 2 and path[-1:] != tops]
    return sum((jnp.sum(jnp.abs(weight)) for weight in weights), jnp.zeros(()))


def _boxes(layers: Layers) -> list[Interval]:
    boxes = list(layers.values() if isinstance(layers, Mapping) else layers)
    if not boxes:
        raise ValueError("there are no layers: the function has no nonlinear operation to regularise")
    return boxes


def _finite(term: Callable[[Interval], Array], box: Interval, otherwise: float) -> Array:
    """A layer's term, or a constant without gradient where its box or the term is not finite."""
    usable = jnp.all(jnp.isfinite(midpoint(box)) & jnp.isfinite(radius(box)))
    # The values are replaced before the term too: a gradient of NaN is not stopped by a selection behind it.
    value = term(Interval(*(jnp.where(usable, end, 0) for end in box)))
    return jnp.where(usable & jnp.isfinite(value), value, otherwise)


def _hinge(ratio: Array, tolerance: float) -> Array:
    return jnp.maximum(0, tolerance - ratio) / tolerance


def _ratio(first: Array, second: Array) -> Array:
    """min(p / q, q / p) of numbers that are not negative; 0 where both are 0."""
    larger = jnp.maximum(first, second)
    return jnp.minimum(first, second) / jnp.where(larger > 0, larger, 1)


def _mean(terms: Iterable[Array]) -> Array:
    return jnp.mean(jnp.stack(list(terms)))
