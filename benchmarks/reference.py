"""Interval and CROWN-IBP bounds written by hand for `benchmarks.models`: what jaxbound is timed against.

Hand-batched JAX that interprets the layer list itself, in the fastest form known on CPU. Shapes: B batch, S spec rows
(one per wrong class), K classes. A box is a pair (lower, upper) of arrays [B, *input_shape].

The gradient of a CROWN-IBP loss comes in three forms of equal value:

* of `crown_ibp_margins(..., ops=DERIVED)`: the backward recursion differentiated, convolutions as JAX derives them;
* of `crown_ibp_margins(..., ops=WRITTEN)`: the same with the convolutions' derivatives written by hand;
* of `crown_ibp_margins_envelope`: the network evaluated at each row's worst input along each row's lines.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.convolutions import WRITTEN
from benchmarks.models import Conv, Dense, Relu, Residual, input_shapes


class Lines(NamedTuple):
    """lower_slope * z <= relu(z) <= upper_slope * z + upper_offset: [B, *units], or with rows [B, S, *units]."""

    lower_slope: jax.Array
    upper_slope: jax.Array
    upper_offset: jax.Array


# Interval bounds.


def interval_bounds(layers, params, box, *, ops=WRITTEN):
    """Propagate a box: the bounds after the last layer, and those before every ReLU as {name: (lower, upper)}."""
    before_relu = {}
    for layer in layers:
        match layer:
            case Relu():
                before_relu[layer.name] = box
                box = (jax.nn.relu(box[0]), jax.nn.relu(box[1]))
            case Residual():
                body, inner = interval_bounds(layer.body, params, box, ops=ops)
                before_relu |= inner
                box = (box[0] + body[0], box[1] + body[1])
            case _:
                kernel, bias = params[layer.name]["kernel"], params[layer.name]["bias"]
                center, radius = _center_radius(box)
                center = _linear(center, kernel, layer, ops=ops) + bias
                radius = _linear(radius, jnp.abs(kernel), layer, ops=ops)
                box = (center - radius, center + radius)
    return box, before_relu


def _center_radius(box):
    return (box[1] + box[0]) / 2, (box[1] - box[0]) / 2


def _linear(x, kernel, layer, *, ops):
    return ops.conv(x, kernel, layer) if isinstance(layer, Conv) else x.reshape(x.shape[0], -1) @ kernel


def margin_rows(params, labels):
    """The margins z_y - z_j, j != y, of the last layer: coefficients [B, S, features] of its inputs, offsets [B, S]."""
    kernel, bias = params["kernel"], params["bias"]
    others = jnp.arange(bias.shape[0] - 1)
    others = others + (others >= labels[:, None])
    classes = jnp.eye(bias.shape[0], dtype=bias.dtype)
    spec = classes[labels][:, None] - classes[others]
    return spec @ kernel.T, spec @ bias


def ibp_margins(network, params, box, *, labels, ops=WRITTEN):
    """Interval lower bounds [B, S] of the margins, the last layer merged with the margin's rows (elision)."""
    box, _ = interval_bounds(network.layers[:-1], params, box, ops=ops)
    center, radius = (x.reshape(x.shape[0], -1) for x in _center_radius(box))
    rows, offsets = margin_rows(params[network.layers[-1].name], labels)
    return offsets + jnp.einsum("bsn,bn->bs", rows, center) - jnp.einsum("bsn,bn->bs", jnp.abs(rows), radius)


# CROWN-IBP.


def relu_lines(lower, upper):
    """The chord above; below, z or 0, whichever leaves less area between (adaptive). Exact where the sign is known."""
    low, high = -jax.nn.relu(-lower), jax.nn.relu(upper)
    width = high - low
    upper_slope = high / jnp.where(width > 0, width, 1)
    lower_slope = jnp.where((lower < 0) & (upper > 0), (upper >= -lower).astype(lower.dtype), upper_slope)
    return Lines(lower_slope, upper_slope, -upper_slope * low)


def backward(layers, params, coeffs, *, shape, lines, ops):
    """Carry lower-bound coefficients [B, S, *after] back to the input of a layer list.

    Returns:
      The coefficients [B, S, *shape], the bias [B, S] gathered on the way, and the coefficients that met each ReLU's
      output as {name: [B, S, *units]}.
    """
    bias, met = 0.0, {}
    for layer, before in reversed(list(zip(layers, input_shapes(layers, shape), strict=True))):
        match layer:
            case Relu():
                met[layer.name] = coeffs
                at = Lines(*(x if x.ndim == coeffs.ndim else x[:, None] for x in lines[layer.name]))
                # jax.nn.relu, as the derivative of jnp.maximum splits ties: a division per element.
                positive, negative = jax.nn.relu(coeffs), -jax.nn.relu(-coeffs)
                bias += row_sums(negative, lines[layer.name].upper_offset)
                coeffs = positive * at.lower_slope + negative * at.upper_slope
            case Residual():
                body, inner_bias, inner = backward(layer.body, params, coeffs, shape=before, lines=lines, ops=ops)
                coeffs, bias, met = coeffs + body, bias + inner_bias, met | inner
            case Dense():
                bias += coeffs @ params[layer.name]["bias"]
                coeffs = (coeffs @ params[layer.name]["kernel"].T).reshape(*coeffs.shape[:2], *before)
            case Conv():
                bias += coeffs.sum((2, 3)) @ params[layer.name]["bias"]
                rows = (coeffs.shape[0] * coeffs.shape[1], *before)
                folded = coeffs.reshape(rows[0], *coeffs.shape[2:])
                folded = ops.transpose(folded, params[layer.name]["kernel"], layer, rows)
                coeffs = folded.reshape(*coeffs.shape[:2], *before)
    return coeffs, bias, met


