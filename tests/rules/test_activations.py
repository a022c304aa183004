import jax
import jax.numpy as jnp
import pytest

import jaxbound
from jaxbound.methods.problem import prepare
from tests import soundness

nn = jax.nn
CASES = {
    "leaky_relu": nn.leaky_relu,
    "leaky_relu_0.3": lambda x: nn.leaky_relu(x, 0.3),
    "leaky_relu_1.7": lambda x: nn.leaky_relu(x, 1.7),
    "leaky_relu_-0.5": lambda x: nn.leaky_relu(x, -0.5),
    "leaky_relu_each": lambda x: nn.leaky_relu(x, jnp.array([0.1, 0.5, 1.5, -0.2])),
    "elu": nn.elu,
    "elu_2": lambda x: nn.elu(x, 2.0),
    "celu": nn.celu,
    "celu_0.5": lambda x: nn.celu(x, 0.5),
    "selu": nn.selu,
    "silu": nn.silu,
    "mish": nn.mish,
    "softplus": nn.softplus,
    "squareplus": nn.squareplus,
    "sparse_plus": nn.sparse_plus,
    "soft_sign": nn.soft_sign,
    "hard_silu": nn.hard_silu,
    "hard_tanh": nn.hard_tanh,
    "relu6": nn.relu6,
    "hard_sigmoid": nn.hard_sigmoid,
    "log_sigmoid": nn.log_sigmoid,
    "sparse_sigmoid": nn.sparse_sigmoid,
    "glu": nn.glu,
    "gelu": nn.gelu,
    "gelu_exact": lambda x: nn.gelu(x, approximate=False),
}
WHOLE = (
    "leaky_relu leaky_relu_0.3 leaky_relu_each elu elu_2 celu selu silu mish softplus squareplus sparse_plus "
    "soft_sign hard_silu hard_tanh"
).split()


@pytest.mark.parametrize("name", CASES)
def test_sound(name, double):
    soundness.check(CASES[name], *soundness.boxes(4)[:4])


@pytest.mark.parametrize("name", ["leaky_relu_0.3", "silu", "selu"])
def test_sound_in_single_precision(name):
    soundness.check(CASES[name], *soundness.boxes(4)[:4])


@pytest.mark.parametrize("name", WHOLE)
def test_stays_one_equation(name):
    program = prepare(CASES[name], (soundness.boxes(4)[0],), {}).program
    assert len(program.equations) == 1


def test_a_function_that_only_bears_the_name_is_bounded_by_its_parts():
    @jax.jit
    def silu(x):
        return x + jnp.tanh(x)

    box = soundness.boxes(4)[0]
    assert len(prepare(silu, (box,), {}).program.equations) == 2
    soundness.check(silu, box)


def test_atomic_is_used_under_jit_vmap_and_in_a_network(double):
    def cube(x):
        return x**3

    def interval(x):
        return jaxbound.Interval(cube(x.lower), cube(x.upper))

    def relaxed(x):
        flat = jnp.zeros_like(x.lower)
        return jaxbound.Relaxation(*(jaxbound.Affine((flat,), end) for end in interval(x)))

    atom = jaxbound.atomic(cube, jaxbound.Elementwise(interval, relaxed))
    weight = soundness.weights(4, 4)

    def fn(x):
        return weight @ atom(weight @ x)

    assert [e.name.startswith("atomic_cube") for e in prepare(fn, (soundness.boxes(4)[0],), {}).program.equations] == [
        False,
        True,
        False,
    ]
    soundness.check(fn, *soundness.boxes(4)[:2])
    soundness.check(jax.vmap(lambda x: atom(x) * 2), *soundness.boxes(4)[:1])
