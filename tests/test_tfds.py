"""Equality: a packed dataset gives the batches of its files, to the bit; and what cannot be packed or found."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from conftest import open_fields

from input_pipeline import DataConfig, load_records, tfds_builder
from input_pipeline.reading import packed
from input_pipeline.synthesize import synthesize
from jax_mmreid.batch import Share, check
from jax_mmreid.errors import ConfigError, DataError

MASKS = dict(eta=(0.2, 0.5, 0.3), seed=4, mode="bernoulli", all_missing="repair", mask_file="")
LAYOUTS = {  # layout -> modalities, options of the dataset
    "rgbnt201": (("rgb", "nir", "tir"), dict(captioner="Blip")),
    "rgbnt100": (("rgb", "nir", "tir"), {}),  # strips
    "sysu_mm01": (("rgb", "ir"), dict(source="npy")),  # arrays, captions
}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """{layout: folder}, and under "packed" where they are packed."""
    root = tmp_path_factory.mktemp("data")
    for layout, (modalities, options) in LAYOUTS.items():
        synthesize(root / layout, layout=layout, num_train_ids=5, num_test_ids=2, cameras=3, height=32)
        tfds_builder.build(layout, str(root / layout), str(root / "packed"), modalities=modalities, **options)
    return root


def opened(root, layout, source, **changes):
    modalities, options = LAYOUTS[layout]
    arguments = dict(
        name=layout,
        data_dir=str(root / ("packed" if source == "tfds" else layout)),
        modalities=modalities,
        image_size=(20, 10),
        identities=3,
        instances=2,
        eval_batch_size=10,
        threads=2,
        allow_missing_files=False,
        missing=MASKS | dict(eta=MASKS["eta"][: len(modalities)]),
        seed=1,
        options=options,
        source=source,
    )
    return open_fields(**arguments | changes)


def assert_same(a, b):
    for x, y in zip(a, b, strict=True):
        check(x)
        assert x.keys() == y.keys()
        for key in x:
            for one, other in zip(*([z[key].values()] if isinstance(z[key], dict) else [[z[key]]] for z in (x, y))):
                for left, right in zip(one, other, strict=True):
                    np.testing.assert_array_equal(left, right, err_msg=key)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_batches_are_those_of_the_files(drawn, layout):
    files, tfds = opened(drawn, layout, "files"), opened(drawn, layout, "tfds")
    assert tfds.spec.fingerprint == files.spec.fingerprint
    np.testing.assert_array_equal(tfds.present_train, files.present_train)
    assert (tfds.spec.pids, tfds.spec.cameras, tfds.spec.steps_per_epoch) == (
        files.spec.pids,
        files.spec.cameras,
        files.spec.steps_per_epoch,
    )
    assert_same(tfds.train(0, 6), files.train(0, 6))
    for split in files._splits:
        assert_same(tfds.split(split), files.split(split))


def test_batches_do_not_depend_on_threads_restarts_or_processes(drawn):
    whole = list(opened(drawn, "rgbnt201", "tfds", threads=0).train(0, 6))
    for threads in (1, 2):
        data = opened(drawn, "rgbnt201", "tfds", threads=threads, cache="memory")
        assert_same(data.train(2, 6), whole[2:])
    halves = [list(opened(drawn, "rgbnt201", "tfds", share=Share((i,), 2)).train(0, 6)) for i in (0, 1)]
    for step, (first, second) in enumerate(zip(*halves)):
        for name, pixels in whole[step]["images"].items():
            np.testing.assert_array_equal(np.concatenate([first["images"][name], second["images"][name]]), pixels)


def test_some_modalities_and_all_columns(drawn):
    one = opened(drawn, "rgbnt201", "tfds", modalities=("tir",), missing=MASKS | dict(eta=(0.3,)))
    assert_same(
        one.train(0, 2),
        opened(drawn, "rgbnt201", "files", modalities=("tir",), missing=MASKS | dict(eta=(0.3,))).train(0, 2),
    )
    for split, records in packed.load(str(drawn / "packed"), name="sysu_mm01", modalities=("rgb", "ir")).items():
        files = load_files(drawn, "sysu_mm01")[split]
        for field in dataclasses.fields(files):
            if field.name not in ("root", "packed", "rows"):
                np.testing.assert_equal(getattr(records, field.name), getattr(files, field.name), err_msg=field.name)


def load_files(root, layout):
    modalities, options = LAYOUTS[layout]
    return load_records(DataConfig(layout, str(root / layout), modalities=modalities, options=options))


def test_absent_pictures_stay_absent(tmp_path):
    synthesize(tmp_path / "files", num_train_ids=3, num_test_ids=2, cameras=2, height=32)
    gone = sorted((tmp_path / "files" / "train_171" / "NI").iterdir())[::2]
    for file in gone:
        file.unlink()
    options = dict(modalities=("rgb", "nir"), allow_missing_files=True)
    sizes = tfds_builder.build("rgbnt201", str(tmp_path / "files"), str(tmp_path / "packed"), **options)
    records = packed.load(str(tmp_path / "packed"), name="rgbnt201", modalities=("nir",))["train"]
    assert sizes == {"train": 12, "test": 8} and len(records) == 12 - len(gone)
    assert set(records.packed[records.rows[0]]) == {"rgb", "nir", "pid", "camid", "view"}


@pytest.mark.parametrize("how", ["as a command", "without jax or tensorflow"])
def test_the_command_line(drawn, tmp_path, how):
    start = ["-m", "input_pipeline.tfds_builder"]
    if how != "as a command":
        code = "import sys; from input_pipeline import tfds_builder; tfds_builder.main(sys.argv[1:])"
        start = ["-c", f"{code}; assert not {{'jax', 'tensorflow'}} & set(sys.modules)"]
    arguments = ["--dataset=rgbnt201", f"--data_dir={drawn / 'rgbnt201'}", f"--output={tmp_path / 'out'}"]
    done = subprocess.run([sys.executable, *start, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "rgbnt201/1.0.0: 30 train, 12 test" in done.stdout
    assert packed.load(str(tmp_path / "out"), name="rgbnt201", modalities=("rgb",)).keys() == {"train", "test"}


def run(capsys, *arguments):
    code = tfds_builder.main([str(x) for x in arguments])
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    return code, err


def test_what_cannot_be_packed(drawn, tmp_path, capsys):
    where = ["--dataset=rgbnt201", f"--data_dir={drawn / 'rgbnt201'}"]
    code, err = run(capsys, *where, f"--output={drawn / 'packed'}")
    assert code == 3 and "rgbnt201/1.0.0 exists; choose another --output" in err
    code, err = run(capsys, *where, f"--output={tmp_path}", "--option=colour=1")
    assert code == 2 and "config.data.options of rgbnt201: no option 'colour'" in err
    code, err = run(capsys, "--dataset=rgbnt2", "--data_dir=.", f"--output={tmp_path}")
    assert code == 2 and "no dataset 'rgbnt2'" in err
    code, err = run(capsys, "--dataset=rgbnt201", f"--data_dir={tmp_path}", f"--output={tmp_path / 'out'}")
    assert code == 3 and "rgbnt201: no folder" in err and not (tmp_path / "out").exists()


def test_what_cannot_be_opened(drawn, tmp_path):
    with pytest.raises(
        DataError, match="packed: no dataset 'regdb' under .*; make one with python -m input_pipeline.tfds_builder"
    ):
        packed.load(str(drawn / "packed"), name="regdb", modalities=("rgb",))
    with pytest.raises(ConfigError, match="was packed without ir"):
        packed.load(str(drawn / "packed"), name="rgbnt201", modalities=("rgb", "ir"))


def test_a_defect_is_a_traceback(drawn, tmp_path, monkeypatch):
    """Only ConfigError and DataError become one line."""
    monkeypatch.setattr(tfds_builder, "load_records", lambda config: [].pop())
    with pytest.raises(IndexError):
        tfds_builder.main(["--dataset=rgbnt201", "--data_dir=x", f"--output={tmp_path}"])
