"""Primitives that move, copy, select or cast elements: all linear with nonnegative weights."""

from jaxbound.rules.discrete import CONVERTED
from jaxbound.rules.indexing import GATHERED, SLICED
from jaxbound.rules.registry import Linear, refuse, register
from jaxbound.rules.selection import SELECTED

# Every result reads one element, and where one operand is a set none of its elements is read twice.
for _name in "reshape transpose squeeze expand_dims rev slice copy copy_p split unstack".split():
    register(_name, Linear((0,), carries=True, moves=True))
for _name in "stop_gradient sharding_constraint pvary pcast mesh_cast reshard device_put concatenate stack".split():
    register(_name, Linear(carries=True, moves=True))
register("optimization_barrier", Linear(moves=True))
register("dynamic_slice", Linear((0,), carries=True, moves=True), SLICED)
register("convert_element_type", Linear((0,), carries=True), CONVERTED)

# Elements may be read more than once.
register("broadcast_in_dim", Linear((0,), moves=True))
register("gather", Linear((0,), offset=True, moves=True), GATHERED)
register("tile", Linear((0,), moves=True))
register("pad", Linear((0, 1), moves=True))
register("dynamic_update_slice", Linear((0, 1), moves=True))
register("scatter", Linear((0, 2), moves=True))
register("scatter-add", Linear((0, 2)))
register("scatter_add", Linear((0, 2)))
register("select_n", Linear(tuple(range(1, 64)), offset=True, moves=True), *SELECTED)

# What has no rule, and why.
refuse(
    "cholesky lu lu_pivots_to_permutation qr householder_product geqrf eigh eig svd schur hessenberg triangular_solve "
    "tridiagonal tridiagonal_solve custom_linear_solve custom_root",
    "solving and factorising with matrices that depend on a set is not supported.",
)
refuse(
    "random_bits random_seed random_wrap random_unwrap random_fold_in random_split threefry2x32 rng_bit_generator "
    "rng_uniform",
    "random numbers have no bounds when their seed or range depends on a set. Draw them outside of the function and "
    "pass them as an argument.",
)
refuse(
    "fft real imag complex conj", "complex numbers have no order, so no bounds. Write the function with real numbers."
)
refuse(
    "pure_callback io_callback debug_callback python_callback",
    "it leaves JAX, which cannot see what happens there.",
)
