"""Every combination of config arguments and fields, over seeds, one run after the other, and the means side by side.

python launch/sweep.py --config=configs/quickstart.py --vary=row=A,D,F --vary=eta=0,0.3 --seeds=1-3 --workdir=runs/sweep
python launch/sweep.py --config=configs/rgbnt201.py --vary=--config.weights.nce=0.1,1.0 --workdir=runs/nce --config.data.data_dir=...

--vary: a config argument, or with its dashes a field, and the values that it takes; commas in brackets part no values.
--seeds: numbers as 1-3 or 1,3,5; without, the config's own seed. What else is given goes to every run. Every run has a
folder of its own, WORKDIR/row=A,eta=0.3/seed1 (a "/" in a value is "-" there); the same command goes on where it
stopped, and exits with the code of a run that did not end well. Writes WORKDIR/results.json and results.md, as
jax_mmreid/report/compare.py makes them of all runs.
"""  # noqa: E501

import argparse
import itertools
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

from jax_mmreid.report import compare


def varied(text: str) -> list[str]:
    """`name=a,b` as [`name=a`, `name=b`]; raises ValueError if there is no name or no value."""
    name, _, values = text.partition("=")
    if not name or not values:
        raise ValueError(text)
    return [f"{name}={value}" for value in re.split(r",(?![^()\[\]]*[)\]])", values)]


def command(config: str, run: Path, chosen: tuple[str, ...], seed: int | None, rest: list[str]) -> list[str]:
    """The command line of one run."""
    file, _, given = config.partition(":")
    arguments = [part for part in (*given.split(","), *chosen) if part and not part.startswith("--")]
    fields = [f"--config.seed={seed}"] if seed is not None else []
    fields += [*rest, *(part for part in chosen if part.startswith("--"))]
    return [
        *(sys.executable, "-m", "jax_mmreid.main"),
        f"--config={':'.join(filter(None, (file, ','.join(arguments))))}",
        f"--workdir={run}",
        *fields,
    ]


def finished(run: Path, line: list[str]) -> bool:
    """Whether a folder holds the results of this very command."""
    results = run / "results.json"
    return results.exists() and json.loads(results.read_text())["command"] == shlex.join(["python", *line[1:]])


def main(argv: list[str] | None = None) -> int:
    """Runs what is left to run and compares; returns the exit code."""
    form = dict(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser = argparse.ArgumentParser(description=__doc__, **form)
    parser.add_argument("--config", required=True)
    parser.add_argument("--workdir", required=True, type=Path)
    parser.add_argument("--vary", type=varied, action="append", default=[], metavar="NAME=VALUE,VALUE")
    parser.add_argument("--seeds", type=compare.numbers, default=[None])
    arguments, rest = parser.parse_known_args(argv)
    if not arguments.vary and arguments.seeds == [None]:
        parser.error("nothing to vary: give --vary or --seeds")
    runs = []
    for *chosen, seed in itertools.product(*arguments.vary, arguments.seeds):
        name = ",".join(part.removeprefix("--config.").replace("/", "-") for part in chosen)
        run = arguments.workdir / name / (f"seed{seed}" if seed is not None else "")
        runs.append(run)
        line = command(arguments.config, run, chosen, seed, rest)
        code = 0 if finished(run, line) else subprocess.run(line).returncode
        if code:
            return code
    print(compare.write(runs, arguments.workdir), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
