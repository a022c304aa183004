"""Primitives that move, copy, select or cast elements: all linear with nonnegative weights."""

from jaxbound.rules.registry import Linear, refuse, register

# Every result reads one element, and where one operand is a set none of its elements is read twice.
for _name in "reshape transpose squeeze expand_dims rev slice copy copy_p".split():
    register(_name, Linear((0,), carries=True))
for _name in "stop_gradient sharding_constraint pvary pcast mesh_cast reshard device_put concatenate stack".split():
    register(_name, Linear(carries=True))
register("optimization_barrier", Linear())
register("split", Linear((0,), carries=True))
register("unstack", Linear((0,), carries=True))
register("dynamic_slice", Linear((0,), carries=True))
register("convert_element_type", Linear((0,), carries=True))

# Elements may be read more than once.
register("broadcast_in_dim", Linear((0,)))
register("gather", Linear((0,), offset=True))
register("tile", Linear((0,)))
register("pad", Linear((0, 1)))
register("dynamic_update_slice", Linear((0, 1)))
register("scatter", Linear((0, 2)))
register("scatter-add", Linear((0, 2)))
register("scatter_add", Linear((0, 2)))
register("select_n", Linear(tuple(range(1, 64)), offset=True))

refuse(
    "eq ne ge gt le lt argmax argmin is_finite not and or xor",
    "its result is a decision, which has no bounds on a set of inputs. Write the function without comparing values "
    "that depend on the set (jnp.maximum, jnp.minimum, jnp.clip, jnp.abs and the activations of jax.nn are supported).",
)
refuse("sort top_k", "sorting values that depend on a set is not supported.")
refuse(
    "while",
    "a loop whose number of steps is not fixed, or one carrying a set, cannot be bounded: use a loop with "
    "a fixed number of steps (jax.lax.scan, or jax.lax.fori_loop with constant bounds).",
)
refuse(
    "cond",
    "branches (jax.lax.cond, jax.lax.switch) are not supported. Choose by an `if` of Python, or compute both and "
    "choose by jnp.where with a predicate that does not depend on the set.",
)
