"""A workdir with random weights, and the commands that embed and search, for tests of own galleries."""

import jax
from conftest import build, noise, open_tiny
from random_run import write_workdir

from jax_mmreid.tools import embed, search


def write_random_run(folder, config):
    """A workdir with checkpoints of random weights."""
    data = open_tiny(config)
    state = noise(build(config, data, devices=jax.devices()[:1]).abstract)
    state = state.replace(batch_stats=jax.tree.map(abs, state.batch_stats))  # variances are among them
    return write_workdir(folder, config, data, state)


def run(tool, *argv):
    """The exit code of a tool of this name in this process."""
    return {"embed": embed, "search": search}[tool].main([str(x) for x in argv])


def refused(capsys, tool, *argv):
    """(exit code, the complaint), which is the last line on standard error and begins with the tool's name."""
    code = run(tool, *argv)
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith(f"{tool}: ") and not any(line.startswith(f"{tool}: ") for line in lines[:-1])
    return code, lines[-1]
