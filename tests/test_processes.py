"""Equality: two processes with four devices each train and evaluate to what one process with eight does."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import start, tiny_clip_config, tiny_config, tiny_tvi_config
from flax import traverse_util

from jax_mmreid.models import pretrained

RUN = """
import sys
import jax
index, count, port, method, folder, workdir, init = sys.argv[1:]
if int(count) > 1:
    jax.distributed.initialize(f"127.0.0.1:{port}", int(count), int(index))
import conftest
from conftest import open_tiny
from jax_mmreid import evaluate, train
changes = {"mesh.data": -1, "data.instances": 4, "eval_every": 1, "epochs": 2, "optim.eps": 1e-3, "init": init}
config = getattr(conftest, method)(folder, **changes)
config.missing.eta = (0.3,) * 3 if len(config.data.modalities) == 3 else (0.0,) * 2
data = open_tiny(config, (jax.process_index(), jax.process_count()))
train.train(config, workdir, data)
evaluate.evaluate(config, workdir, data)
"""


def run(method, folder, workdir, count, port, init):
    """results.json of a run by `count` processes that share eight virtual devices."""
    flags = f"--xla_force_host_platform_device_count={8 // count}"
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parent.parent)])
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path}
    command = [sys.executable, "-c", RUN]
    given = (method, str(folder), str(workdir), str(init))
    processes = [
        subprocess.Popen([*command, str(i), str(count), str(port), *given], env=environment) for i in range(count)
    ]
    try:
        assert [process.wait(timeout=300) for process in processes] == [0] * count
    finally:
        for process in processes:
            process.kill()
    return json.loads((workdir / "results.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("make", [tiny_config, tiny_tvi_config, tiny_clip_config])
def test_two_processes_equal_one(request, tmp_path, make):
    folder = request.getfixturevalue("drawn_sysu" if make is tiny_tvi_config else "drawn")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = start(make(folder, seed=2))[2].variables
    weights = traverse_util.flatten_dict({name: variables[name] for name in ("params", "batch_stats")}, sep="/")
    pretrained.export(tmp_path / "init.safetensors", weights, "jax_mmreid")
    init = tmp_path / "init.safetensors"
    one, two = (run(make.__name__, folder, tmp_path / str(count), count, port, init) for count in (1, 2))
    assert one["config_hash"] == two["config_hash"]
    for name, row in one["evals"].items():
        assert row == pytest.approx(two["evals"][name], abs=1e-6), name
    lines = [(tmp_path / str(count) / "metrics.jsonl").read_text().splitlines() for count in (1, 2)]
    assert len(lines[0]) == len(lines[1])
    for a, b in zip(*map(lambda part: map(json.loads, part), lines)):
        a, b = ({k: v for k, v in x.items() if k != "samples_per_second"} for x in (a, b))
        assert a == pytest.approx(b, rel=1e-3, abs=1e-3)
