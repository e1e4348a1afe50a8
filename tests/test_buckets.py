"""Equality: a run, its files and its data in a bucket are those of a folder, although a bucket's files only come whole.

The bucket is a double on this machine (`bucket.py`), which every library reaches over HTTP as it would reach Google's.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import test_processes
from bucket import NAME, served
from conftest import open_tiny, tiny_config
from stored import IDENTITY
from tensorboardX import record_writer
from watched import few

from input_pipeline import tfds_builder
from input_pipeline.reading import masks
from jax_mmreid import evaluate, paths, run, train, writer
from jax_mmreid.errors import ConfigError
from jax_mmreid.search.store import Store
from jax_mmreid.weights import files
from jax_mmreid.writer import Writer

RUN = """
import sys
from watched import few
from jax_mmreid import run
from jax_mmreid.errors import PreemptedError
from test_buckets import SMALL
folder, workdir = sys.argv[1:]
try:
    run.train_and_evaluate(few(folder, **SMALL), workdir)
except PreemptedError:
    sys.exit(75)
"""
TWO = """
import json
from watched import few
from jax_mmreid import run
folder, workdir, fields = given
fields = json.loads(fields) | {"data.source": "tfds", "mesh.data": 2}
run.train_and_evaluate(few(folder, **fields), workdir)
"""
SMALL = {"modalities": "rgb/tir", "model.image.layers": 1}


@pytest.fixture(scope="module")
def bucket():
    """One for all tests of this file, as gcsfs remembers its address."""
    pytest.importorskip("gcsfs", reason="needs the gcs extra")
    # At the end of the process it would send everything once more, and wait for the double that is gone.
    record_writer.GCSRecordWriter.__del__ = lambda self: None
    with served() as (bucket, environment), pytest.MonkeyPatch.context() as patch:
        for key, value in environment.items():
            patch.setenv(key, value)
        yield bucket


def test_a_log_in_a_bucket_grows_and_is_sent_seldom(bucket, monkeypatch):
    """A former defect: gcsfs opens a file for adding by emptying it."""
    workdir = f"gs://{NAME}/log"
    sent = []
    upload = writer._Lines.upload
    monkeypatch.setattr(writer._Lines, "upload", lambda self: sent.append(1) or upload(self))
    with Writer(workdir, start=0, stop=9, rows_per_step=8) as w:
        for step in (2, 4, 6):
            w.write(step, {"loss": 0.5 * step})
        assert not sent and "log/metrics.jsonl" not in bucket.objects
        with w.paused():
            lines = bucket.objects["log/metrics.jsonl"][0].splitlines()
            assert [json.loads(line)["step"] for line in lines] == [2, 4, 6]
        monkeypatch.setattr(writer, "UPLOAD_SECONDS", 0.0)
        w.write(7, {"loss": 3.5})
        assert len(sent) == 2
    with Writer(workdir, start=4, stop=9, rows_per_step=8) as w:
        w.write(8, {"loss": 1.0})
    lines = (
        paths.place(
            workdir,
        )
        .joinpath("metrics.jsonl")
        .read_text()
        .splitlines()
    )
    assert [json.loads(line) for line in lines] == [
        {"step": 2, "loss": 1.0}, {"step": 4, "loss": 2.0}, {"step": 8, "loss": 1.0}
    ]  # fmt: skip
    assert any(name.startswith("log/events.out.tfevents.") for name in bucket.objects)


def test_results_and_masks_in_a_bucket_are_read_as_they_were_written(bucket):
    results = {"which": "last", "evals": {}, "columns": {}, "not_fractions": {}, "modalities": ["rgb"]}
    results |= {"step": 3, "steps": 9, "config_hash": "c", "init": ""}
    for step in (3, 4):
        evaluate.write_results(paths.place(f"gs://{NAME}/results"), results | {"step": step})
    names = [name for name in bucket.objects if name.startswith("results/")]
    assert sorted(names) == ["results/results.json", "results/results.md"]
    assert json.loads(bucket.objects["results/results.json"][0])["step"] == 4
    present = np.random.default_rng(0).random((7, 3)) < 0.5
    masks.save(f"gs://{NAME}/masks.npz", present, "abc")
    np.testing.assert_array_equal(masks.load(f"gs://{NAME}/masks.npz", "abc", (7, 3)), present)


def test_libraries_that_know_files_alone_get_a_copy(bucket):
    with paths.written_on_disk(f"gs://{NAME}/made") as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "a").write_text("one")
        (folder / "b").write_bytes(b"\0two")
        assert not any(name.startswith("made") for name in bucket.objects)
    with paths.on_disk(paths.place(f"gs://{NAME}/made")) as folder:
        assert (folder / "inner" / "a").read_text() == "one" and (folder / "b").read_bytes() == b"\0two"
    assert not folder.exists()
    with paths.on_disk(paths.place(f"gs://{NAME}/made/b")) as file:
        assert file.name == "b" and file.read_bytes() == b"\0two"


def test_a_place_on_this_machine_stays_what_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(paths.place("runs/a")) == "runs/a" and paths.absolute("runs/a") == tmp_path / "runs" / "a"
    with paths.written_on_disk("runs/a") as folder, paths.on_disk(paths.place("runs/a")) as same:
        assert folder == same == Path("runs/a") and (tmp_path / "runs" / "a").is_dir()


def test_other_buckets_are_refused_in_one_line(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="gs://a/gallery: this must be on this machine"):
        Store.create("gs://a/gallery", IDENTITY)
    with pytest.raises(ConfigError, match=r"^s3://a/b: of buckets, only gs:// works.*; mount the bucket and name the"):
        paths.place("s3://a/b")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"buckets need gcsfs; pip install 'jax-mmreid\[gcs\]'"):
        paths.absolute("gs://a/b")


@pytest.mark.slow
def test_a_run_in_a_bucket_is_that_of_a_folder_and_goes_on_after_a_signal(bucket, drawn, tmp_path):
    def start():
        path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parent.parent)])
        command = [sys.executable, "-c", RUN, str(drawn), f"gs://{NAME}/run"]
        return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": path})

    first = start()
    while first.poll() is None and not any("run/checkpoints" in name for name in list(bucket.objects)):
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    assert first.wait(timeout=120) == 75
    assert start().wait(timeout=120) == 0
    config = few(drawn, **SMALL)
    data = open_tiny(config)
    train.train(config, tmp_path, data)
    evaluate.evaluate(config, tmp_path, data)
    ours, theirs = (
        json.loads((tmp_path / "results.json").read_text()),
        json.loads(bucket.objects["run/results.json"][0]),
    )
    assert ours["evals"] == theirs["evals"] and ours["step"] == theirs["step"] == theirs["steps"]
    logs = (tmp_path / "metrics.jsonl").read_text(), bucket.objects["run/metrics.jsonl"][0].decode()
    steps = [[json.loads(line)["step"] for line in log.splitlines()] for log in logs]
    assert set(steps[0]) <= set(steps[1])  # and that of the signal
    ours, theirs = files.load_one(tmp_path), files.load_one(f"gs://{NAME}/run")  # as config.init does
    assert ours.keys() == theirs.keys()
    for name, leaf in ours.items():
        np.testing.assert_array_equal(leaf, theirs[name], err_msg=name)


@pytest.mark.exhaustive
def test_two_processes_share_a_bucket(bucket, drawn, tmp_path, port):
    """Two processes whose packed data and workdir are in a bucket end as one whose are not."""
    tfds_builder.build("synthetic", str(drawn), f"gs://{NAME}/shared", modalities=("rgb", "tir"))
    fields = SMALL | {"epochs": 1}
    test_processes.run(TWO, 2, port, f"gs://{NAME}/shared", f"gs://{NAME}/two", json.dumps(fields), devices=2)
    config = few(drawn, **fields)
    run.train_and_evaluate(config, tmp_path)
    ours, theirs = (
        json.loads((tmp_path / "results.json").read_text()),
        json.loads(bucket.objects["two/results.json"][0]),
    )
    assert ours["step"] == theirs["step"]
    for name, row in ours["evals"].items():
        assert row == pytest.approx(theirs["evals"][name], abs=1e-6), name


@pytest.mark.slow
def test_packed_data_in_a_bucket_give_the_batches_of_their_files(bucket, drawn):
    options = {"data_dir": str(drawn), "modalities": ("rgb", "nir", "tir")}
    tfds_builder.build("synthetic", output=f"gs://{NAME}/packed", **options)
    ours, theirs = (
        open_tiny(tiny_config(drawn)),
        open_tiny(tiny_config(f"gs://{NAME}/packed", **{"data.source": "tfds"})),
    )
    assert ours.spec.fingerprint == theirs.spec.fingerprint
    for one, other in zip(ours.train(0, 3), theirs.train(0, 3), strict=True):
        for name, pixels in one["images"].items():
            np.testing.assert_array_equal(pixels, other["images"][name])
