"""Where arrays live: a mesh of ("data", "model"), ordered rules for the state, rows of a batch over "data".

A rule is (regex, axis names): of those whose regex matches a leaf's path the first that divides gives its partition,
and what no rule matches is replicated. Optimizer moments carry the path of their parameter, so one rule serves both.
"""

import math
import re
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jax_mmreid import distributed
from jax_mmreid.batch import Batch
from jax_mmreid.errors import ConfigError

SPLIT_OVER_DATA = ("params", "frozen", "opt_state")  # the fields of a state that FSDP splits


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


def state_sharding(mesh: Mesh, state: Any, rules: tuple[tuple[str, tuple], ...], *, fsdp: int = 0) -> Any:
    """A NamedSharding for every leaf of an abstract state.

    Parameters of at least `fsdp` numbers, and their moments, are split over "data" too, by the largest axis that
    divides and that no rule has split (fully sharded data parallelism; Rajbhandari et al., 2020, "ZeRO"); 0: none.
    Raises ConfigError where a rule has another number of axes than a leaf, or no rule that matches divides.
    """

    def one(path, leaf):
        name = "/".join(_key(k) for k in path)
        axes = _partition(mesh, name, leaf.shape, rules)
        if 0 < fsdp <= math.prod(leaf.shape) and name.partition("/")[0] in SPLIT_OVER_DATA:
            axes = _over_data(mesh, leaf.shape, axes)
        return NamedSharding(mesh, PartitionSpec(*axes))

    return jax.tree_util.tree_map_with_path(one, state)


def _partition(mesh: Mesh, name: str, shape: tuple[int, ...], rules: tuple[tuple[str, tuple], ...]) -> tuple:
    """The axis names of a leaf by the rules."""
    fault = ""
    for axes in [axes for pattern, axes in rules if re.search(pattern, name)]:
        if axes and len(axes) != len(shape):
            raise ConfigError(f"sharding: {name} {shape} has {len(shape)} axes, its rule {axes} has {len(axes)}")
        uneven = [(size, axis) for size, axis in zip(shape, axes) if axis is not None and size % mesh.shape[axis]]
        if not uneven:
            return axes
        size, axis = uneven[0]
        fault = fault or (
            f"sharding: {name} {shape} does not divide over {mesh.shape[axis]} devices of axis {axis!r}; set "
            f"config.mesh.{axis} to a divisor of {size}, or where {size} is the number of identities "
            f"config.model.class_multiple={mesh.shape[axis]}"
        )
    if fault:
        raise ConfigError(fault)
    return ()


def _over_data(mesh: Mesh, shape: tuple[int, ...], axes: tuple) -> tuple:
    """`axes` with "data" on the largest axis that is free and divides, if there is one."""
    axes = [*axes, *[None] * (len(shape) - len(axes))]
    free = [i for i, size in enumerate(shape) if axes[i] is None and size % mesh.shape["data"] == 0]
    if free:
        axes[max(free, key=lambda i: shape[i])] = "data"
    return tuple(axes)


def gathered(params: Any, mesh: Mesh, rules: tuple[tuple[str, tuple], ...]) -> Any:
    """Parameters as the rules alone place them: what `fsdp` has split is together again, in a program or outside one.

    A step computes with these. With its parameters split, the compiler may split features in place of the batch.
    """
    return jax.lax.with_sharding_constraint(params, state_sharding(mesh, params, rules))


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
