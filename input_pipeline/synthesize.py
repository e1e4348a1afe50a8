"""Procedural multi-spectral pedestrians on disk, in the folders and file names of an official dataset.

python -m input_pipeline.synthesize --layout=rgbnt201 --output=DIR --seed=0

The same arguments write the same bytes, and a picture does not depend on how many others are drawn. Captions go
into the JSON files of TVI-LFM (NeurIPS 2024), under the captioner name its readers expect, `Blip`. The folder
appears only once it is complete. `synthesized.json` keeps the arguments.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from input_pipeline.synthetic import layouts
from input_pipeline.synthetic.scenes import Plan, write_json
from jax_mmreid.errors import DataError


def synthesize(
    output: str | Path,
    *,
    layout: str = "rgbnt201",
    seed: int = 0,
    num_train_ids: int = 96,
    num_test_ids: int = 32,
    cameras: int = 4,
    images_per_camera: int = 2,
    height: int = 256,
) -> None:
    """Draws a dataset of pedestrians into the new or empty folder `output`; pictures are height x height // 2 pixels.

    Raises ValueError for an unknown layout or an impossible number, DataError where `output` holds something.
    """
    plan = Plan(seed, num_train_ids, num_test_ids, cameras, images_per_camera, height)
    writer = layouts.find(layout)
    _check(plan)
    output = Path(output).resolve()
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise DataError(f"synthesize: {output} is not an empty folder; name a new --output or empty it first")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".synthesize-") as holder:
        draft = Path(holder) / output.name
        draft.mkdir()
        writer.write(draft, plan)
        write_json(draft / "synthesized.json", {"layout": layout, **vars(plan)})
        if output.exists():
            output.rmdir()
        draft.rename(output)


def _check(plan: Plan) -> None:
    limits = {  # the upper ones come from the digits in the file names
        "seed": (0, 2**32 - 1),
        "num_train_ids": (1, 499_999),
        "num_test_ids": (1, 499_999),
        "cameras": (1, 9),
        "images_per_camera": (1, 1000),
        "height": (32, 4096),
    }
    for name, (low, high) in limits.items():
        value = getattr(plan, name)
        if not low <= value <= high:
            raise ValueError(f"synthesize: {name} is {value}, expected {low} to {high}")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 0 done, 2 bad arguments, 3 the folder cannot be written."""
    parser = argparse.ArgumentParser(prog="python -m input_pipeline.synthesize", description=__doc__.splitlines()[0])
    parser.add_argument("--layout", default="rgbnt201", help=f"one of: {', '.join(layouts.LAYOUTS)}")
    parser.add_argument("--output", required=True, help="a new or empty folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num_train_ids", type=int, default=96)
    parser.add_argument("--num_test_ids", type=int, default=32)
    parser.add_argument("--cameras", type=int, default=4, help="shared by training and test people")
    parser.add_argument("--images_per_camera", type=int, default=2, help="of each person, in each spectrum")
    parser.add_argument("--height", type=int, default=256, help="pixels; the width is half of it")
    arguments = vars(parser.parse_args(argv))
    try:
        synthesize(**arguments)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    except DataError as error:
        print(error, file=sys.stderr)
        return 3
    except OSError as error:
        print(f"synthesize: cannot write {arguments['output']}: {error}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
