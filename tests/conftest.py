"""Eight virtual CPU devices, and a tiny experiment that runs in seconds.

Tests are of four kinds: law (masks, unit norm, padding), oracle (naive loops, PyTorch), equality (8 devices = 1,
resume = no stop) and story (training on drawn data ends where it should).
"""

import importlib.util
import os
import socket
import tempfile
from importlib import metadata
from pathlib import Path

if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # A step that two tests share is compiled once, in other test processes and in subprocesses too.
    _CACHE = tempfile.TemporaryDirectory()
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE.name
# What tests compute is small and compiled once: LLVM's optimisations take longer than they save.
FAST_COMPILATION = "--xla_backend_optimization_level=0"
if metadata.version("jaxlib").startswith("0.10."):
    # These halve the time of compilation. Later versions do not know them, and abort at a flag that they do not know.
    FAST_COMPILATION += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count=8 {FAST_COMPILATION}")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"

import jax
import numpy as np
import pytest

from input_pipeline import DataConfig, MissingConfig, open_data
from input_pipeline.opened_data import WHOLE
from jax_mmreid import experiment
from jax_mmreid.config import ConfigDict
from jax_mmreid.metrics import protocols
from jax_mmreid.recipes.clip import clip
from jax_mmreid.recipes.miss_reid import miss_reid
from jax_mmreid.recipes.tvi_lfm import tvi_lfm


@pytest.fixture(scope="session")
def drawn(tmp_path_factory):
    """A folder of drawn pedestrians: 12 training and 5 test identities, 3 cameras, 2 triples each, 32x16 pixels."""
    folder = tmp_path_factory.mktemp("data") / "drawn"
    open_tiny(tiny_config(folder))
    return folder


@pytest.fixture(scope="session")
def torch():
    """PyTorch, for tests marked `reference`."""
    return pytest.importorskip("torch", reason="needs the reference extra")


def tiny_config(folder, row="F", eta="0", modalities="rgb/nir/tir", **changes) -> ConfigDict:
    """Miss-ReID with every part in place and every axis small; `changes` override dotted fields."""
    config = miss_reid("synthetic", row=row, eta=eta, modalities=modalities, epochs=3, text_epoch=3)
    config.data.data_dir = str(folder)
    config.data.options = dict(seed=0, num_train_ids=12, num_test_ids=5, cameras=3, images_per_camera=2, height=32)
    config.data.image_size = (32, 16)
    config.aug.update(pad=2)
    config.model.image.update(patch=8, width=16, layers=2, heads=2, position_std=0.5)
    config.model.text.update(width=8, layers=1, heads=2)
    config.model.dim = 12
    config.model.structure.update(queries=3, width=16, heads=4)
    config.model.inversion.hidden = 10
    config.optim.lr = dict.fromkeys(config.optim.lr, 1e-3)
    config.optim.schedule.update(warmup=1, reference=1e-3)
    return _in_seconds(config, changes)


@pytest.fixture(scope="session")
def drawn_sysu(tmp_path_factory):
    """A folder of drawn pedestrians like SYSU-MM01: 10 training and 4 test identities, 6 cameras, 32x16 pixels."""
    folder = tmp_path_factory.mktemp("data") / "drawn_sysu"
    open_tiny(tiny_tvi_config(folder))
    return folder


def tiny_tvi_config(folder, stage="lfm", row="full", **changes) -> ConfigDict:
    """TVI-LFM with every part in place and every axis small; `changes` override dotted fields."""
    whole = protocols.row("sysu_mm01", dict(split="gallery", use=("rgb",))) | dict(trials=3)
    config = tvi_lfm("synthetic", {"all": whole}, stage=stage, row=row, epochs=2, lr_visual=1e-3, lr_text=1e-3)
    config.data.data_dir = str(folder)
    drawn = dict(layout="sysu_mm01", seed=0, num_train_ids=10, num_test_ids=4, images_per_camera=1, height=32)
    config.data.options.update(drawn)
    config.data.image_size = (32, 16)
    if stage == "lfm":
        config.data.text.update(tokenizer="train", vocab_size=520)
    config.aug.update(pad=2)
    config.model.image.update(blocks=(1, 1, 1, 1), width=4)
    config.model.text.update(vocab=520, width=8, layers=1, heads=2)
    config.optim.schedule.update(warmup=1)
    return _in_seconds(config, changes)


def tiny_clip_config(folder, loss="info_nce", **changes) -> ConfigDict:
    """Contrastive training with every part in place and every axis small, on `drawn`; `changes` override fields."""
    config = clip("synthetic", loss=loss, epochs=2, lr=1e-3)
    config.data.data_dir = str(folder)
    drawn = dict(seed=0, num_train_ids=12, num_test_ids=5, cameras=3, images_per_camera=2, height=32)
    config.data.options = drawn | dict(captioner="Blip")
    config.data.image_size = (32, 16)
    config.data.text.update(tokenizer="train", vocab_size=530, context=60)
    config.aug.update(pad=2)
    config.model.image.update(patch=8, width=16, layers=2, heads=2, position_std=0.5)
    config.model.text.update(vocab=530, context=60, width=8, layers=1, heads=2)
    config.model.dim = 12
    config.optim.schedule.update(warmup=1)
    return _in_seconds(config, {"data.identities": 8, "data.instances": 1} | changes)


def _in_seconds(config: ConfigDict, changes: dict) -> ConfigDict:
    """One device, no evaluation in between, and `changes` of dotted fields."""
    config.data.update(identities=4, instances=2, eval_batch_size=16, threads=0)
    config.mesh.data = 1
    config.eval_every = 0
    config.save_every = 1
    config.log_every = 2
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    return config.lock()


def load_config(name, arg="") -> ConfigDict:
    """`get_config(arg)` of configs/<name>.py, loaded by path as the command line does."""
    file = Path(__file__).parent.parent / "configs" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(arg)


def open_tiny(config: ConfigDict, share=WHOLE):
    """`open_data` as `run` calls it."""
    return open_fields(missing=config.missing.to_dict(), seed=config.seed, share=share, **config.data.to_dict())


def open_fields(*, missing, seed, share=WHOLE, **data):
    """`open_data` of plain fields of `config.missing` and `config.data`."""
    return open_data(DataConfig.from_dict(data), missing=MissingConfig.from_dict(missing), seed=seed, share=share)


def build(config: ConfigDict, data, devices=None):
    """The experiment of a config on opened data, as `train` builds it."""
    return experiment.build(config, experiment.model_spec(config, data), data.tokenize, devices=devices)


def start(config: ConfigDict, devices=None):
    """(experiment, data, state of step 0 without a pass over the data) on the given devices, one by default."""
    data = open_tiny(config)
    exp = build(config, data, devices=jax.devices()[:1] if devices is None else devices)
    return exp, data, exp.create(jax.random.PRNGKey(config.seed))


def noise(abstract, seed=0):
    """An abstract state, or a part of one, filled with random numbers."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jax.device_put(rng.normal(0, 0.3, x.shape).astype(x.dtype), x.sharding), abstract)


@pytest.fixture
def port():
    """A port that nobody listens on, for processes to meet at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def assert_trees_close(a, b, atol, rtol=0.0):
    """Every leaf close, named when it is not."""
    flat_b = dict(jax.tree_util.tree_leaves_with_path(b))
    for path, x in jax.tree_util.tree_leaves_with_path(a):
        np.testing.assert_allclose(
            np.asarray(x), np.asarray(flat_b[path]), atol=atol, rtol=rtol, err_msg=jax.tree_util.keystr(path)
        )
