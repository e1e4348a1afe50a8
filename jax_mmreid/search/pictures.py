"""Thumbnails of a gallery's pictures: of files below one folder, and of no others."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 256  # pixels of the longer side of a thumbnail
UPLOADED = "upload:"  # paths of entries that were added from uploads, whose pictures are not kept

Read = Callable[[bytes, str], np.ndarray]  # the bytes of a picture file and its name -> [h,w,3] uint8, or DataError


def locate(root: Path | None, path: str) -> Path | None:
    """The file of an entry's path, if it lies below the folder `root`; None if it does not.

    Relative paths start at `root`. Links are followed before the check, so none leads out.
    """
    if root is None or path.startswith(UPLOADED):
        return None
    try:
        file = (root / path).resolve(strict=True)
        return file if file.is_relative_to(root.resolve()) and file.is_file() else None
    except (OSError, RuntimeError, ValueError):  # no such file, a circle of links, a name that no file has
        return None


def thumbnail(file: Path, read: Read, max_bytes: int) -> bytes | None:
    """A small JPEG of a picture file; None for one of more bytes. Raises DataError as `read` does, OSError."""
    with open(file, "rb") as opened:
        data = opened.read(max_bytes + 1)
    if len(data) > max_bytes:
        return None
    image, out = Image.fromarray(read(data, file.name)), io.BytesIO()
    image.thumbnail((SIDE, SIDE))
    image.save(out, "JPEG", quality=88)
    return out.getvalue()


def shown(text: str) -> str:
    """A file name or path as it may be shown: what does not print, or is no text, becomes a question mark."""
    return "".join(c if c.isprintable() else "?" for c in text)
