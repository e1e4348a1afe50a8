"""Serves a page, and an HTTP interface, that search a gallery by pictures of any modalities.

    python -m jax_mmreid.tools.serve --workdir=runs/quickstart --gallery=gallery --pictures=FOLDER
    python -m jax_mmreid.tools.serve --workdir=runs/quickstart --gallery=gallery --host=0.0.0.0 --token_file=tokens

The gallery is a store that tools.embed made with the same model. Only this machine is answered, unless --host says
otherwise; callers then need a token. Tokens are lines NAME:TOKEN, in a file or in the environment variable
JAX_MMREID_TOKENS; the names appear in the audit log of the store. Traffic is not encrypted: between machines, put a
proxy that speaks TLS before it.

Pictures that are sent are not kept. Thumbnails are shown of pictures below --pictures only.
"""

import argparse
import contextlib
import functools
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from input_pipeline.reading import images
from jax_mmreid import run
from jax_mmreid.errors import ConfigError, DataError
from jax_mmreid.inference import TrainedModel
from jax_mmreid.search.calibration import Calibration
from jax_mmreid.search.engine import Engine, Limits
from jax_mmreid.search.guard import is_loopback, parse_tokens
from jax_mmreid.search.service import MISSING, create_app
from jax_mmreid.tools.embed import command, open_store, parser, reads_captions

TOKENS = "JAX_MMREID_TOKENS"


def read_picture(data: bytes, name: str, *, range16: tuple[int, int], max_pixels: int) -> np.ndarray:
    """The pixels of a picture file [h,w,3] uint8; raises DataError if it is broken or, before decoding, too large."""
    width, height = images.size(data, name)
    if width * height > max_pixels:
        raise DataError(
            f"{name} has {width}x{height} pixels, {width * height / 1e6:.1f} megapixels, and the limit is "
            f"{max_pixels / 1e6:g}; make it smaller"
        )
    return images.decode(data, name, range16)


def make_engine(
    model: TrainedModel,
    gallery: str | Path,
    *,
    pictures: str = "",
    calibration: Calibration | None = None,
    limits: Limits | None = None,
) -> Engine:
    """A model over a store, ready to search; raises DataError for a store that is not of this model."""
    limits = Limits() if limits is None else limits
    if pictures and not Path(pictures).is_dir():
        raise ConfigError(f"--pictures={pictures} is no folder")
    return Engine(
        model,
        open_store(gallery, model),
        functools.partial(read_picture, range16=tuple(model.spec.range16), max_pixels=limits.pixels),
        captions=model.spec.text if reads_captions(model) else (),
        calibration=calibration,
        pictures=Path(pictures).resolve() if pictures else None,
        limits=limits,
    )


def read_tokens(file: str, host: str) -> dict[str, str]:
    """{name: token} of a file, else of the environment; raises ConfigError if there is none and the host needs one."""
    if file:
        try:
            return parse_tokens(Path(file).read_text(), f"--token_file={file}")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is no text"
            raise ConfigError(f"--token_file={file} cannot be read ({reason}); it has lines NAME:TOKEN") from error
    if os.environ.get(TOKENS):
        return parse_tokens(os.environ[TOKENS], TOKENS)
    if not is_loopback(host):
        raise ConfigError(
            f"--host={host} can be reached from other machines, so a token is needed; write NAME:TOKEN into a file and "
            f"name it with --token_file, or into the environment variable {TOKENS}"
        )
    return {}


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens; raises ConfigError for an address that cannot be had."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"--host={host} --port={port}: {getattr(error, 'strerror', None) or error}") from error


def serve(arguments: argparse.Namespace) -> None:
    """What the command does with its parsed arguments; returns when it is stopped."""
    try:
        import uvicorn
    except ImportError as error:
        raise ConfigError(MISSING) from error
    for name in ("megapixels", "mebibytes"):
        if not getattr(arguments, name) > 0:
            raise ConfigError(f"--{name}={getattr(arguments, name)}: must be above 0")
    tokens = read_tokens(arguments.token_file, arguments.host)
    model = run.load_model(arguments.workdir, arguments.step, part_rows=1)
    calibration = Calibration.find([arguments.gallery, arguments.workdir], model.identity)
    limits = Limits(bytes=int(arguments.mebibytes * 2**20), pixels=int(arguments.megapixels * 1e6))
    engine = make_engine(model, arguments.gallery, pictures=arguments.pictures, calibration=calibration, limits=limits)
    app = create_app(engine, tokens=tokens, user=arguments.caller)
    with bind(arguments.host, arguments.port) as listening:
        engine.warm_up()
        host, port = listening.getsockname()[:2]
        print(f"{arguments.gallery}: {len(engine.store)} entries of model {model.identity}", flush=True)
        print(f"serving http://{f'[{host}]' if ':' in host else host}:{port}  (Ctrl+C stops it)", flush=True)
        config = uvicorn.Config(app, log_level="warning", server_header=False, ws="none")
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listening])


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 0 stopped, 2 bad arguments, 3 a store that cannot be used."""
    flags = parser(__doc__, "serve")
    flags.add_argument("--gallery", required=True, metavar="STORE", help="folder of the store")
    flags.add_argument("--pictures", default="", metavar="ROOT", help="folder below which thumbnails may be taken")
    flags.add_argument("--host", default="127.0.0.1", help="address to listen at; default: this machine only")
    flags.add_argument("--port", type=int, default=8000, help="0: any that is free")
    flags.add_argument("--token_file", default="", metavar="FILE", help="lines NAME:TOKEN")
    flags.add_argument("--megapixels", type=float, default=Limits().pixels / 1e6, help="of a picture, at most")
    flags.add_argument("--mebibytes", type=float, default=Limits().bytes / 2**20, help="of a request, at most")
    return command("serve", serve, flags.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
