"""Three steps of a tiny experiment on a mesh, with modalities missing unevenly over its devices, and compiled steps."""

import dataclasses
import re
from typing import Any, NamedTuple

import jax
import numpy as np
from conftest import assert_trees_close, open_tiny, tiny_clip_config, tiny_config, tiny_tvi_config
from jax.sharding import NamedSharding, PartitionSpec

from jax_mmreid import experiment, train
from jax_mmreid.checkpoint import Checkpoints
from jax_mmreid.config import config_hash
from jax_mmreid.sharding import to_global

SHAPES = ((8, 1), (4, 2), (2, 4), (1, 8))  # data x model
# Adam's first steps are the sign of a gradient even where that is rounding noise around an exact zero, as for the bias
# of the keys; a larger eps takes this amplification out, and nothing else. Eight devices share 12 or 10 identities.
FIELDS = {"optim.eps": 1e-3, "model.image.layers": 1, "model.class_multiple": 8}


class Steps(NamedTuple):
    """What the steps on a mesh are: everything on the host, and the last state where it lies."""

    losses: list[dict]
    state: Any
    placed: Any


def miss_reid(folder, **changes):
    """Row F on two modalities."""
    return tiny_config(folder, modalities="nir/tir", **{"data.instances": 4} | FIELDS | changes)


def tvi_lfm(folder, stage="lfm", **changes):
    """One stage from random weights, with rows enough for gradients through batch statistics to round little."""
    fields = {name: x for name, x in FIELDS.items() if "layers" not in name}
    return tiny_tvi_config(folder, stage, **{"requires_init": (), "data.instances": 8} | fields | changes)


def clip(folder, **changes):
    """Contrastive training, whose loss has no identities."""
    fields = {name: x for name, x in FIELDS.items() if "class" not in name}
    return tiny_clip_config(folder, **fields | changes)


def on(config, shape):
    """The config on a mesh of data x model devices."""
    config = config.copy_and_resolve_references()
    config.mesh = dict(data=shape[0], model=shape[1])
    return config


def unevenly(batch):
    """The batch where the first rows, those of the first devices, lack one modality, and the last rows another."""
    rows = np.arange(len(batch["index"]))
    first, *_, last = [m for m in batch["present"] if "text" not in m]
    return batch | {"present": batch["present"] | {first: rows >= len(rows) // 4, last: rows < len(rows) // 2}}


def build(config, data, classes=None):
    """The experiment on the mesh of the config; with `classes` as if there were so many training identities."""
    spec = experiment.model_spec(config, data)
    spec = dataclasses.replace(spec, pids=tuple(range(classes))) if classes else spec
    count = config.mesh.data * config.mesh.model
    return experiment.build(config, spec, data.tokenize, devices=jax.devices()[:count])


class Spread:
    """Opened data whose few labels are spread over so many identities."""

    def __init__(self, data, classes):
        self.data, self.classes, self.spec = data, classes, data.spec

    def split(self, name):
        return map(self._spread, self.data.split(name))

    def train(self, start, stop):
        return map(self._spread, self.data.train(start, stop))

    def _spread(self, batch):
        return batch | {"label": batch["label"] * (self.classes // len(self.spec.pids))}


def run(config, workdir, start=0, stop=3, classes=None):
    """Steps start..stop-1 from the last checkpoint in the workdir, or from step 0 if there is none.

    The state after them is saved. With `classes` the training labels are spread over so many.
    """
    data = open_tiny(config)
    exp = build(config, data, classes)
    data = Spread(data, classes) if classes else data
    with Checkpoints(workdir) as checkpoints:
        state = train.start_or_resume(config, exp, data, checkpoints)
        step, losses = train.compile_step(config, exp, exp.phases[-1]), []
        for batch in data.train(start, stop):
            state, scalars = step(state, to_global(unevenly(batch), exp.mesh))
            losses.append(jax.device_get(scalars))
        meta = {"fingerprint": data.spec.fingerprint, "config_hash": config_hash(config), "seed": config.seed}
        checkpoints.save(stop, state, meta)
    return Steps(losses, jax.device_get(state), state)


def assert_equal(one, other, tolerance=1e-5):
    """The same losses, parameters, statistics and memory; moments, averages of gradients, relative to their norm."""
    assert_trees_close(one.losses, other.losses, atol=tolerance, rtol=tolerance)
    states = one.state.replace(opt_state=None), other.state.replace(opt_state=None)
    assert_trees_close(*states, atol=tolerance, rtol=tolerance)
    norm = max(1.0, *(float(x["grad_norm"]) for x in one.losses))
    assert_trees_close(one.state.opt_state, other.state.opt_state, atol=tolerance * norm, rtol=tolerance)


def compiled(config, exp):
    """The compiled step of the last phase; no array is made."""
    rows, spec = exp.spec.batch_size, exp.spec
    split = NamedSharding(exp.mesh, PartitionSpec("data"))

    def array(*shape, dtype):
        return jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=split)

    batch = {name: array(dtype=np.int32) for name in ("label", "pid", "camid", "view", "index")}
    batch["images"] = {m: array(*spec.image_size, 3, dtype=np.uint8) for m in spec.modalities}
    batch["present"] = {m: array(dtype=bool) for m in spec.modalities}
    if spec.text:
        batch["text"] = {m: array(spec.text_length, dtype=np.int32) for m in spec.text}
        batch["present"] |= {name: array(dtype=bool) for name in ("text", *(f"text/{m}" for m in spec.text))}
    return train.compile_step(config, exp, exp.phases[-1]).lower(exp.abstract, batch).compile()


def axes(text):
    """The sizes of all axes of all arrays in the text of a compiled program."""
    shapes = re.findall(r"\b[a-z]+\d*\[([\d,]+)\]", text)
    return {int(size) for shape in set(shapes) for size in shape.split(",")}
