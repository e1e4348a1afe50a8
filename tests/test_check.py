"""`input_pipeline.check`: what it counts, what it names, its exit codes, and that it needs no jax."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from input_pipeline import check
from input_pipeline.datasets import rgbnt201
from input_pipeline.records import Counts
from input_pipeline.synthesize import synthesize

ROOT = Path(__file__).parent.parent
KEYS = ["dataset", "data_dir", "modalities", "ok", "problem", "splits", "deep"]
SPLIT_KEYS = ["identities", "rows", "images", "cameras", "missing", "captions", "counts", "expected"]


@pytest.fixture
def folder(tmp_path):
    """A drawn folder in the layout of RGBNT201: 2 training, 1 test identities, 3 cameras, 1 triple each."""
    sizes = dict(num_train_ids=2, num_test_ids=1, cameras=3, images_per_camera=1, height=32)
    synthesize(tmp_path / "data", **sizes)
    return tmp_path / "data"


def run(capsys, *args):
    """(exit code, the report or the lines)."""
    code = check.main(args)
    out = capsys.readouterr().out
    return code, json.loads(out) if "--json" in args else out.splitlines()


def base(folder, dataset="rgbnt201"):
    return f"--dataset={dataset}", f"--data_dir={folder}"


def test_the_report_on_data_of_another_size(folder, capsys):
    code, report = run(capsys, *base(folder), "--json")
    assert code == 3 and list(report) == KEYS and not report["ok"] and report["problem"] is None
    assert report["modalities"] == ["rgb", "nir", "tir"] and report["deep"] is None
    assert list(report["splits"]["train"]) == SPLIT_KEYS
    assert report["splits"]["test"] == {
        "identities": 1,
        "rows": 3,
        "images": 9,
        "cameras": [1, 2, 3],
        "missing": {"rgb": 0, "nir": 0, "tir": 0},
        "captions": {"rgb": 0, "nir": 0, "tir": 0},
        "counts": "differs",
        "expected": {"identities": 30, "cameras": [1, 2], "rows": 836},
    }
    code, lines = run(capsys, *base(folder))
    assert code == 3 and "train: 2 identities, 6 rows, 18 images, cameras 1 2 3; missing: nothing" in lines
    assert "test: differs: identities 1, expected 30; cameras 1 2 3, expected 1 2; rows 3, expected 836" in lines
    assert lines[-1] == "problems found: counts differ in train, test (add --own if these are your own data)"


def test_no_counts_are_expected_of_own_data(folder, capsys):
    code, report = run(capsys, *base(folder), "--own", "--json")
    assert code == 0 and report["ok"]
    assert {(split["counts"], split["expected"]) for split in report["splits"].values()} == {("unknown", None)}
    code, lines = run(capsys, *base(folder), "--own")
    assert code == 0 and "test: no published count" in lines and lines[-1] == "no problem found"


def test_as_many_as_published(folder, capsys, monkeypatch):
    published = {"train": Counts(2, (1, 2, 3), 6), "test": Counts(0, (), 3)}  # 0 and (): not published
    monkeypatch.setattr(rgbnt201, "counts", lambda data_dir, *, modalities: published)
    monkeypatch.setattr(check, "MODALITIES", ("rgb", "nir", "tir"))
    code, report = run(capsys, *base(folder), "--json")
    assert code == 0 and {split["counts"] for split in report["splits"].values()} == {"equal"}
    _, lines = run(capsys, *base(folder))
    assert "train: as expected: identities, cameras, rows" in lines and "test: as expected: rows" in lines


def test_an_absent_picture_is_named_and_the_rest_counted(folder, capsys):
    (folder / "test" / "NI" / "000002_cam2_0_00.jpg").unlink()
    code, report = run(capsys, *base(folder), "--own", "--json")
    assert code == 3 and "no file 'test/NI/000002_cam2_0_00.jpg'" in report["problem"]
    assert report["splits"]["test"]["missing"] == {"rgb": 0, "nir": 1, "tir": 0}
    assert report["splits"]["test"]["images"] == 8
    code, lines = run(capsys, *base(folder), "--own")
    assert code == 3 and lines[-1] == "problems found: a file is absent or cannot be read"
    code, lines = run(capsys, *base(folder), "--own", "--allow_missing_files")
    assert code == 0 and any(line.endswith("missing: 1 nir") for line in lines)
    code, report = run(capsys, *base(folder), "--own", "--modalities=rgb/tir", "--json")
    assert code == 0 and report["modalities"] == ["rgb", "tir"]


def test_without_data_there_is_a_problem_and_no_split(tmp_path, capsys):
    code, report = run(capsys, *base(tmp_path / "nowhere"), "--deep", "--json")
    assert code == 3 and "no data folder" in report["problem"]
    assert report["splits"] == {} and report["deep"] is None


def test_every_file_is_decoded_and_the_broken_ones_are_named(folder, capsys):
    code, report = run(capsys, *base(folder), "--own", "--deep", "--json")
    assert code == 0 and report["deep"] == {"files": 27, "broken": 0, "first": []}
    files = sorted(folder.rglob("*.jpg"))
    for file in files[3:8]:
        file.write_bytes(file.read_bytes()[:300])
    files[9].write_bytes(b"")
    files[11].write_text("not a picture")
    code, report = run(capsys, *base(folder), "--own", "--deep", "--limit=2", "--json")
    assert code == 3 and report["deep"]["broken"] == 7 and len(report["deep"]["first"]) == 2
    code, lines = run(capsys, *base(folder), "--own", "--deep")
    assert code == 3 and lines[-1] == "problems found: 7 broken files" and "decoded 27 files, 7 of them broken" in lines
    broken = [line for line in lines if line.startswith("broken: ")]
    assert {str(file) for file in files if any(str(file) in line for line in broken)} == {
        str(files[i]) for i in (3, 4, 5, 6, 7, 9, 11)
    }
    assert run(capsys, *base(folder), "--own")[0] == 0  # only --deep finds them


def test_deep_cuts_strips(tmp_path, capsys):
    synthesize(tmp_path / "data", layout="rgbnt100", num_train_ids=2, num_test_ids=1, cameras=2, height=32)
    code, report = run(capsys, *base(tmp_path / "data", "rgbnt100"), "--own", "--deep", "--json")
    assert code == 0 and report["deep"]["files"] == 8 + 4 + 2 and report["splits"]["train"]["images"] == 24
    strip = tmp_path / "data" / "rgbir" / "query" / "0002_c0001_000.jpg"
    Image.new("RGB", (768, 256)).save(strip)
    code, report = run(capsys, *base(tmp_path / "data", "rgbnt100"), "--own", "--deep", "--json")
    assert code == 3 and len(report["deep"]["first"]) == 1 and str(strip) in report["deep"]["first"][0]


def test_options_of_a_dataset(tmp_path, capsys):
    (tmp_path / "mine.csv").write_text("split,pid,camid,rgb,ir\ntrain,a,1,x.png,\ntest,b,1,y.png,\ntest,b,2,,z.png\n")
    for name in "xyz":
        Image.new("RGB", (4, 8)).save(tmp_path / f"{name}.png")
    code, report = run(capsys, *base(tmp_path, "manifest"), "--option", "file=mine.csv", "--deep", "--json")
    assert code == 0 and report["modalities"] == ["rgb", "ir"] and report["deep"]["files"] == 3
    assert report["splits"]["test"]["missing"] == {"rgb": 1, "ir": 1}
    assert {split["counts"] for split in report["splits"].values()} == {"equal"}
    (tmp_path / "z.png").unlink()
    code, report = run(capsys, *base(tmp_path, "manifest"), "--option=file=mine.csv", "--json")
    assert code == 3 and "mine.csv, line 4: no file 'z.png'" in report["problem"]
    assert {name: split["counts"] for name, split in report["splits"].items()} == {"train": "equal", "test": "differs"}
    code, report = run(capsys, *base(tmp_path, "manifest"), "--json")
    assert code == 3 and "no file" in report["problem"] and report["modalities"] == []


def test_captions_that_an_option_names_are_read_and_counted(folder, capsys):
    option = "--option=captioner=Blip"
    code, report = run(capsys, *base(folder), option, "--own", "--json")
    assert code == 0 and report["modalities"] == ["rgb", "nir", "tir"]
    assert report["splits"]["train"]["captions"] == {"rgb": 6, "nir": 6, "tir": 6}
    code, lines = run(capsys, *base(folder), option, "--own")
    assert "test: rows with captions: rgb 3, nir 3, tir 3" in lines
    code, report = run(capsys, *base(folder), option, "--json")
    assert report["splits"]["train"]["expected"]["rows"] == 3951
    file = folder / "Text" / "Blip_IR" / "caption_dict_Blip_IR.json"
    file.unlink()
    code, report = run(capsys, *base(folder), option, "--own", "--json")
    assert code == 3 and report["problem"].startswith(f"captions: no file {file}; add it, or set ")
    assert run(capsys, *base(folder), option, "--own", "--modalities=rgb")[0] == 0
    assert run(capsys, *base(folder), "--own")[0] == 0


def test_a_check_draws_nothing(tmp_path, capsys):
    code, report = run(capsys, *base(tmp_path / "new", "synthetic"), "--json")
    assert code == 3 and "holds no drawn pictures yet" in report["problem"] and not list(tmp_path.iterdir())
    sizes = dict(num_train_ids=2, num_test_ids=1, cameras=2, images_per_camera=1, height=32)
    synthesize(tmp_path / "new", **sizes)
    options = [f"--option={key}={value}" for key, value in sizes.items()]
    code, report = run(capsys, *base(tmp_path / "new", "synthetic"), *options, "--json")
    assert code == 0 and {split["counts"] for split in report["splits"].values()} == {"equal"}
    assert run(capsys, *base(tmp_path / "new", "synthetic"), "--option=height=64")[0] == 3


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--dataset=rgbn"], "no dataset 'rgbn'; there are"),
        (["--modalities=radar"], "rgbnt201 has rgb, nir, tir"),
        (["--option=colour=1"], "config.data.options of rgbnt201: no option 'colour'"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_2(tmp_path, capsys, arguments, message):
    assert check.main([*base(tmp_path), *arguments]) == 2
    out, err = capsys.readouterr()
    assert message in err and len(err.splitlines()) == 1 and out == ""


@pytest.mark.parametrize("arguments", [[], ["--option=colour"], ["--limit=many"]])
def test_arguments_that_cannot_be_parsed_exit_2(tmp_path, capsys, arguments):
    with pytest.raises(SystemExit) as error:
        check.main([*base(tmp_path), *arguments] if arguments else [])
    assert error.value.code == 2


def test_a_defect_is_a_traceback(folder, monkeypatch):
    """Only ConfigError and DataError become one line."""

    def load(data_dir, *, modalities, allow_missing_files):
        raise ValueError("a defect")

    monkeypatch.setattr(rgbnt201, "load", load)
    with pytest.raises(ValueError, match="a defect"):
        check.main(base(folder))


def test_the_command_takes_seconds_and_no_jax(folder):
    code = (
        "import sys; from input_pipeline import check; "
        f"code = check.main({[*base(folder), '--own', '--deep']!r}); "
        "heavy = {'jax', 'flax', 'torch', 'grain', 'tensorflow'} & set(sys.modules); "
        "sys.exit(f'imports {heavy}' if heavy else code)"
    )
    begin = time.monotonic()
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "no problem found" and time.monotonic() - begin < 15
