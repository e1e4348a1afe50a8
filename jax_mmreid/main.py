"""The command line: `python -m jax_mmreid.main --config=configs/quickstart.py --workdir=runs/quickstart`.

Exit codes: 0 done, 2 bad config, 3 bad data, 4 non-finite loss, 75 preempted and saved. Anything else is a defect of
this project and shows a traceback.
"""

import logging
import shlex
import signal
import sys
import traceback
from collections.abc import Callable

import absl.logging
from absl import app, flags

from jax_mmreid.config_file import load_config, split_overrides
from jax_mmreid.errors import EXIT_CODES, ConfigError, NonFiniteError, PreemptedError, report_error

log = logging.getLogger(__name__)

NEXT = (
    "Search your own pictures: python -m jax_mmreid.tools.embed --workdir=%s --store=gallery FOLDER; "
    "see docs/own_pictures.md"
)

COMMON = (NonFiniteError, PreemptedError)  # raised by all processes of a run at once

CONFIG = flags.DEFINE_string(
    "config", None, "Config file, with its argument after a colon; --config.FIELD=VALUE sets one of its fields."
)
WORKDIR = flags.DEFINE_string("workdir", None, "The folder of the run; the same command on it resumes the run.")
MODE = flags.DEFINE_enum(
    "mode",
    "train",
    ["train", "eval", "plan"],
    "Train and then evaluate; only evaluate; or print what the config costs (needs neither data nor workdir).",
)
STEP = flags.DEFINE_string(
    "step", "last", "What --mode=eval evaluates: last, best, a step number, or init, the weights of config.init."
)
FORCE = flags.DEFINE_boolean(
    "force", False, "Let --mode=eval evaluate a checkpoint of another config or data; the results say what differs."
)
WATCH = flags.DEFINE_boolean(
    "watch", False, "Let --mode=eval follow a run, before or while it trains, and evaluate each new checkpoint of it."
)
COORDINATOR = flags.DEFINE_string(
    "coordinator", "", "host:port of process 0 of several; on Cloud TPU, SLURM and Kubernetes it is found out."
)
NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", 0, "The number of processes, found out likewise; 1 starts without others.", lower_bound=0
)
PROCESS_ID = flags.DEFINE_integer("process_id", -1, "The number of this process, from 0, found out likewise.")
STARTUP_TIMEOUT = flags.DEFINE_integer(
    "startup_timeout", 300, "Seconds within which all processes must have started.", lower_bound=1
)


def main(argv: list[str]) -> int:
    """Runs a mode on `parse`d arguments and returns the exit code."""
    # Heavy imports come after the flags, so that a misspelled flag answers at once.
    from jax_mmreid import distributed, run
    from jax_mmreid.report import tables

    def command() -> None:
        with distributed.together():
            config = load_config(CONFIG.value, argv[1:])
        if MODE.value == "plan":
            print(run.plan(config))
        elif WATCH.value:
            _exit_on_signal()
            for results in run.watch(config, WORKDIR.value):
                print(tables.markdown(results), flush=True)
        elif MODE.value == "eval":
            print(tables.markdown(run.evaluate(config, WORKDIR.value, STEP.value, FORCE.value)))
        else:
            print(tables.markdown(run.train_and_evaluate(config, WORKDIR.value)))
            log.info(NEXT, shlex.quote(WORKDIR.value))

    address = COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value
    return run_as_command(command, address, STARTUP_TIMEOUT.value)


def run_as_command(command: Callable[[], None], address: tuple[str, int, int] = ("", 0, -1), timeout: int = 300) -> int:
    """Calls `command` with messages on standard error; returns its exit code, that of the error if it raises one.

    Before that it joins the other processes, if there are any: `address` and `timeout` are those of `startup`.
    """
    import jax

    from jax_mmreid import compilation_cache, distributed, startup

    _log_to_stderr()
    try:
        startup.initialise(startup.Address(*address), timeout)
        if not distributed.is_multiprocess():  # else one may find a program that the others compile, and wait too long
            compilation_cache.enable()
        log.info("jax %s on %s", jax.__version__, distributed.describe())
        command()
    except tuple(EXIT_CODES) as error:
        code = report_error("jax_mmreid", error)
        if not isinstance(error, COMMON):
            distributed.leave(code)
        return code
    except Exception:
        if distributed.is_multiprocess():
            traceback.print_exc()
            distributed.leave(1)
        raise
    return 0


def parse(argv: list[str]) -> list[str]:
    """Parses flags; returns the program's name and the overrides, `field=value`.

    What is wrong with a flag ends the program with one line and exit code 2.
    """
    rest, overrides = split_overrides(argv)
    try:
        program, *rest = flags.FLAGS(rest)
        _check_flags(rest)
    except flags.Error as error:
        sys.exit(report_error("jax_mmreid", ConfigError(f"{error}; see python -m jax_mmreid.main --help")))
    except ConfigError as error:
        sys.exit(report_error("jax_mmreid", error))
    return [program, *overrides]


def _check_flags(rest: list[str]) -> None:
    """Raises ConfigError for flags that do not go together."""
    if rest:
        raise ConfigError(f"unexpected argument {rest[0]!r}; a field is set as --config.FIELD=VALUE")
    if WATCH.value and (MODE.value != "eval" or STEP.value != "last" or FORCE.value):
        raise ConfigError("--watch belongs to --mode=eval with --step=last and without --force")
    for flag in (CONFIG,) if MODE.value == "plan" else (CONFIG, WORKDIR):
        if not flag.value:
            raise ConfigError(f"--{flag.name} is required; see python -m jax_mmreid.main --help")
    if MODE.value != "eval" and (STEP.value != "last" or FORCE.value):
        raise ConfigError(f"--step and --force belong to --mode=eval, not to --mode={MODE.value}")


def _exit_on_signal() -> None:
    """Lets Ctrl-C and SIGTERM end the process at once but in order, so that what was written gets to the disk."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: sys.exit(128 + number))


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
