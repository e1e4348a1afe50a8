"""Calibrates a trained model on labelled rows: what its scores mean, and what another sensor would buy.

    python -m jax_mmreid.tools.calibrate --workdir=runs/quickstart
    python -m jax_mmreid.tools.calibrate --workdir=runs/quickstart --config.data.data_dir=FOLDER --prior=0.001
    python -m jax_mmreid.tools.calibrate --workdir=runs/quickstart_tvi/lfm --split=query/gallery
    python -m jax_mmreid.tools.calibrate --store=gallery --fmr=1e-3

--workdir encodes a split of the run's own dataset, several joined by "/"; --config.data.FIELD=VALUE sets a field of its
config.data, as where the pictures are. --store takes the entries of a store that have an identity. Writes
calibration.json, with the model that it belongs to, into the workdir or the store. Prints the thresholds, how reliable
a calibration on half of the identities is on the other half, and retrieval by what query and gallery have.
"""

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from etils.epath import PathLike

from jax_mmreid import evaluate, experiment, run, sharding
from jax_mmreid.batch import Data
from jax_mmreid.config_file import parse_with_overrides, set_data_fields
from jax_mmreid.errors import ConfigError, DataError, report_error
from jax_mmreid.evaluators.encoder import Encoder
from jax_mmreid.evaluators.programs import COMMON_OR_AVAILABLE
from jax_mmreid.inference import TrainedModel
from jax_mmreid.metrics.similarity import Parts, unpack
from jax_mmreid.paths import place
from jax_mmreid.report.settings import table
from jax_mmreid.search import pairs, reliability, sensors
from jax_mmreid.search.calibration import Calibration, check_prior, isotonic_regression
from jax_mmreid.search.pairs import Labelled, Views
from jax_mmreid.search.reliability import Reliability
from jax_mmreid.search.store import Store
from jax_mmreid.search.thresholds import FMRS

FMR = 1e-2  # of the detection rate


class Source(NamedTuple):
    """Labelled rows, and where they are from."""

    labelled: Labelled
    model: str  # TrainedModel.identity
    words: str


def from_split(workdir: PathLike, split: str, step: str = "last", overrides: Sequence[str] = ()) -> Source:
    """The rows of one or more splits ("query/gallery") of the dataset of a run, encoded once.

    `overrides` are fields of config.data, "data.data_dir=FOLDER". Raises ConfigError for a split that does not exist or
    was trained on, for data that do not fit the model and as `run.load_model`, DataError for data that cannot be read.
    """
    model = run.load_model(workdir, step)
    config = run.saved_config(workdir)
    set_data_fields(config, overrides, "a calibration takes fields of config.data only")
    splits = split.split("/")
    if "train" in splits:
        raise ConfigError("--split=train: the model was trained on these identities, so their scores are too good")
    data = run.open_dataset(config, workdir)
    evaluate.spec_differences(model.spec, experiment.model_spec(config, data), place(workdir))
    subsets = pairs.combinations(model.method.modalities)
    subsets += [()] if any("text" in data.present(name) for name in splits) else []  # captions alone
    found = [_views(model, data, name, subsets) for name in splits]
    views = {shown: Parts(*map(np.concatenate, zip(*(view[shown] for view in found)))) for shown in found[0]}
    columns = [data.columns(name) for name in splits]
    pids, camids = (np.concatenate([x[key] for x in columns]) for key in ("pid", "camid"))
    rows = Labelled(model.method.modalities, views, pids, camids)
    return Source(rows, model.identity, f"split {split} of {config.data.name}")


def from_store(folder: PathLike) -> Source:
    """The entries of a store that have an identity; raises DataError if none has one."""
    store = Store.open(folder)
    columns, rows, _ = store.read()
    known = np.flatnonzero(columns.pid >= 0)
    if not len(known):
        raise DataError(
            f"no entry of store {folder} has an identity; add labelled ones, or calibrate on a split with --workdir"
        )
    modalities, fallback = store.identity.modalities, None if rows.fallback is None else rows.fallback[known]
    views = pairs.hide(Parts(rows.parts[known], rows.present[known], fallback), modalities)
    rows = Labelled(modalities, views, columns.pid[known], columns.camid[known])
    without = int(np.sum(rows.camids < 0))
    words = (
        f"labelled entries of a store, {without} of them without a camera" if without else "labelled entries of a store"
    )
    return Source(rows, store.identity.model, words)


def calibrate(
    source: Source, folder: PathLike, *, prior: float | None = None, fmr: float = FMR, shown: Sequence[str] = ()
) -> str:
    """Writes calibration.json of labelled rows into a folder, and returns what the command prints, in Markdown.

    `prior` is that of `Calibration.fit`; `fmr` and the modalities `shown` are those of the table of sensors. Raises
    ConfigError for a prior, rate or modality that cannot be, DataError for rows without a pair of either kind.
    """
    scored, modalities = pairs.score(source.labelled), source.labelled.modalities
    found = Calibration.fit(scored, modalities, model=source.model, source=source.words, prior=prior)
    mesh = sharding.make_mesh(data=-1, model=1)
    cells = sensors.measure(source.labelled, found, mesh, fmr=fmr, shown=shown)
    try:
        reliable = reliability.held_out(scored, modalities, prior=prior)
    except DataError:  # half of the identities have no pair of a kind
        reliable = {}
    found.save(folder)
    return report(found, reliable, cells, fmr)


