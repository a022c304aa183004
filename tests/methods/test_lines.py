import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxbound
from jaxbound import relax
from jaxbound.methods.chunks import Chunks
from jaxbound.methods.crown import crown_walk
from jaxbound.methods.lines import Lines, free_layers
from jaxbound.methods.problem import prepare
from jaxbound.methods.rows import lower_rows, lower_rows_by_lines
from tests import soundness
from tests.methods.test_optimized import CASES, SPEC, largest_gain

W = [soundness.weights(3, 3, seed=k) for k in range(3)]
SMALL = soundness.weights(2, 3, seed=5)
OPTIONS = {
    "shared": {"lines": jaxbound.shared_lines},
    "joint": {"intermediate": jaxbound.shared_lines},
    "joint, each unit": {"intermediate": jaxbound.single_lines},
    "joint, shared": {"lines": jaxbound.shared_lines, "intermediate": jaxbound.shared_lines},
}
JOINT = {"intermediate": jaxbound.shared_lines}


def small(x, activation=jax.nn.relu, layers=2):
    for weight in W[:layers]:
        x = activation(weight @ x + 0.1)
    return x + jnp.sum(x)


SLOW = pytest.mark.slow(reason="compiles the CROWN walk once more, and its derivative")


def hard(name):
    return pytest.param(name, marks=SLOW)


@pytest.mark.parametrize("name", ["shared", "joint", hard("joint, each unit"), hard("joint, shared")])
def test_sound_and_never_looser_than_crown(name, double):
    assert largest_gain(small, SMALL.astype(float), steps=6, **OPTIONS[name]) > 1e-6


@SLOW
@pytest.mark.parametrize("options", [JOINT, OPTIONS["joint, each unit"]], ids=["shared", "single"])
@pytest.mark.parametrize("name", CASES)
def test_every_kind_of_node_is_optimised_jointly(name, options, double):
    largest_gain(CASES[name], SPEC.astype(float), steps=6, **options)


def lines_of(fn, box, *, spec, strategy, relu=relax.adaptive):
    """The rows of a spec, with free lines everywhere."""
    problem, parts = prepare(fn, (box,), {}), Chunks(again=True)
    walk = crown_walk(problem, relu, parts=parts)
    layers = free_layers(problem, walk, strategy)
    return Lines(problem, walk, relu, problem.rows(spec), len(spec), layers, parts).fixed()


@pytest.mark.parametrize("name", ["relu", *map(hard, sorted(set(CASES) - {"relu", "scan"}))])
def test_derivative_by_lines_takes_a_pass_less(name, double):
    region, spec = soundness.boxes(4)[1], SPEC.astype(float)
    lines = lines_of(CASES[name], region, spec=spec, strategy=None)
    free = jax.tree.map(lambda x: 0.2 + 0.5 * x, lines.start())

    def derivative(lower):
        chosen = dataclasses.replace(lines, lower=lower)
        return jax.jit(jax.grad(lambda free: chosen.bounds(free)[0].sum()))(free)

    by_lines, by_evaluation = derivative(lower_rows_by_lines), derivative(lower_rows)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12), by_lines, by_evaluation)
    assert max(jnp.abs(x).max() for x in jax.tree.leaves(by_lines)) > 1e-3


@pytest.mark.parametrize("name", ["shared_lines relu", hard("shared_lines tanh"), hard("single_lines tanh")])
def test_derivative_goes_through_intermediate_bounds(name, double):
    strategy, activation = name.split()
    fn = functools.partial(small, activation=getattr(jax.nn, activation), layers=3)
    box, spec = soundness.boxes(3)[2], soundness.weights(2, 3, seed=6).astype(float)
    rng = np.random.default_rng(0)

    @jax.jit
    def derivatives():
        lines = lines_of(fn, box, spec=spec, strategy=getattr(jaxbound, strategy), relu=relax.constant)
        assert len(lines.layers) == 2
        middle = jax.tree.map(lambda x: rng.uniform(0.3, 0.7, x.shape), lines.start())
        direction = jax.tree.map(lambda x: rng.uniform(-1, 1, x.shape), middle)

        def value(step):
            free = jax.tree.map(lambda x, d: x + step * d, middle, direction)
            return lines.bounds(free)[0].sum()

        slopes = jax.grad(lambda free: lines.bounds(free)[0].sum())(middle)
        along = sum(jnp.vdot(a, b) for a, b in zip(*map(jax.tree.leaves, (slopes, direction)), strict=True))
        inner = [jnp.abs(x).max() for label, node in slopes.items() if "/" in label for x in node]
        return along, jnp.stack(inner), jax.vmap(value)(jnp.array([1e-6, -1e-6]))

    along, inner, (after, before) = derivatives()
    assert (inner > 1e-4).sum() >= 2
    np.testing.assert_allclose(along, (after - before) / 2e-6, rtol=1e-6)


