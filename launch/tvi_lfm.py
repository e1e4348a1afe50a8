"""Both stages of TVI-LFM one after the other, over trials and seeds, and the mean of what they reach.

python launch/tvi_lfm.py --config=configs/quickstart.py:method=tvi_lfm --workdir=runs/quickstart_tvi
python launch/tvi_lfm.py --config=configs/regdb.py --trials=1-10 --init=weights/resnet50,weights/clip_rn50 --workdir=runs/regdb --config.data.data_dir=data/RegDB

--trials and --seeds: numbers to run, as 1-10 or 1,3,5. --init: weights that stage "base" starts from. What else is given
goes to both stages. Every run has a folder of its own, WORKDIR/trial3/seed1/{base,lfm}; the same command goes on where
it stopped, and exits with the code of a stage that did not end well. Writes WORKDIR/results.json and results.md.
"""  # noqa: E501

import argparse
import itertools
import json
import statistics
import subprocess
import sys
from pathlib import Path

COLUMNS = {"R-1": "rank1", "R-5": "rank5", "R-10": "rank10", "R-20": "rank20", "mAP": "mAP", "mINP": "mINP"}
STAGES = ("base", "lfm")


def numbers(text: str) -> list[int]:
    """`1-10`, `3` or `1,3,5` as a list."""
    parts = (part.partition("-") for part in text.split(","))
    return [n for first, _, last in parts for n in range(int(first), int(last or first) + 1)]


def command(arguments: argparse.Namespace, rest: list[str], stage: str, run: Path, trial: int | None, seed: int | None):
    """The command line of one stage of one run."""
    file, _, given = arguments.config.partition(":")
    given = [part for part in given.split(",") if part] + [f"stage={stage}"]
    given += [f"trial={trial}"] if trial is not None else []
    init = arguments.init if stage == "base" else str(run / "base")
    line = [sys.executable, "-m", "jax_mmreid.main", f"--config={file}:{','.join(given)}", f"--workdir={run / stage}"]
    line += [f"--config.init={init}"] if init else []
    return line + ([f"--config.seed={seed}"] if seed is not None else []) + rest


def summary(runs: list[Path]) -> dict[str, dict[str, list[float]]]:
    """{"STAGE ROW": {metric: [mean, standard deviation over the runs]}}."""
    table = {}
    for stage in STAGES:
        rows = [json.loads((run / stage / "results.json").read_text())["evals"] for run in runs]
        for name in rows[0]:
            values = {key: [row[name][key] for row in rows] for key in COLUMNS.values()}
            spread = statistics.stdev if len(runs) > 1 else lambda _: 0.0
            table[f"{stage} {name}"] = {key: [statistics.mean(x), spread(x)] for key, x in values.items()}
    return table


def markdown(table: dict[str, dict[str, list[float]]], count: int) -> str:
    """The summary as a table in percent, with the standard deviation where there are several runs."""
    lines = [f"Mean of {count} runs.", "", "| row | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, row in table.items():
        pairs = [row[key] for key in COLUMNS.values()]
        cells = [f"{100 * mean:.1f}" + (f" ± {100 * spread:.1f}" if count > 1 else "") for mean, spread in pairs]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Runs what is left to run and averages; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--workdir", required=True, type=Path)
    parser.add_argument("--init", default="")
    parser.add_argument("--trials", type=numbers, default=[None])
    parser.add_argument("--seeds", type=numbers, default=[None])
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
    table = summary(runs)
    text = markdown(table, len(runs))
    (arguments.workdir / "results.json").write_text(json.dumps(table, indent=2) + "\n")
    (arguments.workdir / "results.md").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
