"""Equality: two processes with four devices each do what one process with eight does, and one with one."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import open_tiny, start, tiny_clip_config, tiny_config, tiny_tvi_config
from flax import traverse_util
from watched import few

from jax_mmreid import distributed, evaluate, sharding, train
from jax_mmreid.weights import files

START = """
import sys
import jax
index, count, port, *given = sys.argv[1:]
if int(count) > 1:
    jax.distributed.initialize(f"127.0.0.1:{port}", int(count), int(index))
"""
RUN = """
make, folder, workdir, init, cases, order = given
import json
import conftest, test_processes, watched
make = getattr(watched if make == "few" else conftest, make)
test_processes.place_devices(order)
for name, changes in json.loads(cases).items():
    test_processes.train_and_evaluate(make, folder, f"{workdir}/{name}", init, changes)
"""

RANK = """
import json
import numpy as np
(out,) = given
from brute import people
from jax_mmreid.metrics import device_ranking
from jax_mmreid.sharding import make_mesh
problem, mesh = people(0, 300, 2501), make_mesh(data=-1, model=1)
found = device_ranking.rank(*problem, mesh) | {"hits": device_ranking.ranks(*problem, mesh).hits}
with open(f"{out}-{index}", "w") as file:
    json.dump({"devices": mesh.size} | {key: np.asarray(x).tolist() for key, x in found.items()}, file)
"""
EVALUATE = """
folder, workdir, init, order = given
import test_processes
from conftest import tiny_config
from jax_mmreid import evaluate
from jax_mmreid.recipes.miss_reid import Evaluation
test_processes.place_devices(order)
config = tiny_config(folder, **{"mesh.data": -1, "init": init})
with config.unlocked():
    rows = Evaluation(pairs=True, robustness=True).rows(config.data.modalities, has_text=False)
    damaged = ("robustness/nir/frozen", "robustness/swapped/rgb+tir")  # one damage takes as long as another
    config.evals.update({name: row for name, row in rows.items() if "robustness" not in name or name in damaged})
