"""Both stages of TVI-LFM one after the other, over trials and seeds, and the mean of what they reach.

python launch/tvi_lfm.py --config=configs/quickstart.py:method=tvi_lfm --workdir=runs/quickstart_tvi
python launch/tvi_lfm.py --config=configs/regdb.py --trials=1-10 --init=weights/resnet50,weights/clip_rn50 --workdir=runs/regdb --config.data.data_dir=data/RegDB

--trials and --seeds: numbers to run, as 1-10 or 1,3,5. --init: weights that stage "base" starts from. Other
--config.FIELD=VALUE go to both stages. Every run has a folder of its own, WORKDIR/trial3/seed1/{base,lfm}; the same
command resumes where it stopped, and a stage that fails ends it with that stage's exit code. Writes WORKDIR/results.json
and results.md, as `python -m jax_mmreid.tools.compare` makes them of the runs of each stage.
"""  # noqa: E501

import argparse
import itertools
import sys
from pathlib import Path

from jax_mmreid import run
from jax_mmreid.config_file import load_config, parse_with_overrides
from jax_mmreid.main import run_as_command
from jax_mmreid.report import compare

STAGES = ("base", "lfm")


def job(arguments: argparse.Namespace, stage: str, folder: Path, trial: int | None, seed: int | None) -> run.Job:
    """One stage of one run; stage "lfm" starts from the workdir of stage "base"."""
    file, _, given = arguments.config.partition(":")
    given = [*filter(None, given.split(",")), f"stage={stage}"]
    given += [f"trial={trial}"] if trial is not None else []
    init = arguments.init if stage == "base" else str(folder / "base")
    overrides = [f"init={init}"] if init else []
    overrides += [f"seed={seed}"] if seed is not None else []
    config = load_config(f"{file}:{','.join(given)}", overrides + arguments.overrides)
    return run.Job(config, folder / stage)


def main(argv: list[str] | None = None) -> int:
    """Runs what is left to run and averages; returns the exit code."""
    form = dict(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser = argparse.ArgumentParser(description=__doc__, **form)
    parser.add_argument("--config", required=True)
    parser.add_argument("--workdir", required=True, type=compare.folder)
    parser.add_argument("--init", default="")
    parser.add_argument("--trials", type=compare.numbers, default=[None])
    parser.add_argument("--seeds", type=compare.numbers, default=[None])
    arguments, arguments.overrides = parse_with_overrides(parser, argv)

    def both_stages() -> None:
        jobs = []
        for trial, seed in itertools.product(arguments.trials, arguments.seeds):
            named = {"trial": trial, "seed": seed}
            folder = arguments.workdir.joinpath(*(f"{name}{n}" for name, n in named.items() if n is not None))
            jobs += [job(arguments, stage, folder, trial, seed) for stage in STAGES]
        run.chain(jobs)
        order = sorted(jobs, key=lambda one: STAGES.index(Path(one.workdir).name))
        print(compare.write([one.workdir for one in order], arguments.workdir), end="")

    return run_as_command(both_stages)


if __name__ == "__main__":
    sys.exit(main())
