"""Weights of PyTorch code into a folder that a run can start from, and back out to safetensors.

    python -m jax_mmreid.tools.convert --input=openai/clip-vit-base-patch16 --output=weights/clip_b16
    python -m jax_mmreid.tools.convert --input=ViT-B-16.pt --output=weights/clip_b16
    python -m jax_mmreid.main --config=configs/rgbnt201.py --config.init=weights/clip_b16 --workdir=...
    python -m jax_mmreid.tools.convert --input=runs/rgbnt201 --output=run.safetensors --export=safetensors

--input: a Hub id, a folder or .safetensors file of transformers' CLIP, OpenAI's .pt, a torchvision ResNet-50 or a .pth
of the official TVI-LFM code; with --export a converted folder, the workdir of a run, or a .safetensors file. Only
tensors are read; code in a file is never run.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from jax_mmreid import __version__
from jax_mmreid.errors import ConfigError, DataError, report_error
from jax_mmreid.paths import local
from jax_mmreid.weights import files, layouts, sources
from jax_mmreid.weights import init as weights_init


def convert(source: str, output: str | Path, *, layout: str = "auto", revision: str | None = None) -> None:
    """Writes the converted folder `output`.

    Raises DataError for weights that cannot be read whole, ConfigError if `output` exists or is in a bucket.
    """
    if local(output).exists():
        raise ConfigError(f"{output} exists; choose another --output or remove it")
    found = sources.read(source, revision)
    weights = files.to_weights(found, layout)
    about = {
        "source": source,
        "revision": revision,
        "heads": files.heads(weights),
        "sha256": {file.name: sources.sha256(file) for file in found.files},
        "jax_mmreid": __version__,
    }
    files.save(output, weights, about)
    print(f"{output}: {_contents(weights)}")


def export(source: str, output: str | Path, *, layout: str = "jax_mmreid") -> None:
    """Writes the weights of a converted folder, a run or a .safetensors file to a .safetensors file in `layout`.

    Raises DataError for weights that cannot be read or written in `layout`, ConfigError for an `output` that cannot be.
    """
    weights = weights_init.load(source)
    files.export(output, weights, layout)
    print(f"{output}: {_contents(weights)}")


def _contents(weights: files.Weights) -> str:
    """`image 86,140,416, text 63,428,097 parameters`."""
    counts: dict[str, int] = {}
    for path, leaf in weights.items():
        kind, part, *_ = path.split("/")
        if kind == "params":
            counts[part] = counts.get(part, 0) + leaf.size
    return ", ".join(f"{part} {count:,}" for part, count in counts.items()) + " parameters"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 0 done, 2 bad arguments, 3 weights that cannot be used."""
    parser = argparse.ArgumentParser(
        prog="python -m jax_mmreid.tools.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--input", required=True)
    parser.add_argument("--output", required=True, help="a new folder; with --export a file")
    parser.add_argument("--source", default="auto", choices=("auto", *layouts.LAYOUTS), help="the layout of --input")
    parser.add_argument("--revision", help="of a Hub repository: a branch, tag or commit")
    parser.add_argument("--export", choices=("safetensors",), help="write a file instead of a folder")
    parser.add_argument("--layout", default="jax_mmreid", choices=layouts.LAYOUTS, help="names to export under")
    arguments = parser.parse_args(argv)
    try:
        if arguments.export:
            export(arguments.input, arguments.output, layout=arguments.layout)
        else:
            convert(arguments.input, arguments.output, layout=arguments.source, revision=arguments.revision)
    except (ConfigError, DataError) as error:
        return report_error("convert", error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
