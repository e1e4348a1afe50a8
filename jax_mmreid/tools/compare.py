"""Prints finished runs side by side: means and spreads over seeds, and the differences to published numbers.

    python -m jax_mmreid.tools.compare runs/sweep runs/rgbnt201
    python -m jax_mmreid.tools.compare runs/sweep --metric=rank1

Each DIR is the workdir of a run, or a folder with such workdirs anywhere below it. Runs that differ only in the seed,
or in RegDB's trial, are averaged. A run whose results are not of its last step is left out and named.
"""

import argparse
import sys
from collections.abc import Sequence

from jax_mmreid.errors import ConfigError, report_error
from jax_mmreid.report import compare


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 0 done, 2 bad arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m jax_mmreid.tools.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("dirs", nargs="+", metavar="DIR")
    parser.add_argument("--metric", default="", help="what settings of missing modalities show; default mAP")
    arguments = parser.parse_args(argv)
    try:
        print(compare.markdown(compare.summary(arguments.dirs), arguments.metric), end="")
    except ConfigError as error:
        return report_error("compare", error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