def _views(model: TrainedModel, data: Data, split: str, subsets: Sequence[tuple[str, ...]]) -> Views:
    """All rows of a split as they would be with only these modalities each time, and with their captions."""
    present = data.present(split)
    captions = ("text",) if "text" in present else ()
    uses = {subset: (*subset, *captions) for subset in sorted(subsets, key=len, reverse=True)}
    settings = dict(mean=model.spec.mean, std=model.spec.std, uses=[(split, use) for use in uses.values()])
    encoder = Encoder(model.method, model.variables, data, model.mesh, **settings)
    views = {}
    for subset, use in uses.items():
        vectors = encoder.vectors(split, use or model.method.modalities, {}, form=COMMON_OR_AVAILABLE)
        parts, there, fallback = unpack(encoder.fetch(vectors), vectors.packing)
        parts = views[model.method.modalities].parts if views else parts  # scaled alike in all views
        something = np.any([present[name] for name in use], axis=0) if use else np.zeros(len(parts), bool)
        views[subset] = Parts(parts, there & something[:, None], np.where(something[:, None], fallback, 0))
    return views


def report(calibration: Calibration, reliable: Mapping[str, Reliability], cells: Mapping, fmr: float) -> str:
    """What the command prints."""
    lines = [f"# Calibration of model {calibration.model}", ""]
    lines += [f"Of pairs of {calibration.source}; prior {calibration.prior:.4g}.", "", "## Thresholds", ""]
    lines += ["Pairs by identity, and above which score they match at a false-match rate [95 % interval].", ""]
    head = ["compared by", "same", "different", "identities", *(f"{x:g}" for x in FMRS)]
    rows = [
        [name, *map(str, count), *(_limit(calibration.thresholds[name][x]) for x in FMRS)]
        for name, count in calibration.counts.items()
    ]
    reasons = [f"- {calibration.reason(name, x)}" for name, found in calibration.reasons.items() for x in found]
    lines += [*table(head, rows), *(["", "It cannot say:", "", *reasons] if reasons else [])]
    lines += ["", "## Reliability on held-out identities", "", *_reliability(calibration.prior, reliable)]
    lines += ["", "## What would another sensor buy?", "", sensors.markdown(cells, fmr).rstrip()]
    return "\n".join(lines)


def _limit(threshold: tuple[float, float, float]) -> str:
    value, low, high = threshold
    return "cannot say" if math.isnan(value) else f"{value:.5f} [{low:.5f}, {high:.5f}]"


def _reliability(prior: float, reliable: Mapping[str, Reliability]) -> list[str]:
    if not reliable:
        return ["Half of the identities have too few pairs to calibrate on."]
    note = "Calibrated on half of the identities, measured on the other half: the expected calibration error (ECE, "
    note += f"{reliability.BINS} bins) at two priors, and the share of pairs of different identities beyond the "
    note += "threshold at a false-match rate [beyond either end of its interval]."
    head = ["compared by", "same", "different", f"ECE, prior {prior:.2g}", "ECE, prior 0.5", *(f"{x:g}" for x in FMRS)]
    rows = []
    for name, found in reliable.items():
        rates = (found.rates.get(x) for x in FMRS)
        stated = ("cannot say" if rate is None else "{:.2g} [{:.2g}, {:.2g}]".format(*rate) for rate in rates)
        rows.append([name, str(found.same), str(found.different), f"{found.error:.4f}", f"{found.even:.4f}", *stated])
    return [note, "", *table(head, rows)]


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 0 done, 2 bad arguments, 3 rows that cannot be calibrated on."""
    parser = argparse.ArgumentParser(
        prog="python -m jax_mmreid.tools.calibrate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--workdir", help="of a trained run, whose dataset is encoded")
    source.add_argument("--store", help="with labelled entries")
    parser.add_argument("--split", help="of --workdir, default test")
    parser.add_argument("--step", help="of --workdir: last (default), best or a number")
    parser.add_argument(
        "--prior", type=float, help="the share of pairs of the same identity; default: as calibrated on"
    )
    parser.add_argument(
        "--fmr", type=float, default=FMR, choices=FMRS, help="of the detection rate, default %(default)s"
    )
    parser.add_argument("--modalities", default="", help="what the table of sensors shows: rgb/tir; default: all")
    arguments, overrides = parse_with_overrides(parser, argv)
    try:
        check_prior(arguments.prior)
        isotonic_regression()
        shown = tuple(filter(None, arguments.modalities.split("/")))
        if arguments.store is None:
            sensors.check_shown(shown, evaluate.load_spec(place(arguments.workdir)).modalities)
            found = from_split(arguments.workdir, arguments.split or "test", arguments.step or "last", overrides)
        elif overrides or arguments.split or arguments.step:
            raise ConfigError("--split, --step and --config.data belong to --workdir; a store is encoded already")
        else:
            sensors.check_shown(shown, Store.open(arguments.store).identity.modalities)
            found = from_store(arguments.store)
        folder = arguments.workdir or arguments.store
        print(calibrate(found, folder, prior=arguments.prior, fmr=arguments.fmr, shown=shown))
    except (ConfigError, DataError) as error:
        return report_error("calibrate", error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