def test_best_intermediate_bounds_are_kept(double):
    """Steps only ever narrow them, whatever lines they try, and they hold."""
    box, spec = soundness.boxes(3)[1], SMALL.astype(float)

    def steps():
        lines = lines_of(small, box, spec=spec, strategy=jaxbound.shared_lines)
        _, boxes = lines.by_strategy()
        for part in (0.2, 0.9):
            free = jax.tree.map(lambda x, part=part: jnp.full_like(x, part), lines.start())
            _, narrower = lines.bounds(free, boxes)
            yield boxes, narrower
            boxes = narrower

    for before, after in jax.jit(lambda: list(steps()))():
        for label in before:
            assert (after[label].lower >= before[label].lower).all()
            assert (after[label].upper <= before[label].upper).all()


def test_rows_that_share_lines_have_those_of_the_highest_sum(double):
    box, spec = soundness.boxes(3)[1], SMALL.astype(float)

    @jax.jit
    def found():
        make = functools.partial(jaxbound.optimized_lines, small, lines=jaxbound.shared_lines)
        first = make(steps=6)(box, spec=spec)
        again = make(steps=0)(box, spec=spec, free=first.free)
        return first, again.bounds, jaxbound.crown(small)(box, spec=spec)

    first, again, crown = found()
    assert all(len(leaf) == 1 for leaf in jax.tree.leaves(first.free))
    assert (first.bounds >= again - 1e-12).all() and (again >= crown).all()
    assert again.sum() > crown.sum() + 1e-6


@pytest.mark.slow(reason="compiles twice")
def test_going_on_where_intermediate_bounds_were_optimised(double):
    box, spec = soundness.boxes(3)[1], SMALL.astype(float)
    make = functools.partial(jaxbound.optimized_lines, small, **JOINT)

    @jax.jit
    def found(box):
        first = make(steps=3)(box, spec=spec)
        again = make(steps=0)(soundness.scaled(box, 0.5), spec=spec, free=first.free)
        further = make(steps=6)(box, spec=spec, free=first.free)
        fixed = jaxbound.alpha_crown(small, steps=9)(box, spec=spec)
        crown = jaxbound.crown(small)(box, spec=spec)
        return [x.sum() for x in (crown, first.bounds, further.bounds, again.bounds, fixed)]

    *growing, fixed = found(box)
    assert (np.diff(growing) > 1e-6).all()
    assert growing[2] > fixed + 1e-6


@SLOW
def test_vmap_is_a_loop(double):
    boxes = jax.tree.map(lambda *x: jnp.stack(x), *soundness.boxes(3)[:3])
    bound = jaxbound.alpha_crown(small, steps=3, patience=100, **OPTIONS["joint, shared"])
    batched = jax.jit(jax.vmap(bound))(boxes)
    alone = jax.jit(bound)
    for k in range(3):
        one = alone(jax.tree.map(lambda x, k=k: x[k], boxes))
        jax.tree.map(lambda a, b, k=k: np.testing.assert_allclose(a[k], b, rtol=1e-9, atol=1e-12), batched, one)


KERNELS = [soundness.weights(2, 2, c, 2, seed=c) for c in (1, 2)]


def convolutions(x):
    image = x.reshape(1, 8, 8, 1)
    for kernel in KERNELS:
        image = lax.conv_general_dilated(
            image, kernel.astype(x.dtype), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        image = jax.nn.relu(image)
    return image.reshape(-1)


@SLOW
def test_chunks_change_nothing_and_rows_are_shared(double):
    region = soundness.boxes(64)[1]
    spec = soundness.weights(2, 128).astype(float)

    def found(chunk):
        bound = jaxbound.alpha_crown(convolutions, steps=3, patience=100, chunk=chunk, **JOINT)
        return jax.jit(lambda: bound(region, spec=spec))()

    assert lines_of(convolutions, region, spec=spec, strategy=jaxbound.shared_lines).layers.popitem()[1].sharing
    np.testing.assert_allclose(found(7), found(512), rtol=1e-9)
    assert (found(512) > jaxbound.crown(convolutions)(region, spec=spec) + 1e-6).all()


def test_errors():
    box, spec = soundness.boxes(3)[0], SMALL

    def bound(make, fn=small, **others):
        return jax.eval_shape(lambda: make(fn, steps=1, **others)(box, spec=spec))

    with pytest.raises(ValueError, match="that divides it, got 3"):
        bound(jaxbound.alpha_crown, lines=lambda rows: 3)
    with pytest.raises(ValueError, match="that divides it, got 0"):
        bound(jaxbound.alpha_crown, intermediate=lambda rows: 0)
    free = jax.tree.map(lambda x: np.zeros(x.shape), bound(jaxbound.optimized_lines, jax.nn.relu).free)
    with pytest.raises(ValueError, match="same `lines` and `intermediate`"):
        jaxbound.optimized_lines(jax.nn.relu, lines=jaxbound.shared_lines)(box, spec=spec, free=free)
