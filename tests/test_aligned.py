"""Story: towers trained on pictures and captions, and Miss-ReID that starts from them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jax_mmreid.metrics import ranking

ROOT = Path(__file__).parent.parent


def chance(identities=32, cameras=4, pictures=2):
    """The mAP of random distances on the quickstart's test identities."""
    pid = np.repeat(np.arange(identities), cameras * pictures)
    rows = {"pid": pid, "camid": np.tile(np.repeat(np.arange(cameras), pictures), identities)}
    dist = np.random.default_rng(0).random((len(pid), len(pid)))
    return ranking.rank(dist, ranking.relevance("same_camera", rows, rows))["mAP"]


@pytest.mark.slow
def test_aligned_towers_and_text_features_retrieve_identities(tmp_path):
    line = [sys.executable, "-m", "jax_mmreid.main", f"--config={ROOT}/configs/quickstart.py:init=clip"]
    line += [f"--workdir={tmp_path}/run", "--config.mesh.data=1", "--config.pretrain.config.mesh.data=1"]
    subprocess.run(line, cwd=tmp_path, env=os.environ | {"XLA_FLAGS": ""}, check=True, timeout=900)
    (before,) = (tmp_path / "data" / "quickstart_clip").iterdir()
    evals = json.loads((before / "results.json").read_text())["evals"]
    for name in (f"{m}/{way}" for m in ("rgb", "nir", "tir") for way in ("image_to_text", "text_to_image")):
        assert evals[name]["rank1"] >= 20 * evals[name]["chance"], name
    assert evals["rgb/coats"]["accuracy"] >= 4 * evals["rgb/coats"]["chance"]
    assert evals["people/text"]["mAP"] > 0.6
    evals = json.loads((tmp_path / "run" / "results.json").read_text())["evals"]
    assert evals["full"]["mAP"] > 0.9 and evals["mean_missing"]["mAP"] > 0.75
    for name in ("no_r", "no_n", "no_t", "no_rn", "no_rt", "no_nt"):
        assert evals[f"alone/{name}"]["mAP"] >= 4 * chance(), name  # here 4.8 to 16 times