data = test_processes.open_share(config)
evaluate.evaluate(config, workdir, data, step="init")
"""


def run(script, count, port, *given, devices=8, flags=""):
    """Runs a script by `count` processes that share so many virtual devices; `flags` are further ones of XLA."""
    flags = f"{flags} --xla_force_host_platform_device_count={devices // count}"  # the last of equal flags counts
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parent.parent)])
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path}
    environment |= {"JAX_COMPILATION_CACHE_DIR": ""} if count > 1 else {}
    command = [sys.executable, "-c", START + script]
    given = list(map(str, given))
    processes = [
        subprocess.Popen([*command, str(i), str(count), str(port), *given], env=environment) for i in range(count)
    ]
    try:
        assert [process.wait(timeout=300) for process in processes] == [0] * count
    finally:
        for process in processes:
            process.kill()


def random_weights(config, file):
    """A file of the weights that the config starts with."""
    variables = start(config, jax.devices())[2].variables
    weights = traverse_util.flatten_dict({name: variables[name] for name in ("params", "batch_stats")}, sep="/")
    files.export(file, weights, "jax_mmreid")
    return file


@pytest.mark.slow
def test_ranks_are_the_same_to_the_last_on_any_devices_and_processes(tmp_path, port):
    found = []
    for count, devices in ((1, 1), (1, 8), (2, 8)):
        run(RANK, count, port, tmp_path / f"{count}x{devices}", devices=devices)
        found += [json.loads((tmp_path / f"{count}x{devices}-{i}").read_text()) for i in range(count)]
    assert [one.pop("devices") for one in found] == [1, 8, 8, 8]
    assert found[0] == found[1] == found[2] == found[3] and 0 < found[0]["mAP"] < 1


@pytest.mark.slow
def test_tables_are_the_same_on_any_devices_and_processes(tmp_path, port, drawn):
    """A test split of 30 rows, which eight devices cannot share evenly."""
    init = random_weights(tiny_config(drawn, seed=2), tmp_path / "init.safetensors")
    tables, results = [], []
    for count, devices, order in ((1, 1, "data"), (1, 8, "data"), (2, 8, "data"), (2, 8, "mixed")):
        workdir = tmp_path / f"{count}x{devices}{order}"
        run(EVALUATE, count, port, drawn, workdir, init, order, devices=devices)
        tables.append((workdir / "results_init.md").read_text())
        results.append(json.loads((workdir / "results_init.json").read_text())["evals"])
    assert tables[0] == tables[1] == tables[2] == tables[3] and "common/pairs: mAP" in tables[0]
    assert results[0] == results[1] == results[2] == results[3] and len(results[0]) == 8 + 8 + 2 * 49 + 2 + 2


def place_devices(order):
    """How the devices of two processes lie in every mesh [data,model].

    "data": a process has whole rows of it; "model": whole columns, so that both processes have all of the batch;
    "mixed": rows of the one and of the other in turn.
    """

    def create(shape, devices):
        if order == "model":
            return np.asarray(devices).reshape(shape[::-1]).T
        mixed = np.asarray(devices).reshape(2, -1).T if order == "mixed" and len(devices) > 1 else np.asarray(devices)
        return mixed.reshape(shape)

    sharding.mesh_utils.create_device_mesh = create


def open_share(config):
    """The data of a config, of which this process reads its share."""
    return open_tiny(config, distributed.share(lambda: sharding.make_mesh(**config.mesh)))


def train_and_evaluate(make, folder, workdir, init, changes):
    """Two epochs with an evaluation after each, or what `changes` say, and then `evaluate`."""
    common = {"data.instances": 4, "eval_every": 1, "epochs": 2, "optim.eps": 1e-3, "init": str(init)}
    config = make(folder, **common | changes)
    config.missing.eta = (0.0 if make is tiny_tvi_config else 0.3,) * len(config.data.modalities)
    data = open_share(config)
    train.train(config, workdir, data)
    evaluate.evaluate(config, workdir, data)


def assert_two_processes_equal_one(make, folder, tmp_path, port, changes, *meshes, order="data"):
    """Trains and evaluates from the same weights on meshes (data, model), here and by two processes."""
    cases = {f"{data}x{model}": {"mesh.data": data, "mesh.model": model} | changes for data, model in meshes}
    init = random_weights(make(folder, seed=2, **next(iter(cases.values()))), tmp_path / "init.safetensors")
    for name, case in cases.items():
        train_and_evaluate(make, folder, tmp_path / "1" / name, init, case)
    given = make.__name__, folder, tmp_path / "2", init, json.dumps(cases), order
    run(RUN, 2, port, *given, devices=math.prod(meshes[0]), flags=os.environ["XLA_FLAGS"])
    for name in cases:
        assert_same_run(*(tmp_path / count / name for count in "12"))


def assert_same_run(first, second):
    one, two = (json.loads((workdir / "results.json").read_text()) for workdir in (first, second))
    assert one["config_hash"] == two["config_hash"]
    for name, row in one["evals"].items():
        assert row == pytest.approx(two["evals"][name], abs=1e-6), name
    lines = [(workdir / "metrics.jsonl").read_text().splitlines() for workdir in (first, second)]
    assert len(lines[0]) == len(lines[1])
    for a, b in zip(*map(lambda part: map(json.loads, part), lines)):
        a, b = ({k: v for k, v in x.items() if k != "samples_per_second"} for x in (a, b))
        assert a == pytest.approx(b, rel=1e-3, abs=1e-3)


def test_two_processes_equal_one_in_small(tmp_path, port, drawn):
    """Row A with one layer, two modalities and two rows of evaluation: what the default run can afford.

    With data=1 both processes have the whole batch, each for its part of the matrices.
    """
    changes = {"modalities": "rgb/tir", "epochs": 1, "eval_every": 0, "model.image.layers": 1}
    assert_two_processes_equal_one(few, drawn, tmp_path, port, changes, (2, 1), (1, 2))


MESHES = [
    pytest.param(tiny_config, (8, 1), "data", id="miss_reid"),
    pytest.param(tiny_config, (4, 2), "model", id="miss_reid by columns", marks=pytest.mark.exhaustive),
    pytest.param(tiny_config, (4, 2), "mixed", id="miss_reid mixed", marks=pytest.mark.exhaustive),
    pytest.param(tiny_tvi_config, (4, 2), "model", id="tvi_lfm by columns"),
    pytest.param(tiny_clip_config, (8, 1), "mixed", id="clip mixed"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("make", "mesh", "order"), MESHES)
def test_two_processes_equal_one(request, tmp_path, port, make, mesh, order):
    folder = request.getfixturevalue("drawn_sysu" if make is tiny_tvi_config else "drawn")
    assert_two_processes_equal_one(make, folder, tmp_path, port, {}, mesh, order=order)