def row_sums(coeffs, values):
    """Sum over units of coeffs [B, S, *units] * values [B, *units]: as a batched product, twice as fast as a sum."""
    batch, rows = coeffs.shape[:2]
    return jnp.einsum("bsn,bn->bs", coeffs.reshape(batch, rows, -1), values.reshape(batch, -1))


def relax(network, params, box, *, ops=WRITTEN):
    """The lines around every hidden ReLU, on the bounds that IBP gives: {name: Lines}."""
    _, before_relu = interval_bounds(network.layers[:-1], params, box, ops=ops)
    return {name: relu_lines(*bounds) for name, bounds in before_relu.items()}


def linear_margins(network, params, lines, *, labels, ops=WRITTEN):
    """The margins' lower bounds as affine functions of the input: what `backward` returns, offsets included."""
    rows, offsets = margin_rows(params[network.layers[-1].name], labels)
    hidden = network.layers[:-1]
    coeffs, bias, met = backward(hidden, params, rows, shape=network.input_shape, lines=lines, ops=ops)
    return coeffs, bias + offsets, met


def concretize(coeffs, bias, box):
    """The least value [B, S] over the box of coeffs [B, S, *input_shape] applied to an input, plus bias [B, S]."""
    return jnp.sum(coeffs * worst_input(coeffs, box), axis=tuple(range(2, coeffs.ndim))) + bias


def worst_input(coeffs, box):
    """The corner [B, S, *input_shape] of the box where coeffs of that shape are least."""
    return jnp.where(coeffs >= 0, box[0][:, None], box[1][:, None])


def crown_ibp_margins(network, params, box, *, labels, ops=WRITTEN):
    """CROWN-IBP lower bounds [B, S] of the margins, adaptive lines, from the backward recursion."""
    lines = relax(network, params, box, ops=ops)
    coeffs, bias, _ = linear_margins(network, params, lines, labels=labels, ops=ops)
    return concretize(coeffs, bias, box)


def crown_ibp_margins_envelope(network, params, box, *, labels, ops=WRITTEN):
    """The same bounds, whose derivative is that of the network evaluated at the worst inputs along the chosen lines.

    By the envelope theorem the derivatives are equal; no derivative of a backward recursion is ever taken.
    """
    lines = relax(network, params, box, ops=ops)
    fixed_params, fixed_lines = jax.lax.stop_gradient((params, lines))
    coeffs, bias, met = linear_margins(network, fixed_params, fixed_lines, labels=labels, ops=ops)
    chosen = {name: choose_lines(lines[name], met[name]) for name in lines}
    rows, offsets = margin_rows(params[network.layers[-1].name], labels)
    features = evaluate(network.layers[:-1], params, worst_input(coeffs, box), chosen=chosen, ops=ops)
    return graft(concretize(coeffs, bias, box), jnp.sum(rows * features, axis=-1) + offsets)


def choose_lines(lines, coeffs):
    """Per row and unit, the slope and offset of the line that a coefficient [B, S, *units] of its sign takes."""
    lower_slope, upper_slope, upper_offset = (x[:, None] for x in lines)
    takes_lower = coeffs >= 0
    return jnp.where(takes_lower, lower_slope, upper_slope), jnp.where(takes_lower, 0, upper_offset)


def evaluate(layers, params, x, *, chosen, ops):
    """The forward pass [B, S, *before] -> [B, S, *after] with one affine function per row in place of each ReLU."""
    rows = x.shape[:2]
    for layer in layers:
        match layer:
            case Relu():
                slope, offset = chosen[layer.name]
                x = slope * x + offset
            case Residual():
                x = x + evaluate(layer.body, params, x, chosen=chosen, ops=ops)
            case _:
                folded = _linear(x.reshape(-1, *x.shape[2:]), params[layer.name]["kernel"], layer, ops=ops)
                x = (folded + params[layer.name]["bias"]).reshape(*rows, *folded.shape[1:])
    return x


@jax.custom_jvp
def graft(value, tangent_of):
    """The value of the first argument with the derivatives of the second."""
    del tangent_of
    return value


graft.defjvp(lambda primals, tangents: (primals[0], tangents[1]))


def robust_loss(margins):
    """Mean cross-entropy of the worst-case logits: 0 for the label, -margin [B, S] for the other classes."""
    logits = jnp.concatenate([jnp.zeros_like(margins[:, :1]), -margins], axis=1)
    return jnp.mean(jax.nn.logsumexp(logits, axis=1))
