"""Exact answers to hold bounds against, made without jaxbound: NumPy, linear programs and mixed-integer programs.

Networks here are lists of (weights, bias), with a ReLU between any two. The solver is HiGHS, as SciPy has it. It takes
what violates a constraint by 1e-7, or an integer by 1e-6, for feasible, so its optimum may lie below the true one by
that, times the weights. No verdict hangs on it: the optimum is reported with the point where the network, evaluated in
float64, takes its `value`. No lower bound may exceed that, whatever the solver tolerates; the solver's own bound
only tells how far the true minimum may lie below it.
"""

from typing import NamedTuple

import numpy as np
from scipy import optimize, sparse

# What the solver's bound may be off by, in the units of the output, for networks whose numbers are near one.
SOLVER_TOLERANCE = 1e-5


class Optimum(NamedTuple):
    """A minimum over a box.

    Attributes:
      value: of the function at the point; never below the true minimum.
      bound: a lower bound of the true minimum, up to SOLVER_TOLERANCE; -inf if there is none.
      point: in the box.
    """

    value: float
    bound: float
    point: np.ndarray


def random_network(sizes, seed):
    """Weights of the scale of trained ones: [(weights [m, n], bias [m])]."""
    rng = np.random.default_rng(seed)
    pairs = zip(sizes[:-1], sizes[1:], strict=True)
    return [(rng.normal(size=(m, n)) * np.sqrt(2 / n), 0.2 * rng.normal(size=m)) for n, m in pairs]


def evaluate(network, x, relu=lambda z: np.maximum(z, 0)):
    """The network's output, for one input or many as columns of [n, N]."""
    for weights, bias in network[:-1]:
        x = relu((weights @ x).T + bias).T
    weights, bias = network[-1]
    return (weights @ x).T + bias


def intervals(network, lower, upper):
    """Ends of what enters each ReLU, by interval arithmetic: [(lower, upper)]."""
    found = []
    for weights, bias in network[:-1]:
        center, reach = weights @ ((lower + upper) / 2) + bias, np.abs(weights) @ ((upper - lower) / 2)
        found.append((center - reach, center + reach))
        lower, upper = (np.maximum(end, 0) for end in found[-1])
    return found


def optimum(network, row, box, point, bound=-np.inf):
    """The Optimum at a point that a solver returned."""
    point = np.clip(point, *box)
    return Optimum(float(row @ evaluate(network, point)), bound, point)


# By enumeration of the patterns of active units.


def minimum_by_patterns(network, row, box):
    """The minimum of <row, f> over a box: one linear program for every pattern of active units that is possible.

    Args:
      network: with few units; patterns are cut off where a layer's are impossible.
      row: [outputs].
      box: lower, upper [inputs].
    """
    limits = list(zip(*box, strict=True))
    best = None

    def solve(objective, constraints):
        if not constraints:
            return optimize.linprog(objective, bounds=limits)
        matrix, right = (np.concatenate(parts) for parts in zip(*constraints, strict=True))
        return optimize.linprog(objective, matrix, right, bounds=limits)

    def visit(layer, weights, bias, constraints):
        """The network is weights @ x + bias before this layer's ReLU, where the constraints hold."""
        nonlocal best
        if layer == len(network) - 1:
            found = solve(row @ weights, constraints)
            if found.status == 0 and (best is None or found.fun + row @ bias < best.bound):
                best = optimum(network, row, box, found.x, found.fun + row @ bias)
            return
        for pattern in np.ndindex(*(2,) * len(bias)):
            signs = 2 * np.array(pattern) - 1
            inside = [*constraints, (-signs[:, None] * weights, signs * bias)]
            if solve(np.zeros(len(limits)), inside).status == 0:
                after, offset = network[layer + 1]
                active = np.array(pattern)
                visit(layer + 1, after @ (active[:, None] * weights), after @ (active * bias) + offset, inside)

    visit(0, *network[0], [])
    return best


# By a mixed-integer program.


def minimum(network, row, box, time_limit=60.0):
    """The minimum of <row, f> over a box, by a mixed-integer program.

    A unit whose sign the box leaves open has y >= 0, y >= z, y <= upper a, y <= z - lower (1 - a) with a in {0, 1}.

    References:
      Tjeng et al. 2019, arXiv:1711.07356.
    """
    before = intervals(network, *box)
    widths = [len(box[0]), *(len(bias) for _, bias in network[:-1])]
    starts = np.cumsum([0, *widths])
    count = starts[-1] + sum(widths[1:])  # inputs, results of the ReLUs, their binaries
    low, high, integral = np.zeros(count), np.ones(count), np.zeros(count)
    low[: widths[0]], high[: widths[0]] = box
    integral[starts[-1] :] = 1
    constraints = []
    for k, ((weights, bias), (lower, upper)) in enumerate(zip(network[:-1], before, strict=True)):
        here, binary = np.arange(starts[k + 1], starts[k + 2]), np.arange(starts[k + 1], starts[k + 2])
        binary = binary - starts[1] + starts[-1]
        high[here] = np.maximum(upper, 0)
        gap = sparse.lil_matrix((len(bias), count))  # y - weights @ (what comes before), which is bias and more
        gap[:, starts[k] : starts[k + 1]] = -weights
        gap[np.arange(len(bias)), here] = 1
        slope, top = sparse.lil_matrix(gap.shape), sparse.lil_matrix(gap.shape)
        slope[np.arange(len(bias)), binary] = np.minimum(lower, 0)
        top[np.arange(len(bias)), binary] = -np.maximum(upper, 0)
        top[np.arange(len(bias)), here] = 1
        constraints += [
            optimize.LinearConstraint(gap.tocsr(), lb=bias),
            optimize.LinearConstraint((gap - slope).tocsr(), ub=bias - np.minimum(lower, 0)),
            optimize.LinearConstraint(top.tocsr(), ub=0),
        ]
        low[binary], high[binary] = lower >= 0, upper > 0
    weights, bias = network[-1]
    objective = np.zeros(count)
    objective[starts[-2] : starts[-1]] = row @ weights
    found = optimize.milp(
        objective,
        integrality=integral,
        bounds=optimize.Bounds(low, high),
        constraints=constraints,
        options={"time_limit": time_limit, "mip_rel_gap": 0.0},
    )
    if found.x is None:
        raise RuntimeError(f"the solver found no point within {time_limit} s: {found.message}")
    return optimum(network, row, box, found.x[: widths[0]], found.mip_dual_bound + row @ bias)
