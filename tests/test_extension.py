"""Law: a method, a dataset, an evaluator and a modality are added in the files that docs/contributing.md names.

All four are added at once in a copy of the packages: new files, and one line in the table of modalities. The run that
the new config describes trains, evaluates and gives its result.
"""

import filecmp
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import FAST_COMPILATION

ROOT = Path(__file__).parent.parent

METHOD = '''
"""A linear map of the mean colour of every modality, trained by cross-entropy."""

import dataclasses

import jax
import jax.numpy as jnp

from jax_mmreid.losses.identity import cross_entropy
from jax_mmreid.methods import LossOut, Method
from jax_mmreid.ops import masked

RANGES = {"dim": "[1, inf)"}


@dataclasses.dataclass(frozen=True)
class Config:
    dim: int


@dataclasses.dataclass(frozen=True)
class Linear(Method):
    modalities: tuple
    classes: int
    dim: int

    def init(self, rng, batch):
        kernels = {"kernel": (3 * len(self.modalities), self.dim), "classifier": (self.dim, self.classes)}
        params = {name: jax.random.normal(rng, shape) / shape[0] for name, shape in kernels.items()}
        return {"params": params, "batch_stats": {}, "memory": {}}

    def loss(self, params, state, batch, rngs):
        logits = self._feats(params, batch) @ params["classifier"]
        return LossOut({"identity": cross_entropy(logits, batch["label"]).mean()}, {}, {})

    def encode(self, variables, batch):
        return {"feats": self._feats(variables["params"], batch)}

    def embed(self, variables, features, use):
        return masked.unit(features["feats"])

    def _feats(self, params, batch):
        blanked = [masked.blank(batch["images"][m], batch["present"][m]) for m in self.modalities]
        return jnp.concatenate([x.mean((1, 2)) for x in blanked], axis=1) @ params["kernel"]


def create(spec, config, tokenize=None):
    return Linear(tuple(spec.modalities), len(spec.pids), config.dim)
'''
RECIPE = """
from jax_mmreid.config import base_config


def linear(dataset):
    config = base_config(method="linear", dataset=dataset)
    config.epochs = 1
    config.model = dict(dim=5)
    config.weights = dict(identity=1.0)
    config.optim.update(rules=((r".*", "all"),), lr=dict(all=1e-2))
    config.optim.schedule = dict(kind="cosine", warmup=0, reference=1e-2)
    config.phases = ((0, {}, ("all",)),)
    return config
"""
CONFIG = """
from jax_mmreid.recipes.linear import linear


def get_config(arg=""):
    config = linear("noise")
    config.data.update(data_dir=arg, modalities=("rgb", "uv"), image_size=(16, 8), identities=3, instances=2)
    config.data.update(eval_batch_size=8, threads=0)
    config.missing.eta, config.aug.pad, config.eval_every = (0.0, 0.0), 1, 0
    side = dict(split="test", use=("rgb", "uv"))
    config.evals.full = dict(query=side, gallery=side, junk="none")
    config.evals.lengths = dict(kind="lengths", split="test", use=("uv",))
    config.best = "full/mAP"
    return config
"""
DATASET = '''
"""Pictures of noise, drawn on first use: DATA_DIR/{train,test}/{rgb,uv}/PID_NUMBER.png."""

import os

import numpy as np
from PIL import Image

from input_pipeline.records import Counts, Records


def load(data_dir, *, modalities, allow_missing_files):
    rng = np.random.default_rng(0)
    return {split: _split(os.path.join(data_dir, split), modalities, rng) for split in ("train", "test")}


def counts(data_dir, *, modalities):
    return {"train": Counts(4, (0,), 12)}


def _split(root, modalities, rng):
    names = [f"{pid}_{number}.png" for pid in range(4) for number in range(3)]
    for m in modalities:
        os.makedirs(os.path.join(root, m), exist_ok=True)
        for name in names:
            pixels = rng.integers(0, 256, (16, 8, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(os.path.join(root, m, name))
    pid = np.array([int(name[0]) for name in names], np.int32)
    paths = {m: np.array([f"{m}/{name}" for name in names]) for m in modalities}
    return Records(root=root, paths=paths, pid=pid, camid=0 * pid, view=0 * pid)
'''
EVALUATOR = '''
"""The mean length of the vectors of a split, which is 1."""

import numpy as np

from jax_mmreid.evaluators import Evaluator, check_use


class Lengths(Evaluator):
    COLUMNS = {"length": "length"}

    def check(self, data):
        self.check_keys(("split", "use"))
        check_use(self.row["split"], self.row["use"], data)

    def uses(self):
        return [(self.row["split"], tuple(self.row["use"]))]

    def run(self, encoder):
        found = encoder.fetch(encoder.vectors(self.row["split"], tuple(self.row["use"]), {}))
        length = float(np.linalg.norm(found, axis=1).mean())
        return {"length": length, "protocol": "split test", "feature": "uv"}
'''
NEW_FILES = {
    "jax_mmreid/methods/linear.py": METHOD,
    "jax_mmreid/recipes/linear.py": RECIPE,
    "configs/linear.py": CONFIG,
    "input_pipeline/datasets/noise.py": DATASET,
    "jax_mmreid/evaluators/lengths.py": EVALUATOR,
}
TABLE = "jax_mmreid/batch.py"  # of the modalities
ENTRY = '    "tir": Modality("t", "tir"),\n'


def changed_files(copy):
    """Files below `copy` that the project does not have as they are there."""
    found = [path.relative_to(copy) for path in copy.rglob("*.py")]
    return {str(x) for x in found if not (ROOT / x).exists() or not filecmp.cmp(ROOT / x, copy / x, shallow=False)}


@pytest.mark.slow
def test_a_third_of_each_needs_no_other_file(tmp_path):
    for folder in ("jax_mmreid", "input_pipeline", "configs"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in NEW_FILES.items():
        (tmp_path / name).write_text(text.lstrip())
    table = (tmp_path / TABLE).read_text()
    assert table.count(ENTRY) == 1
    (tmp_path / TABLE).write_text(table.replace(ENTRY, ENTRY + '    "uv": Modality("u"),\n'))
    assert changed_files(tmp_path) == {*NEW_FILES, TABLE}

    env = os.environ | {"PYTHONPATH": str(tmp_path), "XLA_FLAGS": FAST_COMPILATION}
    command = [sys.executable, "-m", "jax_mmreid.main", f"--config=configs/linear.py:{tmp_path}/data", "--workdir=run"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert abs(results["evals"]["lengths"]["length"] - 1) < 1e-6 and 0 < results["evals"]["full"]["mAP"] <= 1
    assert "| lengths | 100.0 |" in done.stdout
    assert json.loads((tmp_path / "run" / "data_spec.json").read_text())["modalities"] == ["rgb", "uv"]
