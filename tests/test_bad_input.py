"""Data that cannot be trained on or measured: one line with the numbers found, before anything is trained."""

import numpy as np
import pytest
from conftest import load_config, open_tiny
from PIL import Image

from jax_mmreid import run
from jax_mmreid.errors import ConfigError, DataError
from jax_mmreid.evaluators import runner


def write(root, rows, columns=("rgb", "nir")):
    """A manifest of rows (split, pid, camid, which of the columns have a picture), and pictures of noise."""
    rng = np.random.default_rng(0)
    lines = [",".join(["split", "pid", "camid", *columns])]
    for number, (split, pid, camid, has) in enumerate(rows):
        cells = []
        for column in columns:
            name = f"{split}_{number}_{column}.png"
            if column in has:
                Image.fromarray(rng.integers(0, 256, (16, 8, 3)).astype(np.uint8)).save(root / name)
            cells.append(name if column in has else "")
        lines.append(",".join([split, str(pid), str(camid), *cells]))
    (root / "manifest.csv").write_text("\n".join(lines))
    return root


def people(split, pids, cameras=(1, 2), has=("rgb", "nir"), each=1):
    return [(split, pid, camid, has) for pid in pids for camid in cameras for _ in range(each)]


TRAIN, TEST = people("train", range(9)), people("test", range(20, 24))
BOTH = r"\(the query has 8 rows, identities: 4, cameras: {0}; the gallery has 8 rows, identities: 4, cameras: {0}\)"
CASES = {
    "few identities": (
        people("train", range(5)) + TEST,
        "sampler: the training data have 5 identities, fewer than the 8 of a batch; lower data.identities",
    ),
    "few pictures": (
        people("train", range(9), cameras=(1,)) + TEST,
        r"manifest: no training identity has two images \(9 rows of 9 identities\), so nothing can be matched; add",
    ),
    "few test pictures": (
        TRAIN + people("test", range(20, 27), cameras=(1,)),
        r"manifest: no test identity has two images \(7 rows of as many identities\), so nothing can be matched",
    ),
    "one camera": (
        TRAIN + people("test", range(20, 24), cameras=(1,), each=2),
        f"no query has a match {BOTH.format(1)}: junk='same_camera' leaves out matches of the query's camera; add "
        "others, or set junk='none'",
    ),
    "a camera for each identity": (
        TRAIN + [("test", pid, pid, ("rgb", "nir")) for pid in (20, 21, 22, 23) for _ in range(2)],
        f"no query has a match {BOTH.format(4)}: junk='same_camera' leaves out matches of",
    ),
    "a modality that training lacks": (
        people("train", range(9), has=("rgb",)) + TEST,
        r"manifest: no training row has an image of nir \(images of 18 rows: 18 rgb, 0 nir\); add some, or leave it "
        "out of data.modalities",
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["quickstart", "manifest"])
def test_data_that_cannot_be_used_are_refused_before_training(case, name, tmp_path):
    rows, message = CASES[case]
    arg = "row=A,modalities=rgb/nir" + (",dataset=manifest" if name == "quickstart" else "")
    config = load_config(name, arg)
    config.data.data_dir = str(write(tmp_path, rows))
    config.mesh.data = 1
    config.model.image.layers = 1
    with pytest.raises(DataError, match=message) as error:
        run.train_and_evaluate(config, tmp_path / "run")
    assert "\n" not in str(error.value) and not (tmp_path / "run" / "config.json").exists()


def test_pairs_need_identities_with_both_modalities(tmp_path):
    rows = people("train", range(6)) + people("train", range(6, 12), has=("rgb",)) + TEST
    config = load_config("manifest", "method=tvi_lfm,modalities=rgb/nir,size=small,stage=base")
    config.data.data_dir = str(write(tmp_path, rows))
    message = "sampler: 6 training identities have pictures of each of rgb, nir, fewer than the 8 of a batch; lower"
    with pytest.raises(DataError, match=message):
        open_tiny(config)


def test_a_row_that_hides_nothing_needs_identities_on_both_sides(tmp_path):
    rows = TRAIN + people("query", range(20, 24)) + people("gallery", range(30, 34))
    config = load_config("manifest", "row=A,modalities=rgb/nir,splits=query/gallery,junk=none")
    config.data.data_dir = str(write(tmp_path, rows))
    config.mesh.data = 1
    config.model.image.layers = 1
    message = f"evals.full: no query has a match {BOTH.format(2)}: add images of identities that both sides have"
    with pytest.raises(DataError, match=message):
        run.train_and_evaluate(config, tmp_path / "run")


def test_cameras_that_are_not_known_hide_nothing(tmp_path):
    """Without a camid each test row counts as a camera of its own."""
    rows = [(split, pid, "", has) for split, pid, _, has in TRAIN + TEST]
    config = load_config("manifest", "row=A,modalities=rgb/nir")
    config.data.data_dir = str(write(tmp_path, rows))
    runner.check(config.evals.to_dict(), open_tiny(config))


def test_stage_lfm_needs_captions_in_the_table(tmp_path):
    config = load_config("manifest", "method=tvi_lfm,modalities=rgb/nir,size=small")
    config.data.data_dir = str(write(tmp_path, TRAIN + TEST))
    with pytest.raises(ConfigError, match="manifest was read without captions; .*fill the columns caption_rgb"):
        open_tiny(config)
