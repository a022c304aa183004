"""Random programs: what hypothesis and the campaign hold bounds against.

A program is a chain of steps, each taking one or two of the arrays made so far to another; those generated here are of
vectors [4]. All decisions are made by one function `choose(n) -> integer below n`, so that hypothesis can shrink them
and a seed can repeat them.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.soundness import weights

SIZE = 4
MATRICES = [weights(SIZE, SIZE, seed=k) / 2 for k in range(3)]
VECTORS = [weights(SIZE, seed=k) for k in range(3)]
INDICES = [np.array(k) for k in ([0, 2, 2, 1], [3, 1, 0, 2], [1, 1, 1, 3])]
MASKS = [np.array(k, bool) for k in ([1, 0, 1, 0], [1, 1, 0, 1], [0, 0, 0, 1])]
nn = jax.nn

# Functions of one vector, elementwise. Domains are kept by what comes before: 1 + x^2 is positive.
ELEMENTWISE = {
    "relu": nn.relu,
    "leaky_relu": lambda x: nn.leaky_relu(x, 0.2),
    "elu": nn.elu,
    "selu": nn.selu,
    "celu": lambda x: nn.celu(x, 0.7),
    "silu": nn.silu,
    "mish": nn.mish,
    "gelu": nn.gelu,
    "softplus": nn.softplus,
    "squareplus": nn.squareplus,
    "sparse_plus": nn.sparse_plus,
    "soft_sign": nn.soft_sign,
    "hard_silu": nn.hard_silu,
    "hard_tanh": nn.hard_tanh,
    "relu6": nn.relu6,
    "tanh": jnp.tanh,
    "logistic": nn.sigmoid,
    "log_sigmoid": nn.log_sigmoid,
    "erf": lax.erf,
    "erfc": lax.erfc,
    "atan": jnp.arctan,
    "asinh": jnp.arcsinh,
    "sinh": lambda x: jnp.sinh(jnp.tanh(x)),
    "cosh": lambda x: jnp.cosh(jnp.tanh(x)),
    "sin": jnp.sin,
    "cos": lambda x: jnp.cos(2 * x),
    "abs": jnp.abs,
    "square": lambda x: jnp.square(nn.soft_sign(x)),
    "cube": lambda x: jnp.tanh(x) ** 3,
    "fourth": lambda x: jnp.clip(x, -1.5, 1.0) ** 4,
    "exp": lambda x: jnp.exp(jnp.clip(x, -3, 1.5)),
    "exp2": lambda x: jnp.exp2(jnp.minimum(x, 2)),
    "expm1": lambda x: jnp.expm1(jnp.minimum(x, 1)),
    "log": lambda x: jnp.log(1 + x * x),
    "log2": lambda x: jnp.log2(1.5 + nn.soft_sign(x)),
    "log1p": lambda x: jnp.log1p(jnp.abs(x)),
    "sqrt": lambda x: jnp.sqrt(0.5 + x * x),
    "rsqrt": lambda x: lax.rsqrt(0.5 + x * x),
    "power": lambda x: (0.5 + jnp.abs(x)) ** 0.7,
    "negative_power": lambda x: (1 + jnp.abs(x)) ** -2,
    "reciprocal": lambda x: 1 / (1 + x * x),
    "sign": jnp.sign,
    "floor": jnp.floor,
    "ceil": jnp.ceil,
    "round": jnp.round,
    "clip": lambda x: jnp.clip(x, -0.5, 0.7),
    "clamp": lambda x: lax.clamp(-0.4, x, 1.1),
    "minimum": lambda x: jnp.minimum(x, 0.3),
    "maximum": lambda x: jnp.maximum(x, VECTORS[0]),
    "scale": lambda x: x * VECTORS[1] - VECTORS[2],
    "divide": lambda x: x / (2 + jnp.abs(VECTORS[1])),
    "negative": lambda x: 1 - x,
}


def image(x):
    return jnp.concatenate([x, 0.5 * x, -x, x[::-1]]).reshape(1, 4, 4, 1)


def pool(x, init, reduce, window=2):
    return lax.reduce_window(image(x), init, reduce, (1, window, window, 1), (1, 2, 2, 1), "SAME").ravel()


def convolve(x, kernel, strides, padding):
    kernel = jnp.asarray(kernel, x.dtype)
    pixels = lax.conv_general_dilated(image(x), kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return pixels.ravel()[:SIZE]


# Functions of one vector that mix its elements; k picks a constant.
MIXING = {
    "dense": lambda x, k: MATRICES[k] @ x + VECTORS[k],
    "dense_relu": lambda x, k: nn.relu(x @ MATRICES[k] + VECTORS[k]),
    "residual": lambda x, k: x + MATRICES[k] @ nn.relu(x),
    "gather": lambda x, k: x[INDICES[k]],
    "fill": lambda x, k: x.at[2 * INDICES[k]].get(mode="fill", fill_value=float(k)),
    "scatter_add": lambda x, k: jnp.asarray(VECTORS[k], x.dtype).at[INDICES[k]].add(x),
    "scatter": lambda x, k: jnp.asarray(VECTORS[k], x.dtype).at[INDICES[1]].set(x),
    "select": lambda x, k: jnp.where(MASKS[k], x, VECTORS[k]),
    "reshape": lambda x, k: x.reshape(2, 2).T.ravel() + k,
    "roll": lambda x, k: jnp.roll(x[::-1], k),
    "pad": lambda x, k: lax.pad(x[:2], jnp.asarray(0.5, x.dtype), [(k, 3 - k, 0)])[:SIZE],
    "update": lambda x, k: lax.dynamic_update_slice(jnp.asarray(VECTORS[k], x.dtype), x[:2], (k,)),
    "slice": lambda x, k: jnp.tile(lax.dynamic_slice(x, (k,), (2,)), 2),
    "concatenate": lambda x, k: jnp.concatenate([x[k:], jnp.asarray(VECTORS[0][:k], x.dtype)]),
    "broadcast_sum": lambda x, k: jnp.sum(jnp.broadcast_to(x[:, None], (SIZE, k + 1)), axis=1),
    "sum": lambda x, k: x - jnp.sum(x) / (k + 2),
    "cumsum": lambda x, k: jnp.cumsum(x) / (k + 1),
    "cummax": lambda x, k: lax.cummax(x, reverse=k == 1),
    "cummin": lambda x, k: lax.cummin(x, reverse=k == 1),
    "reduce_max": lambda x, k: VECTORS[k] * jnp.max(x),
    "reduce_min": lambda x, k: x + jnp.min(x.reshape(2, 2), axis=k % 2).repeat(2),
    "max_pool": lambda x, k: pool(x, -jnp.inf, lax.max, k + 1),
    "min_pool": lambda x, k: pool(x, jnp.inf, lax.min, k + 1),
    "average_pool": lambda x, k: pool(x, 0.0, lax.add, k + 1) / 4,
    "conv": lambda x, k: convolve(x, weights(3, 3, 1, 2, seed=k), (1, 1), "SAME") / 2,
    "conv_stride": lambda x, k: convolve(x, weights(2, 2, 1, 2, seed=k), (2, 2), [(k, 1), (0, k)]),
    "softmax": lambda x, k: nn.softmax((k + 1) * nn.soft_sign(x)),
    "log_softmax": lambda x, k: nn.log_softmax(nn.soft_sign(x)) + k,
    "glu": lambda x, k: jnp.tile(nn.glu(x), 2) * (k - 0.5),
    "normalise": lambda x, k: x / jnp.sqrt(jnp.sum(x * x) + 1 + k),
    "scan": lambda x, k: lax.scan(
        lambda c, w: (jnp.tanh(w @ c), nn.relu(c)), x, jnp.asarray(np.stack(MATRICES[: k + 1]), x.dtype)
    )[0],
    "scan_outputs": lambda x, k: lax.scan(lambda c, w: (c + jnp.sin(w), c * 0.5), x[k], x)[1],
    "fori": lambda x, k: lax.fori_loop(0, k + 1, lambda i, c: nn.relu(jnp.asarray(MATRICES[0], x.dtype) @ c + i), x),
    "checkpoint": lambda x, k: jax.checkpoint(lambda y: jnp.tanh(y) * k)(x),
    "vmap": lambda x, k: jax.vmap(lambda y: jnp.minimum(y, k) * 2)(x),
}

# Functions of two vectors. Products are squashed, so that long chains stay finite.
PAIRS = {
    "add": jnp.add,
    "sub": jnp.subtract,
    "max": jnp.maximum,
    "min": jnp.minimum,
    "mul": lambda x, y: nn.soft_sign(x) * jnp.tanh(y),
    "div": lambda x, y: x / (1.5 + nn.soft_sign(y)),
    "div_negative": lambda x, y: x / (nn.soft_sign(y) - 1.5),
    "outer": lambda x, y: jnp.outer(jnp.tanh(x), jnp.tanh(y)) @ jnp.ones(SIZE, x.dtype) / 2,
    "dot": lambda x, y: jnp.dot(jnp.tanh(x), jnp.sin(y)) * VECTORS[0],
    "matmul": lambda x, y: ((jnp.tanh(x)[:, None] * MATRICES[0]) @ (MATRICES[1] * jnp.tanh(y)))[0],
    "kernel": lambda x, y: convolve(jnp.tanh(x), jnp.tanh(y).reshape(2, 2, 1, 1), (2, 1), "VALID"),
    "select": lambda x, y: jnp.where(MASKS[0], x, y),
    "stack": lambda x, y: jnp.stack([x, y])[:, 1:3].ravel(),
    "scatter": lambda x, y: x.at[INDICES[1][:2]].set(y[2:]),
}


@dataclasses.dataclass(frozen=True)
class Step:
    """One step: `fn` of the values at the given positions."""

    name: str
    fn: Callable
    operands: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Program:
    """A chain of steps; called, it returns the last values, as many as `outputs` says.

    Values have the precision of the first input: a constant of a higher one does not raise it for what follows.
    """

    steps: tuple[Step, ...]
    shapes: tuple[tuple[int, ...], ...] = ((SIZE,),)
    outputs: int = 2

    def __call__(self, *inputs):
        values = list(inputs)
        for step in self.steps:
            values.append(step.fn(*(values[k] for k in step.operands)).astype(inputs[0].dtype))
        return values[-1], *(value + 0 for value in values[-2 : -1 - self.outputs : -1])

    def __repr__(self):
        return "; ".join(f"v{k} = {s.name}{s.operands}" for k, s in enumerate(self.steps, len(self.shapes)))


def shaken(program: Program, seed: int) -> Program:
    """The same, with what exceeds a million in its steps' results off by its last digit, up or down.

    What that makes of the program's results is what rounding may have made of them: (1 + x) - x is no longer 1.
    """

    def shake(result, k):
        digit = np.finfo(float).eps * np.random.default_rng((seed, k)).choice([-1, 1], result.shape)
        return jnp.where(jnp.abs(result) > 1e6, result * (1 + digit), result)

    def shaken_step(k: int, step: Step) -> Step:
        return dataclasses.replace(step, fn=lambda *xs: shake(step.fn(*xs), k))

    return dataclasses.replace(program, steps=tuple(shaken_step(k, step) for k, step in enumerate(program.steps)))


def step(name: str, operands: tuple[int, ...]) -> Step:
    """A step by its name, that of a function of MIXING with ":k" for its constant."""
    if name in ELEMENTWISE or name in PAIRS:
        return Step(name, ELEMENTWISE.get(name) or PAIRS[name], operands)
    kind, k = name.split(":")
    return Step(name, lambda x: MIXING[kind](x, int(k)), operands)


def generate(choose: Callable[[int], int], longest: int = 5, inputs: int = 1) -> Program:
    """A random program.

    Args:
      choose: an integer in [0, n) for each n.
      longest: most steps.
      inputs: how many vectors it takes.
    """
    steps: list[Step] = []
    for _ in range(1 + choose(longest)):
        # The newest vector, so that chains are deep; the partner is any.
        newest, kind = inputs - 1 + len(steps), choose(3)
        if kind == 0:
            steps.append(step(sorted(ELEMENTWISE)[choose(len(ELEMENTWISE))], (newest,)))
        elif kind == 1:
            name = sorted(MIXING)[choose(len(MIXING))]
            steps.append(step(f"{name}:{choose(3)}", (newest,)))
        else:
            name = sorted(PAIRS)[choose(len(PAIRS))]
            steps.append(step(name, (newest, choose(newest + 1))))
    return Program(tuple(steps), ((SIZE,),) * inputs)
