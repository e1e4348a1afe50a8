"""Embeds pictures with a trained model: into a store that tools.search searches, or a file that tools.score scores.

    python -m jax_mmreid.tools.embed --workdir=runs/quickstart --store=gallery FOLDER
    python -m jax_mmreid.tools.embed --workdir=runs/quickstart --store=gallery table.csv a_rgb.jpg a_tir.png
    python -m jax_mmreid.tools.embed --workdir=runs/quickstart --features=test.npz --split=test
    python -m jax_mmreid.tools.embed --workdir=runs/mine --features=test.npz --split=test --config.data.data_dir=FOLDER

Sources are folders, tables and single files; input_pipeline/own_pictures.py says which pictures become a row. The name
of a row in the store is the path of its first picture. Rows that the store has are not embedded again, so the same
command continues where it was stopped. Camera numbers of training are given to the model with --split alone: a camera
of one's own with the same number is another one.

The feature file is an .npz of features [n,D], the vector of all that a row has; pids, camids, views, paths [n]; and by
modality parts [n,M,D] and present [n,M], with spec, the hash of the model's data spec.
"""

import argparse
import getpass
import io
import math
import sys
import time as clock
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TextIO

import jax
import numpy as np
from tqdm import tqdm

from input_pipeline import DataConfig, load_records, own_pictures
from input_pipeline.own_pictures import Found
from input_pipeline.records import Records
from jax_mmreid import run
from jax_mmreid.batch import DataSpec
from jax_mmreid.config_file import parse_with_overrides, set_data_fields
from jax_mmreid.errors import ConfigError, DataError, report_error
from jax_mmreid.evaluate import load_spec
from jax_mmreid.evaluators.programs import PARTS
from jax_mmreid.inference import TrainedModel
from jax_mmreid.metrics.similarity import Packing, Parts
from jax_mmreid.paths import place
from jax_mmreid.search.store import MANIFEST, Identity, Store

COMMIT = 10.0  # seconds of work that a store may lack when the command is killed
NAMED = 20  # pictures that cannot be read are named one by one up to this number


class Encoded(NamedTuple):
    """Rows as `encode` yields them."""

    rows: np.ndarray  # [b] rows of the records
    parts: Parts  # [b,...]
    faults: list[str]  # of the pictures that could not be read since the last rows


