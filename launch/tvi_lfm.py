"""Both stages of TVI-LFM one after the other, over trials and seeds, and the mean of what they reach.

python launch/tvi_lfm.py --config=configs/quickstart.py:method=tvi_lfm --workdir=runs/quickstart_tvi
python launch/tvi_lfm.py --config=configs/regdb.py --trials=1-10 --init=weights/resnet50,weights/clip_rn50 --workdir=runs/regdb --config.data.data_dir=data/RegDB

--trials and --seeds: numbers to run, as 1-10 or 1,3,5. --init: weights that stage "base" starts from. What else is given
goes to both stages. Every run has a folder of its own, WORKDIR/trial3/seed1/{base,lfm}; the same command goes on where
it stopped, and exits with the code of a stage that did not end well. Writes WORKDIR/results.json and results.md, as
jax_mmreid/report/compare.py makes them of the runs of each stage.
"""  # noqa: E501

import argparse
import itertools
import subprocess
import sys
from pathlib import Path

from jax_mmreid.report import compare

STAGES = ("base", "lfm")


def command(arguments: argparse.Namespace, rest: list[str], stage: str, run: Path, trial: int | None, seed: int | None):
    """The command line of one stage of one run."""
    file, _, given = arguments.config.partition(":")
    given = [part for part in given.split(",") if part] + [f"stage={stage}"]
    given += [f"trial={trial}"] if trial is not None else []
    init = arguments.init if stage == "base" else str(run / "base")
    line = [sys.executable, "-m", "jax_mmreid.main", f"--config={file}:{','.join(given)}", f"--workdir={run / stage}"]
    line += [f"--config.init={init}"] if init else []
    return line + ([f"--config.seed={seed}"] if seed is not None else []) + rest


def main(argv: list[str] | None = None) -> int:
    """Runs what is left to run and averages; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--workdir", required=True, type=Path)
    parser.add_argument("--init", default="")
    parser.add_argument("--trials", type=compare.numbers, default=[None])
    parser.add_argument("--seeds", type=compare.numbers, default=[None])
    arguments, rest = parser.parse_known_args(argv)
    runs = []
    for trial, seed in itertools.product(arguments.trials, arguments.seeds):
        named = {"trial": trial, "seed": seed}
        run = arguments.workdir.joinpath(*(f"{name}{n}" for name, n in named.items() if n is not None))
        runs.append(run)
        for stage in STAGES:
            done = subprocess.run(command(arguments, rest, stage, run, trial, seed)).returncode
            if done:
                return done
    print(compare.write([run / stage for stage in STAGES for run in runs], arguments.workdir), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
