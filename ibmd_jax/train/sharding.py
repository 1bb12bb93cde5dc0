"""Where arrays live: one mesh over all devices, batches split over it, states by one rule over the whole tree."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ibmd_jax.core.errors import UserError
from ibmd_jax.core.types import Params


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of one axis, "data", over the devices given, or all; one device is a mesh of one.

    Those of process p come in the p-th place: it reads the p-th part of a batch. jax.make_mesh does not keep to that
    on TPU slices, where it looks for a ring.
    """
    found = sorted(devices or jax.devices(), key=lambda d: (d.process_index, d.id))
    return Mesh(np.array(found), ("data",), axis_types=(AxisType.Auto,))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Examples split over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def state_sharding(mesh: Mesh, tree: Params, min_size: int) -> Params:
    """A sharding for every leaf: large leaves split on their largest divisible axis (FSDP), the others replicated.

    Args: tree: arrays or ShapeDtypeStructs. min_size: leaves with fewer elements are replicated.
    """

    def rule(leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        divisible = [axis for axis, n in enumerate(leaf.shape) if n % mesh.size == 0]
        if mesh.size == 1 or leaf.size < min_size or not divisible:
            return NamedSharding(mesh, PartitionSpec())
        axis = max(divisible, key=lambda i: leaf.shape[i])
        return NamedSharding(mesh, PartitionSpec(*(None,) * axis, "data"))

    return jax.tree.map(rule, tree)


def abstract_state(mesh: Mesh, min_size: int, init: Callable[..., Params], *args: Any) -> Params:
    """Shapes, dtypes and shardings of init(*args), without computing it."""
    shapes = jax.eval_shape(init, *args)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, state_sharding(mesh, shapes, min_size)
    )


def check_divisible(name: str, batch_size: int, mesh: Mesh, parts: int = 1) -> None:
    """Raises UserError unless batch_size examples make `parts` microbatches that split evenly over the mesh."""
    unit = mesh.size * parts
    if batch_size % unit:
        lower, upper = batch_size - batch_size % unit, batch_size + -batch_size % unit
        parted = f" in {parts} parts (accumulate)" if parts > 1 else ""
        fitting = f"{lower} or {upper}" if lower else upper
        raise UserError(f"{name} = {batch_size} does not divide over {mesh.size} devices{parted}: use {fitting}")
