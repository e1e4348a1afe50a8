"""How long an update takes: full-size batches that stay on the device, steady state, compilation apart.

python tests/benchmarks/step.py --config=configs/rgbnt201.py:row=F [--config.model.dtype=bfloat16] [--steps=20] [--json]
"""

import dataclasses
import json
import time

import jax
import numpy as np
from absl import app, flags
from ml_collections import config_flags

from jax_mmreid import experiment, train
from jax_mmreid.sharding import to_global

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file.", lock_config=True)
STEPS = flags.DEFINE_integer("steps", 20, "Timed updates.")
JSON = flags.DEFINE_bool("json", False, "Print JSON.")


@dataclasses.dataclass
class Shapes:
    """A dataset of the size of RGBNT201's training split, without pictures."""

    modalities: tuple
    image_size: tuple
    batch_size: int
    pids: tuple = tuple(range(171))
    cameras: tuple = (1, 2, 3, 4)
    steps_per_epoch: int = 54


def noise(data: Shapes) -> dict:
    rng = np.random.default_rng(0)
    rows, shape = data.spec.batch_size, (data.spec.batch_size, *data.spec.image_size, 3)
    number = np.arange(rows, dtype=np.int32)
    return {
        "images": {m: rng.integers(0, 256, shape, np.uint8) for m in data.spec.modalities},
        "present": {m: np.ones(rows, bool) for m in data.spec.modalities},
        "label": number // 8 % len(data.spec.pids),
        "camid": number % len(data.spec.cameras) + 1,
        "index": number,
    }


def main(_):
    config = CONFIG.value
    size = config.data
    data = Shapes(tuple(size.modalities), tuple(size.image_size), size.identities * size.instances)
    exp = experiment.build(config, data)
    state = exp.create(jax.random.PRNGKey(0))
    step = train.compile_step(config, exp, exp.phases[-1])
    batch = to_global(noise(data), exp.mesh)
    begin = time.perf_counter()
    compiled = step.lower(state, batch).compile()
    compiling = time.perf_counter() - begin
    for _ in range(3):
        state, scalars = compiled(state, batch)
    jax.block_until_ready(scalars)
    begin = time.perf_counter()
    for _ in range(STEPS.value):
        state, scalars = compiled(state, batch)
    loss = float(jax.device_get(scalars)["loss"])
    seconds = (time.perf_counter() - begin) / STEPS.value
    memory = compiled.memory_analysis()
    result = {
        "device": f"{len(exp.mesh.devices.flat)} x {jax.devices()[0].device_kind}",
        "triples": data.spec.batch_size,
        "dtype": config.model.dtype,
        "ms_per_step": round(1e3 * seconds, 2),
        "images_per_second": round(data.spec.batch_size * len(data.spec.modalities) / seconds, 1),
        "gib": round((memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 2**30, 2),
        "compile_seconds": round(compiling, 1),
        "loss": round(loss, 4),
    }
    print(json.dumps(result) if JSON.value else "  ".join(f"{key} {value}" for key, value in result.items()))


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main)
