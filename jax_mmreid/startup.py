"""How a process of several finds the others: from its flags, from JAX's environment variables, or from its launcher."""

import glob
import importlib.util
import os
import threading
from typing import NamedTuple

import jax

from jax_mmreid.errors import ConfigError, report_error

# Environment variables that say that a launcher has started several processes, or may have.
SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")  # inside srun
OPEN_MPI = ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK")
INDEXED_JOB = ("KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX")
# Of each launcher the variables with the number of a process, and of how many, for messages.
LAUNCHED = {
    "SLURM": ("SLURM_PROCID", "SLURM_NTASKS"),
    "Open MPI": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    "Kubernetes": ("JOB_COMPLETION_INDEX", ""),
    "Cloud TPU": ("TPU_WORKER_ID", ""),
}
LATER = 60  # seconds


class Address(NamedTuple):
    """Where the processes of a run meet, and which of them this one is; what is not given is found out or 1 process."""

    coordinator: str = ""  # host:port of process 0
    num_processes: int = 0
    process_id: int = -1


def initialise(address: Address, timeout: int) -> None:
    """Joins this process to the others of its run, before JAX has touched a device; alone it does nothing.

    What `address` leaves open is taken from JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, then from
    SLURM, Open MPI, Kubernetes or Cloud TPU, as `jax.distributed.initialize` finds it. Raises ConfigError for an
    incomplete address and for a launcher that does not say enough. If not all processes have arrived within `timeout`
    seconds, this one ends with a message and the exit code of a ConfigError.
    """
    address = _from_environment(address)
    if address.num_processes == 1:
        return
    launcher = _launcher()
    if address == Address() and launcher is None:
        return
    given = (bool(address.coordinator), address.num_processes > 0, address.process_id >= 0)
    if not all(given) and (any(given) or launcher is None):
        raise ConfigError(
            f"coordinator={address.coordinator!r}, num_processes={address.num_processes}, "
            f"process_id={address.process_id}: give all three (host:port of process 0, and 0 <= process_id < "
            "num_processes), or none where a launcher knows them"
        )
    if any(given):
        who = f"process {address.process_id} of {address.num_processes} at {address.coordinator}"
    else:
        number, count = (os.environ.get(name, "?") for name in LAUNCHED[launcher])
        who, address = f"process {number} of {count} of {launcher}", Address(None, None, None)
    error = ConfigError(
        f"{who} did not meet the others within {timeout} s; check that all of them run, the address of process 0 and "
        "the firewall, or allow more with --startup_timeout"
    )
    # At a time-out of its own JAX aborts the process with a stack dump, so that comes later.
    timer = threading.Timer(timeout, lambda: os._exit(report_error("jax_mmreid", error)))
    timer.start()
    try:
        jax.distributed.initialize(*address, initialization_timeout=timeout + LATER)
    except (RuntimeError, ValueError) as failure:  # of a launcher whose answer JAX cannot use
        raise ConfigError(f"{who} cannot join the others: {str(failure).splitlines()[0]}") from failure
    finally:
        timer.cancel()


def _from_environment(address: Address) -> Address:
    """What is not given, from JAX's environment variables."""
    read = os.environ.get
    try:
        return Address(
            address.coordinator or read("JAX_COORDINATOR_ADDRESS", ""),
            address.num_processes or int(read("JAX_NUM_PROCESSES", 0)),
            address.process_id if address.process_id >= 0 else int(read("JAX_PROCESS_ID", -1)),
        )
    except ValueError as error:
        raise ConfigError(f"JAX_NUM_PROCESSES and JAX_PROCESS_ID must be whole numbers ({error})") from None


def _launcher() -> str | None:
    """What has started this process beside others and tells JAX how to find them, None if nothing has."""
    has = os.environ.keys()
    if has >= set(SLURM) and int(os.environ["SLURM_NTASKS"]) > 1:
        return "SLURM"
    if has >= set(OPEN_MPI) and int(os.environ["OMPI_COMM_WORLD_SIZE"]) > 1:
        if "OMPI_MCA_orte_hnp_uri" not in has:  # Open MPI 5 no longer says where its first process is
            raise ConfigError("Open MPI does not name the address of process 0; give --coordinator=HOST:PORT, "
                              "--num_processes and --process_id=$OMPI_COMM_WORLD_RANK")  # fmt: skip
        return "Open MPI"
    if importlib.util.find_spec("libtpu") and (glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")):
        return "Cloud TPU"  # on Kubernetes too, where its variables are enough
    if has >= set(INDEXED_JOB):
        if importlib.util.find_spec("kubernetes") is None:
            raise ConfigError(
                "this pod is one of an indexed Kubernetes job, whose others are found with the package kubernetes "
                "(pip install kubernetes); --num_processes=1 runs without them"
            )
        return "Kubernetes"
    return None
