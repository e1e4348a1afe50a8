"""What a run is: training, evaluation, watching, planning, and chains of runs. Used by main, launch/ and notebooks.

    from jax_mmreid import run
    from jax_mmreid.config_file import load_config

    config = load_config("configs/quickstart.py:row=A", ["epochs=3"])
    results = run.train_and_evaluate(config, "runs/a")
    results["evals"]["full"]["mAP"]

Nothing here reads flags or sys.argv. Errors that a config or data cause are those of `jax_mmreid.errors`.
"""

import functools
import hashlib
import json
import logging
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from etils.epath import PathLike
from PIL import Image

import input_pipeline
import jax_mmreid
from input_pipeline import DataConfig, MissingConfig, OpenedData, describe, open_data
from input_pipeline.reading import images
from input_pipeline.text.tokenizer import open_tokenizer
from jax_mmreid import distributed, experiment, run_length, sharding
from jax_mmreid import evaluate as evaluation
from jax_mmreid import train as training
from jax_mmreid import watch as watching
from jax_mmreid.batch import DataSpec
from jax_mmreid.config import ConfigDict, config_hash, evals_hash, flat, from_json, require_same, to_json
from jax_mmreid.cost import traced
from jax_mmreid.errors import ConfigError
from jax_mmreid.evaluators.programs import rows_at_once
from jax_mmreid.inference import TrainedModel
from jax_mmreid.paths import place

log = logging.getLogger(__name__)

OF_HOSTS = ("data.data_dir", "data.threads", "data.cache")  # may differ between processes
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")  # equal on all processes of a run


class Job(NamedTuple):
    """A run: what is trained and evaluated, and where it lives."""

    config: ConfigDict
    workdir: PathLike


def train_and_evaluate(config: ConfigDict, workdir: PathLike) -> dict:
    """Trains to the end, or resumes, and evaluates the last checkpoint; returns what results.json holds.

    The run that `config.pretrain` names comes first, unless it is finished. Raises ConfigError, DataError,
    NonFiniteError, or PreemptedError after SIGTERM.
    """
    if config.pretrain:
        before = Job(config.pretrain.config, config.pretrain.workdir)
        if not is_finished(before):
            log.info("first %s in %s, which this run starts from", before.config.method, before.workdir)
            chain([before])
    data = _open_together(config)
    _log_data(config, data)
    config = run_length.choose(config, workdir, data)
    training.train(config, workdir, data)
    return evaluation.evaluate(config, workdir, data)


def chain(jobs: Iterable[Job]) -> list[dict]:
    """Runs jobs one after the other and returns their results; a finished one is not run again.

    An error ends the chain; the same call resumes it where it stopped. Raises as `train_and_evaluate`.
    """
    results = []
    for job in jobs:
        if is_finished(job):
            results.append(json.loads((place(job.workdir) / "results.json").read_text()))
        else:
            results.append(train_and_evaluate(*job))
            jax.clear_caches()  # the next run compiles programs of its own
    return results


def is_finished(job: Job) -> bool:
    """Whether a run has been trained to its end and evaluated; raises ConfigError if its workdir is another run's."""
    workdir = place(job.workdir)
    if not (workdir / "results.json").exists():
        return False
    config = run_length.from_workdir(job.config, workdir)
    require_same(workdir / "config.json", config)
    results = json.loads((workdir / "results.json").read_text())
    hashes = config_hash(config), evals_hash(config)
    return results["step"] == results["steps"] and (results["config_hash"], results["evals_hash"]) == hashes


def evaluate(config: ConfigDict, workdir: PathLike, step: str = "last", force: bool = False) -> dict:
    """Evaluates a checkpoint of a workdir and returns what results.json holds; trains nothing.

    `step` and `force` are those of `jax_mmreid.evaluate.evaluate`.
    """
    config = run_length.from_workdir(config, workdir)
    return evaluation.evaluate(config, workdir, _open_together(config, workdir), step, force)


def watch(config: ConfigDict, workdir: PathLike) -> Iterator[dict]:
    """Evaluates each new checkpoint of a run in progress and yields its results, up to those of the last step."""
    config = run_length.from_workdir(config, workdir)
    return watching.watch(config, workdir, functools.partial(_open_together, config, workdir))


def plan(config: ConfigDict) -> str:
    """What a config costs, as a table of parameters and multiply-adds; no weight is made and no picture read."""
    data = describe(DataConfig.from_dict(config.data.to_dict()))
    parts = traced.plan(config, data.spec, data.tokenize)
    return traced.markdown(config, data.spec, data.num_rows("train"), parts)


