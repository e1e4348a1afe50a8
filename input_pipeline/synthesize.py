"""Draws multi-spectral pedestrians with captions to disk, in the folders and file names of a published dataset.

python -m input_pipeline.synthesize --layout=rgbnt201 --output=DIR --seed=0

The same arguments write the same bytes, and a picture does not depend on how many others are drawn. Captions go
into the JSON files of TVI-LFM (NeurIPS 2024), under the captioner name `Blip`. The folder appears only when it is
complete. `synthesized.json` holds the arguments.
"""

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from input_pipeline.synthetic import layouts
from input_pipeline.synthetic.scenes import Plan, write_json
from jax_mmreid.errors import ConfigError, DataError

HELP = {
    "cameras": "shared by training and test identities",
    "images_per_camera": "of each identity, in each spectrum",
    "height": "pixels; the width is half of it",
}


def synthesize(output: str | Path, *, layout: str = "rgbnt201", **plan: int) -> None:
    """Draws a dataset of pedestrians into the new or empty folder `output`; `plan` are fields of `scenes.Plan`.

    Raises ConfigError for an unknown layout or a number out of range, DataError if `output` is not empty or cannot be
    written.
    """
    drawing = Plan(**plan)
    writer = layouts.find(layout)
    output = Path(output).resolve()
    try:
        if output.exists() and not (output.is_dir() and not any(output.iterdir())):
            raise DataError(f"synthesize: {output} is not an empty folder; name a new --output or empty it first")
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=".synthesize-") as folder:
            draft = Path(folder) / output.name
            draft.mkdir()
            writer.write(draft, drawing)
            write_json(draft / "synthesized.json", {"layout": layout, **vars(drawing)})
            if output.exists():
                output.rmdir()
            draft.rename(output)
    except OSError as error:
        raise DataError(f"synthesize: cannot write {output} ({error}); name another --output") from error


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 0 done, 2 bad arguments, 3 the folder cannot be written."""
    parser = argparse.ArgumentParser(prog="python -m input_pipeline.synthesize", description=__doc__.splitlines()[0])
    parser.add_argument("--layout", default="rgbnt201", help=f"one of: {', '.join(layouts.LAYOUTS)}")
    parser.add_argument("--output", required=True, help="a new or empty folder")
    for field in dataclasses.fields(Plan):
        parser.add_argument(f"--{field.name}", type=int, default=field.default, help=HELP.get(field.name))
    try:
        synthesize(**vars(parser.parse_args(argv)))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except DataError as error:
        print(error, file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
