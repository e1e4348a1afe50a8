"""Data that are described and not opened: the spec and the sizes, from what the modules of the datasets state."""

import pkgutil

import jax
import pytest
from conftest import load_config, open_tiny, tiny_config

from input_pipeline import DataConfig, datasets, describe
from jax_mmreid import experiment
from jax_mmreid.cost import traced
from jax_mmreid.errors import ConfigError

SAME = ("modalities", "image_size", "cameras", "batch_size", "text")


def described(config):
    return describe(DataConfig.from_dict(config.data.to_dict()))


def test_the_described_dataset_is_the_opened_one(drawn):
    config = tiny_config(drawn)
    opened, data = open_tiny(config), described(config)
    for field in (*SAME, "steps_per_epoch", "text_length", "vocab"):
        assert getattr(data.spec, field) == getattr(opened.spec, field)
    assert len(data.spec.pids) == len(opened.spec.pids) and data.num_rows("train") == opened.num_rows("train")
    assert traced.plan(config, data.spec, data.tokenize) == traced.plan(config, opened.spec, opened.tokenize)
    with pytest.raises(ConfigError, match="no split 'test'"):
        data.num_rows("test")


def test_the_described_dataset_of_pairs_and_captions(tmp_path):
    drawing = dict(layout="sysu_mm01", seed=0, num_train_ids=5, num_test_ids=2, images_per_camera=1, height=32)
    config = tiny_config(tmp_path / "drawn", modalities="rgb/ir")
    config.data.update(pairs=True)
    config.data.options = drawing
    config.data.text.update(tokenizer="train", context=60, vocab_size=600)
    data = described(config)
    assert list(tmp_path.iterdir()) == []
    opened = open_tiny(config)
    for field in SAME:
        assert getattr(data.spec, field) == getattr(opened.spec, field)
    assert len(data.spec.pids) == len(opened.spec.pids) and data.num_rows("train") == opened.num_rows("train")
    assert data.spec.text_length == 60 >= opened.spec.text_length
    assert data.spec.vocab == 600 >= opened.spec.vocab
    for tokenizer in ("builtin", "openai/clip-vit-base-patch16"):
        config.data.text.tokenizer = tokenizer
        assert described(config).spec.vocab == 49408
    config.data.text.rephrased = 2.0
    with pytest.raises(ConfigError, match="data.text.rephrased=2.0"):
        described(config)


@pytest.mark.parametrize("name", sorted(module.name for module in pkgutil.iter_modules(datasets.__path__)))
def test_every_dataset_states_its_counts_without_images(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = dict(data_dir="", modalities=("rgb",), image_size=(20, 12), identities=2, instances=3)
    if name == "manifest":  # whose counts are those of its table
        options["data_dir"] = str(tmp_path / "table.csv")
        rows = [f"{split},{split}{pid % 4},{split}{pid}.jpg" for split in ("train", "test") for pid in range(13)]
        (tmp_path / "table.csv").write_text("\n".join(["split,pid,rgb", *rows]))
    data = describe(DataConfig(name=name, **options))
    assert 1 < len(data.spec.pids) <= data.num_rows("train") and data.spec.batch_size == 6
    assert data.spec.steps_per_epoch == data.num_rows("train") // 6
    assert list(data.spec.cameras) == sorted(set(data.spec.cameras))
    assert [file.name for file in tmp_path.iterdir()] == (["table.csv"] if name == "manifest" else [])
    for changes, message in (
        (dict(modalities=("rgb", "rgb")), "named twice"),
        (dict(modalities=("radar",)), "radar"),
        (dict(identities=0), "data.identities=0"),
        (dict(options={"colour": 1}), "data.options"),
    ):
        with pytest.raises(ConfigError, match=message):
            describe(DataConfig(name=name, **options | changes))


def test_a_vocabulary_that_is_not_there_yet_is_named(tmp_path):
    """A config whose first stage writes the vocabulary cannot be built before; rows without text need none."""
    config = load_config("quickstart", "init=clip")
    config.data.text.tokenizer = f"{tmp_path}/a/b/c/tokenizer"
    data = described(config)
    with pytest.raises(ConfigError, match="data.text.tokenizer='.*/a/b/c/tokenizer': neither a folder nor a Hub id"):
        experiment.build(config, data.spec, data.tokenize, devices=jax.devices()[:1])
    config = load_config("quickstart", "init=clip,row=D")
    experiment.build(config, described(config).spec, devices=jax.devices()[:1])