def open_dataset(config: ConfigDict, workdir: PathLike | None = None) -> OpenedData:
    """The data of a config; with the vocabulary that a workdir keeps, if one is named and keeps one.

    Raises ConfigError for a config that cannot be, DataError for data that cannot be used.
    """
    fields = config.data.to_dict()
    kept = None if workdir is None else place(workdir) / "tokenizer"
    if kept is not None and kept.is_dir():
        fields["text"] = fields["text"] | {"tokenizer": str(kept)}
    missing = MissingConfig.from_dict(config.missing.to_dict())
    share = distributed.share(functools.partial(sharding.make_mesh, **config.mesh))
    return open_data(DataConfig.from_dict(fields), missing=missing, seed=config.seed, share=share)


def saved_config(workdir: PathLike) -> ConfigDict:
    """The config of a run, as its workdir keeps it."""
    return from_json(json.loads((place(workdir) / "config.json").read_text()))


def load_model(
    workdir: PathLike, step: str = "last", part_rows: int | None = None, devices: list | None = None
) -> TrainedModel:
    """The model of a checkpoint ("last", "best" or a number), built from the files of the workdir alone.

    `part_rows` is how many rows its towers see at once: by default as many as in evaluation, for equal vectors; a
    smaller number is faster for few pictures. It runs on one device unless `devices` names several. Raises ConfigError
    for a workdir without a run, checkpoint or data spec.
    """
    workdir = place(workdir)
    spec = evaluation.load_spec(workdir)
    config = saved_config(workdir)
    devices = jax.local_devices()[:1] if devices is None else devices
    config.mesh = ConfigDict(dict(data=len(devices), model=1))
    tokenize = functools.partial(_tokenize, workdir, config)
    exp = experiment.build(config, spec, tokenize, devices=devices)
    loaded = evaluation.restore(exp, workdir, step, [])
    return TrainedModel(
        spec=spec,
        method=exp.phase(max(loaded.step - 1, 0)).method,
        variables=jax.device_put(loaded.variables, sharding.replicated(exp.mesh)),
        mesh=exp.mesh,
        part_rows=part_rows or rows_at_once(config.data.eval_batch_size, devices=1),
        identity=hashlib.sha256(f"{config_hash(config)} {spec.hash} {loaded.step}".encode()).hexdigest()[:12],
        read_image=functools.partial(_read_image, spec),
        tokenize=tokenize,
    )


def _open_together(config: ConfigDict, workdir: PathLike | None = None) -> OpenedData:
    """`open_dataset` on all processes, which must have the same config, code, packages and data."""
    with distributed.together():
        data = open_dataset(config, workdir)
    fields = {f"config.{key}": str(x) for key, x in flat(to_json(config)).items() if key not in OF_HOSTS}
    code = {"the code of jax_mmreid": _code_hash()} | {name: version(name) for name in PACKAGES}
    distributed.require_equal(fields | code, {"the files of the data": data.spec.fingerprint})
    return data


def _code_hash() -> str:
    """Twelve hexadecimal digits that name the code of this project."""
    digest = hashlib.sha256()
    for package in (jax_mmreid, input_pipeline):
        for path in sorted(Path(package.__file__).parent.rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _log_data(config: ConfigDict, data: OpenedData) -> None:
    if config.data.pairs:  # a row has one picture; the others are missing by construction
        present = data.present("train")
        what = "pictures " + ", ".join(f"{present[m].sum()} {m}" for m in data.spec.modalities)
    else:
        what = "missing: " + ", ".join(f"{m} {100 * rate:.1f} %" for m, rate in data.missing_rates.items())
    log.info("training data: %d identities, %d rows; %s", len(data.spec.pids), data.num_rows("train"), what)


def _tokenize(workdir: PathLike, config: ConfigDict, sentences: Any) -> np.ndarray:
    """Ids [n,L] of sentences by the vocabulary of a run."""
    text = config.data.text
    if not text.tokenizer:
        raise ConfigError(f"the model in {workdir} was trained without captions, so it takes none")
    kept = workdir / "tokenizer"
    source = str(kept) if kept.is_dir() else text.tokenizer
    return open_tokenizer(source, context=text.context).encode(list(sentences))


def _read_image(spec: DataSpec, source: Any) -> np.ndarray:
    """A picture in the size of a spec, [H,W,3] uint8, as evaluation reads it: of a path, or of pixels [h,w,3] uint8."""
    read = functools.partial(images.read, range16=tuple(spec.range16))
    pixels = read(str(source)) if isinstance(source, str | Path) else np.asarray(source)
    if pixels.ndim != 3 or pixels.shape[-1] != 3 or pixels.dtype != np.uint8:
        raise ConfigError(f"a picture has pixels {pixels.dtype}{pixels.shape}; expected uint8 [h,w,3] or a path")
    return images.fit(pixels, str(source)[:80], spec.image_size, Image.Resampling[spec.resize[1].upper()])
