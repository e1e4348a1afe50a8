"""A run whose config says what is trained before it: once, in its own place, and found there by every later run."""

import json
import sys
from pathlib import Path

import pytest
from absl.testing import flagsaver
from conftest import tiny_clip_config, tiny_config

from jax_mmreid import main
from jax_mmreid.config import config_hash, difference, to_json

CONFIG = """
import sys
sys.path.insert(0, {tests!r})
from conftest import tiny_clip_config, tiny_config

def get_config(arg=""):
    before = tiny_clip_config({folder!r}, **({{"seed": int(arg)}} if arg else {{}}))
    place = {place!r}
    words = {{"data.text.tokenizer": place + "/tokenizer", "data.text.context": 60}}
    model = {{"model.text.vocab": 530, "model.text.context": 60, "init": place + ":image+text"}}
    config = tiny_config({folder!r}, epochs=1, **words, **model)
    config.unlock()
    config.pretrain = dict(config=before, workdir=place)
    return config
"""


@pytest.fixture
def command(drawn, tmp_path, monkeypatch):
    """A function that runs the command line in this process with further flags, and its exit code."""
    file = tmp_path / "config.py"
    tests = str(Path(__file__).parent)
    file.write_text(CONFIG.format(tests=tests, folder=str(drawn), place=str(tmp_path / "before")))

    def call(workdir, arg="", *flags):
        argv = ["main", f"--config={file}" + (f":{arg}" if arg else ""), f"--workdir={tmp_path / workdir}", *flags]
        monkeypatch.setattr(sys, "argv", argv)  # ml_collections looks there for --config.x
        monkeypatch.setattr(main, "_log_to_stderr", lambda: None)
        with flagsaver.flagsaver():
            return main.main(main.parse(argv))

    return call


@pytest.mark.slow
def test_what_goes_before_is_trained_once(command, tmp_path, capsys):
    assert command("a") == 0
    before, first = capsys.readouterr().out.split("\nCheckpoint")
    assert "R@1" in before and "mAP" in first
    results = (tmp_path / "before" / "results.json").read_text()
    assert json.loads(results)["evals"]["rgb/image_to_text"]["captions"] > 1
    saved = json.loads((tmp_path / "a" / "config.json").read_text())
    assert saved["pretrain"]["config"]["method"] == "clip"
    assert command("b") == 0
    assert capsys.readouterr().out.count("Checkpoint") == 1
    assert (tmp_path / "before" / "results.json").read_text() == results
    assert command("a", "", "--mode=eval") == 0


def test_another_run_in_its_place_is_refused(command, tmp_path, capsys):
    (tmp_path / "before").mkdir()
    (tmp_path / "before" / "results.json").write_text("{}")
    (tmp_path / "before" / "config.json").write_text(json.dumps(to_json(tiny_clip_config("elsewhere"))))
    assert command("a", "7") == 2
    assert "before holds a run of another config: seed (1111 -> 7)" in capsys.readouterr().err


def test_where_it_runs_may_change_and_what_it_is_may_not():
    config, other = (tiny_config("data") for _ in range(2))
    for one in (config, other):
        one.unlock()
        one.pretrain = dict(config=tiny_clip_config("data"), workdir="before")
    other.pretrain.config.mesh.data = 2
    other.pretrain.config.data.threads = 9
    assert config_hash(config) == config_hash(other) and not difference(to_json(config), other)
    other.pretrain.config.epochs = 5
    assert config_hash(config) != config_hash(other)
    assert difference(to_json(config), other) == ["pretrain.config.epochs (2 -> 5)"]
