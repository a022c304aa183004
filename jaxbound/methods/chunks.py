"""Rows of linear bounds in chunks, which bounds the memory, and spread over devices, which divides it."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Chunks(NamedTuple):
    """How many rows go backwards at once (None: all of them), and over which devices they are spread (None: one).

    With `again`, derivatives compute a chunk a second time rather than keep what each left behind.
    """

    size: int | None = None
    sharding: jax.sharding.NamedSharding | None = None
    again: bool = False

    def map(self, bound: Callable[[Any], Any], rows: Any) -> Any:
        """`bound(rows)`, a chunk at a time; both have the rows as their leading axis."""
        at_once, count = functools.partial(self._at_once, jax.checkpoint(bound) if self.again else bound), _count(rows)
        size = min(self.size or count, count)
        if size == count:
            return at_once(rows)
        whole = count - count % size
        chunks = jax.tree.map(lambda x: x[:whole].reshape(-1, size, *x.shape[1:]), rows)
        found = jax.tree.map(lambda x: x.reshape(whole, *x.shape[2:]), jax.lax.map(at_once, chunks))
        if whole == count:
            return found
        rest = at_once(jax.tree.map(lambda x: x[whole:], rows))
        return jax.tree.map(lambda *parts: jnp.concatenate(parts), found, rest)

    def map_some(self, bound: Callable[[Any], Any], rows: Any, needed: Any) -> Any:
        """The same for the rows that are marked, in as few chunks as hold them; -inf for (most) others."""
        at_once, count = functools.partial(self._at_once, bound), _count(rows)
        size = min(self.size or count, count)
        order = jnp.argsort(jnp.logical_not(needed), stable=True)
        order = jnp.concatenate([order, jnp.repeat(order[-1:], -count % size)])

        def chunk(start: Any) -> tuple[Any, Any]:
            index = jax.lax.dynamic_slice(order, (start,), (size,))
            return index, at_once(jax.tree.map(lambda x: x[index], rows))

        def step(state: tuple[Any, Any]) -> tuple[Any, Any]:
            index, values = chunk(state[0])
            return state[0] + size, jax.tree.map(lambda x, new: x.at[index].set(new), state[1], values)

        _, like = jax.eval_shape(chunk, jnp.zeros((), int))
        nothing = jax.tree.map(lambda x: jnp.full((count, *x.shape[1:]), -jnp.inf, x.dtype), like)
        return jax.lax.while_loop(lambda state: state[0] < needed.sum(), step, (jnp.zeros((), int), nothing))[1]

    def blocks(self, rows: int, copies: int) -> tuple[int, "Chunks"]:
        """How many of some rows, of each of which there are copies, to bound as one block, and chunks of such blocks.

        A chunk holds as many rows as before, or the copies of one; every device has a block of it where possible.
        """
        most = rows if self.size is None else max(1, self.size // (copies * self._devices()))
        size = -(-rows // -(-rows // most))
        return size, self.of(copies * size)

    def of(self, rows: int) -> "Chunks":
        """Chunks of what is so many rows each."""
        return self._replace(size=None if self.size is None else max(1, self.size // rows))

    def _devices(self) -> int:
        """Over how many devices rows are spread."""
        if self.sharding is None:
            return 1
        return math.prod(self.sharding.mesh.shape[name] for name in jax.tree.leaves(tuple(self.sharding.spec)))

    def _at_once(self, bound: Callable[[Any], Any], rows: Any) -> Any:
        """Bounds the rows of one chunk, each device its share; the last row is repeated until all have the same."""
        if self.sharding is None:
            return bound(rows)
        mesh, spec = self.sharding.mesh, self.sharding.spec
        axes, count = jax.tree.leaves(tuple(spec)), _count(rows)
        missing = -count % self._devices()
        filled = jax.tree.map(lambda x: jnp.concatenate([x, jnp.repeat(x[-1:], missing, axis=0)]), rows)
        # Rows vary over the devices, all else is the same on each: there is nothing for JAX to check.
        spread = jax.shard_map(
            bound, mesh=mesh, in_specs=spec, out_specs=spec, axis_names=frozenset(axes), check_vma=False
        )
        return jax.tree.map(lambda x: x[:count], jax.jit(spread)(filled))


WHOLE = Chunks()


def chunks(size: int | None, sharding: Any = None) -> Chunks:
    """The chunks that a user asked for.

    Raises:
      TypeError, ValueError: a size below 1, or a sharding that does not spread rows.
    """
    if size is not None and size < 1:
        raise ValueError(f"chunk must be at least 1, got {size}")
    if sharding is None:
        return Chunks(size)
    if not isinstance(sharding, jax.sharding.NamedSharding):
        raise TypeError(
            f"sharding must be a jax.sharding.NamedSharding, which tells the mesh, got {type(sharding).__name__}"
        )
    if len(sharding.spec) != 1 or not jax.tree.leaves(tuple(sharding.spec)):
        raise ValueError(
            "sharding spreads rows, which are one axis: its PartitionSpec must name the mesh's axis (or a tuple of "
            f"axes) for that, as PartitionSpec('model') does, got {sharding.spec}"
        )
    types = dict(zip(sharding.mesh.axis_names, sharding.mesh.axis_types, strict=True))
    if any(types[name] != jax.sharding.AxisType.Auto for name in jax.tree.leaves(tuple(sharding.spec))):
        raise ValueError(
            "sharding needs a mesh whose axes XLA may use as it likes: "
            "jax.make_mesh(..., axis_types=(jax.sharding.AxisType.Auto,)), with one Auto for each axis"
        )
    return Chunks(size, sharding)


def _count(rows: Any) -> int:
    return len(jax.tree.leaves(rows)[0])
