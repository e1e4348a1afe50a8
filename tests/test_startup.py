"""Law: a process joins the others that its flags, JAX's variables or its launcher name, or says what is missing."""

import glob
import importlib.util
import subprocess
import sys

import jax
import pytest
from pair import ENVIRONMENT, ROOT

from jax_mmreid import startup
from jax_mmreid.errors import ConfigError
from jax_mmreid.startup import Address

SLURM = dict(zip(startup.SLURM, ("7", "node[1-2]", "2", "1", "0")))
OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}
URI = {"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1:34911"}
POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}
JAX = {"JAX_COORDINATOR_ADDRESS": "head:1234", "JAX_NUM_PROCESSES": "3", "JAX_PROCESS_ID": "2"}


@pytest.fixture
def joined(monkeypatch):
    """A function of environment variables and an address: what `jax.distributed.initialize` is called with, or None."""
    for name in (*startup.SLURM, *startup.OPEN_MPI, *startup.INDEXED_JOB, *URI, *JAX):
        monkeypatch.delenv(name, raising=False)

    def join(variables, address=Address(), packages=()):  # noqa: B008
        calls = []
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            patch.setattr(jax.distributed, "initialize", lambda *given, **_: calls.append(given))
            patch.setattr(glob, "glob", lambda pattern: [pattern])
            patch.setattr(importlib.util, "find_spec", lambda name: name in packages or None)
            startup.initialise(address, timeout=60)
        assert len(calls) < 2
        return calls[0] if calls else None

    return join


FOUND_BY_JAX = (None, None, None)


@pytest.mark.parametrize(
    ("variables", "address", "packages", "want"),
    [
        ({}, Address(), (), None),
        ({}, Address("head:1", 2, 0), (), ("head:1", 2, 0)),
        (JAX, Address(), (), ("head:1234", 3, 2)),
        (JAX, Address(process_id=1), (), ("head:1234", 3, 1)),
        (SLURM, Address(), (), FOUND_BY_JAX),
        (SLURM, Address(num_processes=1), (), None),
        (SLURM | {"SLURM_NTASKS": "1"}, Address(), (), None),
        ({key: x for key, x in SLURM.items() if key != "SLURM_STEP_NODELIST"}, Address(), (), None),  # outside srun
        (OPEN_MPI | URI, Address(), (), FOUND_BY_JAX),
        (POD, Address(), ("kubernetes",), FOUND_BY_JAX),
        (POD, Address(num_processes=1), (), None),
        ({}, Address(), ("libtpu",), FOUND_BY_JAX),
        (POD, Address(), ("libtpu",), FOUND_BY_JAX),
    ],
)
def test_a_process_joins_whom_it_should(joined, variables, address, packages, want):
    assert joined(variables, address, packages) == want


@pytest.mark.parametrize(
    ("variables", "address", "message"),
    [
        ({}, Address("head:1", 2), "process_id=-1: give all three"),
        ({}, Address(process_id=1), "coordinator='', num_processes=0, process_id=1: give all three"),
        (JAX | {"JAX_PROCESS_ID": "two"}, Address(), "must be whole numbers"),
        (OPEN_MPI, Address(), "Open MPI does not name the address of process 0; give --coordinator"),
        (POD, Address(), r"pip install kubernetes\); --num_processes=1 runs without"),
    ],
)
def test_what_is_missing_is_named(joined, variables, address, message):
    with pytest.raises(ConfigError, match=message):
        joined(variables, address)


@pytest.mark.parametrize("number", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_process_that_stays_alone_names_itself_and_the_address(number, tmp_path, port):
    given = f"--coordinator=127.0.0.1:{port}", "--num_processes=2", f"--process_id={number}", "--startup_timeout=1"
    config = f"--config={ROOT}/configs/quickstart.py", f"--workdir={tmp_path}/run"
    command = [sys.executable, "-m", "jax_mmreid.main", *config, *given]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stdout == "" and "Traceback" not in done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith(f"jax_mmreid: process {number} of 2 at 127.0.0.1:{port} did not meet the others within 1 s;")
