"""How long an update takes: full-size batches that stay on the device, steady state, compilation apart.

python tests/benchmarks/step.py --config=configs/rgbnt201.py:row=F [--config.model.dtype=bfloat16] [--steps=20] [--json]

The batch is random numbers of the sizes that the dataset states, so that no data are needed.
"""

import argparse
import json
import time

import jax
import numpy as np

from input_pipeline import DataConfig, describe
from jax_mmreid import experiment, train
from jax_mmreid.batch import DataSpec, check
from jax_mmreid.config import ConfigDict
from jax_mmreid.config_file import load_config
from jax_mmreid.sharding import to_global

WARM_UP = 3  # updates before those that are timed


def noise(spec: DataSpec, instances: int) -> dict:
    """A training batch of random pixels and captions, with `instances` rows of each identity."""
    rng = np.random.default_rng(0)
    rows, shape = spec.batch_size, (spec.batch_size, *spec.image_size, 3)
    number, cameras = np.arange(rows, dtype=np.int32), np.array(spec.cameras or (0,), np.int32)
    label = number // instances % len(spec.pids)
    batch = {
        "images": {m: rng.integers(0, 256, shape, np.uint8) for m in spec.modalities},
        "present": {m: np.ones(rows, bool) for m in spec.modalities},
        **{"label": label, "pid": label, "camid": cameras[number % len(cameras)], "view": 0 * number, "index": number},
    }
    if spec.text:
        ids = rng.integers(1, spec.vocab - 2, (rows, spec.text_length), np.int32)
        ids[:, 0], ids[:, -1] = spec.vocab - 2, spec.vocab - 1  # start and end
        batch["text"] = dict.fromkeys(spec.text, ids)
        batch["present"] |= dict.fromkeys(("text", *(f"text/{m}" for m in spec.text)), np.ones(rows, bool))
    return check(batch)


def measure(config: ConfigDict, steps: int, devices: list | None = None) -> dict:
    """Times `steps` updates of the last phase; returns what is printed."""
    data = describe(DataConfig.from_dict(config.data.to_dict()))
    exp = experiment.build(config, data.spec, data.tokenize, devices=devices)
    state = exp.create(jax.random.PRNGKey(0))
    batch = to_global(noise(data.spec, config.data.instances), exp.mesh)
    step = train.compile_step(config, exp, exp.phases[-1])
    begin = time.perf_counter()
    compiled = step.lower(state, batch).compile()
    compiling = time.perf_counter() - begin
    for _ in range(WARM_UP):
        state, scalars = compiled(state, batch)
    jax.block_until_ready(scalars)
    begin = time.perf_counter()
    for _ in range(steps):
        state, scalars = compiled(state, batch)
    loss = float(jax.device_get(scalars)["loss"])
    seconds = (time.perf_counter() - begin) / steps
    memory = compiled.memory_analysis()
    return {
        "device": f"{exp.mesh.devices.size} x {jax.devices()[0].device_kind}",
        "rows": data.spec.batch_size,
        "dtype": config.model.dtype,
        "ms_per_step": round(1e3 * seconds, 2),
        "images_per_second": round(data.spec.batch_size * len(data.spec.modalities) / seconds, 1),
        "gib": round((memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 2**30, 2),
        "compile_seconds": round(compiling, 1),
        "loss": round(loss, 4),
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", required=True, help="config file; --config.FIELD=VALUE sets one of its fields")
    parser.add_argument("--steps", type=int, default=20, help="timed updates")
    parser.add_argument("--json", action="store_true")
    arguments, rest = parser.parse_known_args(argv)
    if unknown := [part for part in rest if not part.startswith("--config.")]:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    config = load_config(arguments.config, [part.removeprefix("--config.") for part in rest])
    result = measure(config, arguments.steps)
    print(json.dumps(result) if arguments.json else "  ".join(f"{key} {value}" for key, value in result.items()))


if __name__ == "__main__":
    main()
