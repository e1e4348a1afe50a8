"""The command line: `python -m jax_mmreid.main --config=configs/quickstart.py --workdir=runs/quickstart`.

Exit codes: 0 done, 2 bad config, 3 bad data, 4 non-finite loss, 75 preempted and saved.
"""

import functools
import json
import logging
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import absl.logging
from absl import app, flags
from ml_collections import config_flags

from jax_mmreid.batch import Data
from jax_mmreid.config import ConfigDict, require_same
from jax_mmreid.errors import ConfigError, DataError
from jax_mmreid.report import compare

log = logging.getLogger(__name__)

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, with arguments after a colon.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Where the run lives; the same command on it goes on.")
MODE = flags.DEFINE_enum(
    "mode",
    "train",
    ["train", "eval", "plan"],
    "Train and then evaluate, only evaluate, or print what the config costs (needs neither data nor workdir).",
)
STEP = flags.DEFINE_string(
    "step", "last", "What --mode=eval evaluates: last, best, a step number, or init, the weights of config.init."
)
FORCE = flags.DEFINE_boolean(
    "force", False, "Let --mode=eval evaluate a checkpoint of another config, whose results then say what differs."
)
WATCH = flags.DEFINE_boolean(
    "watch", False, "Let --mode=eval follow a run, before or while it trains, and evaluate each new checkpoint of it."
)
COMPARE = flags.DEFINE_string(
    "compare", None, "DIR,DIR: only print means over the seeds of the finished runs in these folders or below them."
)
METRIC = flags.DEFINE_string("metric", "", "What --compare shows of every missing-modality setting; mAP by default.")


def main(argv: list[str]) -> int:
    """Runs a mode and returns the exit code."""
    if len(argv) > 1:
        return _fail(2, f"unexpected argument {argv[1]!r}")
    if COMPARE.value is not None:
        return _compare()
    # Heavy imports come after the flags, so that a misspelled flag answers at once.
    import jax

    from input_pipeline import describe, open_data
    from jax_mmreid import evaluate, train
    from jax_mmreid.cost import traced
    from jax_mmreid.report import tables

    config = CONFIG.value
    _log_to_stderr()
    log.info("jax %s on %d x %s", jax.__version__, jax.device_count(), jax.devices()[0].device_kind)
    try:
        if MODE.value == "plan":
            data = _checked(describe, **config.data.to_dict())
            print(traced.markdown(config, data, traced.plan(config, data)))
            return 0
        shard = (jax.process_index(), jax.process_count())
        if WATCH.value:
            _end_when_asked()
            for results in evaluate.watch(config, WORKDIR.value, functools.partial(_open, config, open_data, shard)):
                print(tables.markdown(config, results), flush=True)
            return 0
        before = config.pretrain
        if before and not _is_done(before):
            log.info("before that, %s in %s", before.config.method, before.workdir)
            data = _open(before.config, open_data, shard)
            train.train(before.config, before.workdir, data)
            print(tables.markdown(before.config, evaluate.evaluate(before.config, before.workdir, data)))
        data = _open(config, open_data, shard)
        if MODE.value == "train":
            train.train(config, WORKDIR.value, data)
        results = evaluate.evaluate(config, WORKDIR.value, data, STEP.value, FORCE.value)
        print(tables.markdown(config, results))
    except ConfigError as error:
        return _fail(2, error)
    except DataError as error:
        return _fail(3, error)
    except train.NonFiniteError as error:
        return _fail(4, error)
    except train.PreemptedError as error:
        return _fail(75, error)
    return 0


def _compare() -> int:
    try:
        print(compare.markdown(compare.summary(compare.folders(COMPARE.value)), METRIC.value), end="")
    except ConfigError as error:
        return _fail(2, error)
    return 0


def _is_done(before: ConfigDict) -> bool:
    """Whether the run that another starts from has been trained and evaluated; ConfigError if its place is taken."""
    workdir = Path(before.workdir)
    if not (workdir / "results.json").exists():
        return False
    require_same(workdir / "config.json", before.config)
    results = json.loads((workdir / "results.json").read_text())
    return results["step"] == results.get("steps", results["step"])  # a run that is watched has results before it ends


def _end_when_asked() -> None:
    """Lets Ctrl-C and SIGTERM end the process at once but in order, so that what was written gets to the disk."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: sys.exit(128 + number))


def _open(config: ConfigDict, open_data: Callable, shard: tuple[int, int]) -> Data:
    options = dict(seed=config.seed, missing=config.missing.to_dict(), shard=shard)
    data = _checked(open_data, **options, **config.data.to_dict())
    if config.data.pairs:  # of every row all pictures but one are missing
        shown = data.present("train")
        what = "pictures " + ", ".join(f"{shown[name].sum()} {name}" for name in data.spec.modalities)
    else:
        what = "missing: " + ", ".join(f"{name} {100 * rate:.1f} %" for name, rate in data.missing_rates.items())
    log.info("training data: %d identities, %d rows; %s", len(data.spec.pids), data.num_rows("train"), what)
    return data


def _checked(door: Callable, **options) -> Data:
    try:
        return door(**options)
    except ValueError as error:  # an argument that cannot be, whatever the data
        raise ConfigError(str(error)) from error


def parse(argv: list[str]) -> list[str]:
    """Parses flags; what is wrong with them or with the config file ends the program with one line and exit code 2."""
    try:
        rest = flags.FLAGS(argv)
        if WATCH.value and (MODE.value != "eval" or STEP.value != "last" or FORCE.value):
            raise ConfigError("--watch belongs to --mode=eval with --step=last and without --force")
        if COMPARE.value is not None:
            return rest
        for flag in (CONFIG,) if MODE.value == "plan" else (CONFIG, WORKDIR):
            if not flag.value:
                raise ConfigError(f"--{flag.name} is required; see python -m jax_mmreid.main --help")
        if MODE.value != "eval" and (STEP.value != "last" or FORCE.value):
            raise ConfigError(f"--step and --force belong to --mode=eval, not to --mode={MODE.value}")
        if METRIC.value:
            raise ConfigError("--metric belongs to --compare")
        CONFIG.value.to_dict()  # a file that could not be loaded says so when it is first used
        return rest
    except (flags.Error, ConfigError, AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        sys.exit(_fail(2, _reason(error)))


def _reason(error: Exception) -> object:
    """ml_collections wraps one exception in another, and a KeyError prints its message in quotes and escapes."""
    while error.args and isinstance(error.args[0], Exception):
        error = error.args[0]
    return error.args[0] if isinstance(error, KeyError) and error.args else error


def _fail(code: int, error: object) -> int:
    print(f"jax_mmreid: {' '.join(str(error).split())}", file=sys.stderr)
    return code


def _log_to_stderr() -> None:
    """Shows this project's messages, and of the libraries only warnings."""
    absl.logging.set_verbosity(absl.logging.WARNING)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    for name in ("jax_mmreid", "input_pipeline", __name__):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
