"""Reading one picture from disk."""

import struct

import numpy as np
from PIL import Image

from jax_mmreid.batch import DataError

# What Pillow's decoders raise for a broken file; a truncated one is an OSError.
BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, Image.DecompressionBombError)


def read(path: str, size: tuple[int, int], resample: Image.Resampling) -> np.ndarray:
    """Decodes `path`, converts it to RGB and resizes it to `size` (H, W)  ->  [H,W,3] uint8.

    Orientation tags are not applied; of an animation the first picture counts. Raises DataError naming the file when
    it cannot be decoded whole, or when it has more than 8 bits per channel, whose scale nobody but the owner knows.
    """
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise DataError(
                    f"images: {path} has pixels of mode {image.mode}, more than 8 bits per channel; "
                    "convert it to 8 bits with a scale that suits the camera"
                )
            pixels = image.convert("RGB")
    except BROKEN as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"images: cannot read {path} ({reason}); replace the file or remove it") from error
    height, width = size
    if pixels.size != (width, height):
        pixels = pixels.resize((width, height), resample)
    return np.asarray(pixels)
