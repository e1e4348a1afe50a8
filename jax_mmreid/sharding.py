"""Where arrays live: a mesh of ("data", "model"), ordered rules for the state, rows of a batch over "data".

A rule is (regex, axis names): the first regex that matches a leaf's path gives its partition, and what no rule
matches is replicated. Optimizer moments carry the path of their parameter, so one rule serves both.
"""

import re
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jax_mmreid import distributed
from jax_mmreid.batch import Batch
from jax_mmreid.errors import ConfigError


def make_mesh(*, data: int, model: int, devices: list | None = None) -> Mesh:
    """A mesh of the first data x model devices; -1 for `data` takes all there are.

    Devices are placed so that the axis "model", which communicates most, has the shortest ways; of several slices, each
    holds whole parts of the axis "data". Raises ConfigError if there are too few devices.
    """
    devices = jax.devices() if devices is None else devices
    data = len(devices) // model if data == -1 else data
    used = data * model
    # A process without a device in the mesh would have nothing to do, so several processes use all they have.
    if not 0 < used <= len(devices) or (distributed.is_multiprocess() and used != len(devices)):
        raise ConfigError(f"mesh of data={data} x model={model} does not fit {len(devices)} devices")
    slices = len({getattr(device, "slice_index", 0) for device in devices[:used]})
    if slices > 1 and data % slices:
        raise ConfigError(f"mesh of data={data} does not divide over {slices} slices; choose a multiple for mesh.data")
    if slices > 1:
        placed = mesh_utils.create_hybrid_device_mesh((data // slices, model), (slices, 1), devices[:used])
    else:
        placed = mesh_utils.create_device_mesh((data, model), devices[:used])
    return Mesh(placed, ("data", "model"))


def state_sharding(mesh: Mesh, state: Any, rules: tuple[tuple[str, tuple], ...]) -> Any:
    """A NamedSharding for every leaf of an abstract state; raises ConfigError where a rule does not fit."""

    def one(path, leaf):
        name = "/".join(_key(k) for k in path)
        axes = next((axes for pattern, axes in rules if re.search(pattern, name)), ())
        if axes and len(axes) != leaf.ndim:
            raise ConfigError(f"sharding: {name} {leaf.shape} has {leaf.ndim} axes, its rule {axes} has {len(axes)}")
        for size, axis in zip(leaf.shape, axes):
            if axis is not None and size % mesh.shape[axis]:
                raise ConfigError(
                    f"sharding: {name} {leaf.shape} does not divide over {mesh.shape[axis]} devices of axis {axis!r}"
                )
        return NamedSharding(mesh, PartitionSpec(*axes))

    return jax.tree_util.tree_map_with_path(one, state)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def to_global(batch: Batch, mesh: Mesh) -> Batch:
    """This process's rows of a host batch as global arrays, rows over the "data" axis."""
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    with jax.transfer_guard("allow"):  # a deliberate transfer, which with several processes does not count as one
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def _key(entry: Any) -> str:
    return str(next(getattr(entry, field) for field in ("key", "name", "idx") if hasattr(entry, field)))