def encode(
    model: TrainedModel, records: Records, rows: np.ndarray, *, cameras: bool = False, on_bad_image: str = "skip"
) -> Iterator[Encoded]:
    """Rows of records by modality, in turns, with their captions if the model reads any and a progress bar on stderr.

    `cameras` says that camera numbers are those of training. Rows without a readable picture are left out; with
    `on_bad_image` "error" the first picture that cannot be read raises DataError.
    """
    turn = max(PARTS, model.mesh.size) * model.part_rows
    size = min(turn, -(-len(rows) // model.part_rows) * model.part_rows)
    described = own_pictures.captions(records, model.spec.modalities) if reads_captions(model) else {}
    with tqdm(total=len(rows), unit=" rows", disable=None, leave=False) as bar:
        for rows_read, images, faults in own_pictures.read(records, rows, model.spec, size):
            if faults and on_bad_image == "error":
                raise DataError(f"{faults[0]}, or leave it out with --on_bad_image=skip")
            b = len(rows_read)
            # Rows without anything fill the last turn, so that every turn runs the same program.
            images = {m: [*column, *[None] * (size - b)] for m, column in images.items()}
            captions = {m: [*column[rows_read].tolist(), *[""] * (size - b)] for m, column in described.items()}
            camids = np.pad(records.camid[rows_read], (0, size - b), constant_values=-1) if cameras else None
            parts = model.parts(model.encode(images, camids, captions))
            yield Encoded(rows_read, Parts(*(None if x is None else x[:b] for x in parts)), faults)
            bar.update(min(size, len(rows) - bar.n))


def reads_captions(model: TrainedModel) -> bool:
    """Whether captions are among what the method compares rows by."""
    try:
        model.method.imputer(("text",))
    except ConfigError:  # it knows no captions, though its data had some
        return False
    return bool(model.spec.text)


def open_store(folder: str | Path, model: TrainedModel) -> Store:
    """A store that exists; raises DataError if it is not of this model."""
    return Store.open(folder, _identity(model, Store.open(folder).identity.packing))


def _identity(model: TrainedModel, packing: Packing) -> Identity:
    return Identity(model.identity, model.spec.hash, tuple(model.method.modalities), packing)


def plain_modality(given: str, spec: DataSpec) -> str:
    """What plain pictures are: as given, or RGB if the model has it, or else its first modality.

    Raises ConfigError for a modality that the model does not have.
    """
    if given and given not in spec.modalities:
        raise ConfigError(f"--modality={given}: the model has {', '.join(spec.modalities)}")
    return given or ("rgb" if "rgb" in spec.modalities else spec.modalities[0])


def caller(given: str) -> str:
    """Who is named in the log of a store: as given, or the login name; raises ConfigError if there is none."""
    try:
        return given or getpass.getuser()
    except (OSError, KeyError, ImportError) as error:
        raise ConfigError("this account has no login name for the store's log; give one with --caller") from error


def report_faults(faults: Sequence[str], file: TextIO | None = None) -> None:
    """Counts and names the pictures that could not be read, on standard output unless a file is given."""
    if faults:
        print(f"{len(faults)} pictures cannot be read and were left out:", file=file)
        print(*(f"  {fault}" for fault in faults[:NAMED]), sep="\n", file=file)
    if len(faults) > NAMED:
        print(f"  and {len(faults) - NAMED} more", file=file)


def of_split(workdir: str | Path, name: str, overrides: Sequence[str] = ()) -> Found:
    """The rows of a split of a run's own data; raises ConfigError if there is no such split.

    `overrides` are fields of config.data, "data.data_dir=FOLDER".
    """
    config = run.saved_config(workdir)
    set_data_fields(config, overrides, "fields of config.data alone can be set here")
    records = load_records(DataConfig.from_dict(config.data.to_dict()))
    if name not in records:
        raise ConfigError(f"--split={name}: the data of this run have {', '.join(records)}")
    return Found(records[name], np.full(len(records[name]), np.nan), 0, {})


class _Output:
    """Where rows go: a store, a feature file, or both."""

    def __init__(self, model: TrainedModel, found: Found, arguments: argparse.Namespace):
        self.model, self.found, self.arguments = model, found, arguments
        self.names = own_pictures.paths(found.records)
        self.store, self.kept, self.committed = None, [], -COMMIT  # the first rows at once, to find what is wrong early
        if arguments.store and Path(arguments.store, MANIFEST).exists():
            self.store = open_store(arguments.store, model)

    def missing(self) -> np.ndarray:
        """The rows that are still to be embedded."""
        known = set() if self.store is None else set(self.store.read().columns.path)
        return np.array([row for row, name in enumerate(self.names) if name not in known], np.int64)

    def add(self, rows: np.ndarray, parts: Parts) -> None:
        """Keeps rows, and now and then writes them to the store if there is one."""
        self.kept.append((rows, parts))
        if clock.monotonic() - self.committed > COMMIT:
            self.commit()

    def commit(self) -> None:
        """Writes what was kept to the store, which is made if need be."""
        if not (self.arguments.store and self.kept):
            return
        rows, parts = _joined(self.kept)
        if len(rows):
            if self.store is None:
                self.store = Store.create(self.arguments.store, _identity(self.model, parts.packing))
            records = self.found.records
            columns = dict(pids=records.pid[rows], camids=records.camid[rows], times=self.found.time[rows])
            self.store.append(parts, self.names[rows].tolist(), **columns, caller=self.arguments.caller)
        self.kept, self.committed = [], clock.monotonic()

    def rows(self) -> tuple[np.ndarray, Parts]:
        """All rows of the source that have vectors, with these."""
        if self.store is None:
            return _joined(self.kept)
        contents = self.store.read()
        place = {path: i for i, path in enumerate(contents.columns.path)}
        rows = np.array([row for row, name in enumerate(self.names) if name in place], np.int64)
        found = np.array([place[name] for name in self.names[rows]], np.int64)
        return rows, jax.tree.map(lambda x: x[found], contents.rows)

    def write_features(self) -> str:
        """Writes the feature file; returns a line about it."""
        rows, parts = self.rows()
        records, path = self.found.records, self.arguments.features
        columns = dict(pids=records.pid, camids=records.camid, views=records.view)
        arrays = {name: x[rows].astype(np.int64) for name, x in columns.items()} | {"paths": self.names[rows]}
        arrays |= {"features": parts.fallback, "parts": parts.parts, "present": parts.present}
        try:
            with open(path, "wb") as file:
                np.savez(file, **arrays, spec=self.model.spec.hash)
        except OSError as error:
            raise DataError(f"cannot write {path} ({error.strerror}); name another --features") from error
        return f"{path}: features {list(parts.fallback.shape)} of {len(rows)} rows"


def _joined(parts: Sequence[tuple[np.ndarray, Parts]]) -> tuple[np.ndarray, Parts]:
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)


def embed(arguments: argparse.Namespace) -> None:
    """What the command does with its parsed arguments; prints what it found and did."""
    if not (arguments.store or arguments.features):
        raise ConfigError("nothing to write to; name --store=FOLDER, --features=FILE.npz or both")
    if bool(arguments.split) == bool(arguments.sources):
        raise ConfigError("name either pictures (folders, tables, files) or --split of the run's own data")
    if not Path(arguments.features).parent.is_dir():
        raise ConfigError(f"--features={arguments.features}: there is no such folder; make it first")
    spec = load_spec(place(arguments.workdir))
    plain = plain_modality(arguments.modality, spec)
    if arguments.split:
        found = of_split(arguments.workdir, arguments.split, arguments.overrides)
    elif arguments.overrides:
        raise ConfigError(f"--config.{arguments.overrides[0]} belongs to --split; leave it out")
    else:
        found = own_pictures.find(arguments.sources, spec.modalities, plain)
    for line in own_pictures.summary(found, arguments.split or ", ".join(arguments.sources), plain):
        print(line, flush=True)
    devices = jax.local_devices()
    devices = devices[: math.gcd(len(devices), spec.batch_size)]  # over which its training batches would divide
    model = run.load_model(arguments.workdir, arguments.step, devices=devices)
    output, faults = _Output(model, found, arguments), []
    rows = output.missing()
    if len(rows) < len(output.names):
        print(f"{arguments.store} has {len(output.names) - len(rows)} of these rows already", flush=True)
    settings = dict(cameras=bool(arguments.split), on_bad_image=arguments.on_bad_image)
    try:
        for done in encode(model, found.records, rows, **settings) if len(rows) else ():
            output.add(done.rows, done.parts)
            faults += done.faults
    finally:
        output.commit()
    report_faults(faults)
    if faults and len(faults) == found.records.has_file()[rows].sum() and len(rows) == len(output.names):
        raise DataError(f"none of the {len(faults)} pictures can be read")
    if output.store is not None:
        print(f"{arguments.store}: {len(output.store)} rows of model {model.identity}")
    if arguments.features:
        print(output.write_features())


def parser(doc: str, name: str) -> argparse.ArgumentParser:
    """A parser with the flags of every command that searches or embeds."""
    found = argparse.ArgumentParser(
        prog=f"python -m jax_mmreid.tools.{name}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    found.add_argument("--workdir", required=True, help="of the run whose model embeds the pictures")
    found.add_argument("--step", default="last", help="last, best or a number")
    found.add_argument("--caller", default="", help="in the log of the store; default: your login name")
    return found


def add_modality(flags: argparse.ArgumentParser) -> None:
    """The flag that `plain_modality` takes."""
    flags.add_argument("--modality", default="", help="of pictures whose names say none; default rgb")


def command(name: str, function: Callable[[argparse.Namespace], None], arguments: argparse.Namespace) -> int:
    """Calls a function of a command; returns the exit code, after one line about what is wrong if it is not 0."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # as in a terminal, not in a notebook
            stream.reconfigure(errors="backslashreplace")  # names of files need not be text
    try:
        arguments.caller = caller(arguments.caller)
        function(arguments)
    except (ConfigError, DataError) as error:
        return report_error(name, error)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 0 done, 2 bad arguments, 3 pictures or a store that cannot be used."""
    flags = parser(__doc__, "embed")
    add_modality(flags)
    flags.add_argument("sources", nargs="*", metavar="SOURCE", help="a folder, a table (.csv, .jsonl) or a picture")
    flags.add_argument("--store", default="", help="folder of the store to add to, made if there is none")
    flags.add_argument("--split", default="", help="of the data that the run's config names, in place of sources")
    flags.add_argument("--features", default="", metavar="FILE.npz", help="where to write the feature file")
    flags.add_argument(
        "--on_bad_image", default="skip", choices=("skip", "error"), help="what a picture that cannot be read does"
    )
    arguments, arguments.overrides = parse_with_overrides(flags, argv)
    return command("embed", embed, arguments)


if __name__ == "__main__":
    sys.exit(main())
