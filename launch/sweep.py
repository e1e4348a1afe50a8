"""Every combination of config arguments and fields, over seeds, one run after the other, and the means side by side.

python launch/sweep.py --config=configs/quickstart.py --vary=row=A,D,F --vary=eta=0,0.3 --seeds=1-3 --workdir=runs/sweep
python launch/sweep.py --config=configs/rgbnt201.py --vary=--config.weights.nce=0.1,1.0 --workdir=runs/nce --config.data.data_dir=...

--vary: a config argument, or with its dashes a field, and the values that it takes; commas in brackets part no values.
--seeds: numbers as 1-3 or 1,3,5; without, the config's own seed. Other --config.FIELD=VALUE go to every run. Every run
has a folder of its own, WORKDIR/row=A,eta=0.3/seed1 (a "/" in a value is "-" there); the same command resumes where it
stopped, and a run that fails ends it with that run's exit code. Writes WORKDIR/results.json and results.md, as
`python -m jax_mmreid.tools.compare` makes them of all runs.
"""  # noqa: E501

import argparse
import itertools
import re
import sys
from pathlib import Path

from jax_mmreid import run
from jax_mmreid.config_file import OVERRIDE, load_config, parse_with_overrides
from jax_mmreid.main import run_as_command
from jax_mmreid.report import compare


def varied(text: str) -> list[str]:
    """`name=a,b` as [`name=a`, `name=b`]; raises ValueError if there is no name or no value."""
    name, _, values = text.partition("=")
    if not name or not values:
        raise ValueError(text)
    return [f"{name}={value}" for value in re.split(r",(?![^()\[\]]*[)\]])", values)]


def job(config: str, workdir: Path, chosen: tuple[str, ...], seed: int | None, overrides: list[str]) -> run.Job:
    """One run: the config file's argument and overrides with what was chosen, and its folder."""
    file, _, given = config.partition(":")
    arguments = [part for part in (*given.split(","), *chosen) if part and not part.startswith("--")]
    overrides = ([] if seed is None else [f"seed={seed}"]) + overrides
    overrides += [part.removeprefix(OVERRIDE) for part in chosen if part.startswith("--")]
    name = ",".join(part.removeprefix(OVERRIDE).replace("/", "-") for part in chosen)
    folder = workdir / name / (f"seed{seed}" if seed is not None else "")
    return run.Job(load_config(":".join(filter(None, (file, ",".join(arguments)))), overrides), folder)


def main(argv: list[str] | None = None) -> int:
    """Runs what is left to run and compares; returns the exit code."""
    form = dict(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser = argparse.ArgumentParser(description=__doc__, **form)
    parser.add_argument("--config", required=True)
    parser.add_argument("--workdir", required=True, type=compare.folder)
    parser.add_argument("--vary", type=varied, action="append", default=[], metavar="NAME=VALUE,VALUE")
    parser.add_argument("--seeds", type=compare.numbers, default=[None])
    arguments, overrides = parse_with_overrides(parser, argv)
    if not arguments.vary and arguments.seeds == [None]:
        parser.error("nothing to vary: give --vary or --seeds")

    def sweep() -> None:
        combinations = list(itertools.product(*arguments.vary, arguments.seeds))
        jobs = [job(arguments.config, arguments.workdir, chosen, seed, overrides) for *chosen, seed in combinations]
        run.chain(jobs)
        print(compare.write([one.workdir for one in jobs], arguments.workdir), end="")

    return run_as_command(sweep)


if __name__ == "__main__":
    sys.exit(main())
