"""Reading pictures: bytes to pixels, and pixels to the size of the model's input.

Pillow is the reference for pixels. Ordinary JPEG files, the most frequent kind, are decoded by simplejpeg, which gives
the same pixels within one level in a third of the time; what it does not support or rejects is left to Pillow.
"""

import functools
import io
import os
import struct

import numpy as np
from PIL import Image, UnidentifiedImageError

from jax_mmreid.errors import DataError

try:
    import simplejpeg
except ImportError:  # no wheel for this machine
    simplejpeg = None

# What Pillow's decoders raise for a broken file; a truncated one is an OSError.
BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, Image.DecompressionBombError)
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "PPM", "JPEG2000")  # none that runs another program
STRIP = (128, 768)  # H, W of a file that shows three pictures side by side
RANGE16 = (0, 65535)  # all values of 16 bits


class BadImageError(DataError):
    """The content of a file is not the expected picture; a file that cannot be opened is a plain DataError."""


def read(path: str, range16: tuple[int, int] = RANGE16) -> np.ndarray:
    """The pixels of a file: [h,w,3] uint8 as from `decode`, or the memory-mapped array [N,h,w,3] of an `.npy` file.

    Raises DataError naming a file that cannot be opened or an array of another kind, BadImageError as `decode`.
    """
    if path.endswith(".npy"):
        try:
            return _array(path, os.stat(path).st_mtime_ns)
        except OSError as error:
            raise _unopened(path, error) from error
    try:
        with open(path, "rb", buffering=0) as file:
            data = file.readall()
    except OSError as error:
        raise _unopened(path, error) from error
    return decode(data, path, range16)


def decode(data: bytes, name: str, range16: tuple[int, int] = RANGE16) -> np.ndarray:
    """The bytes of a picture file as [h,w,3] uint8; errors call it `name`.

    Palettes, CMYK and grey become RGB as Pillow converts them; transparency and orientation tags are ignored; the first
    frame of an animation counts. 16-bit grey is mapped to 256 equal steps from `range16[0]` to `range16[1]` and clipped
    outside: a fixed scale, since a scale per picture would make a warm and a cold scene look alike. The default takes
    the high byte, as Pillow does for 16-bit colours.
    Raises BadImageError for what cannot be decoded completely, for what Pillow takes for a decompression bomb, and for
    pixels of 32 bits.
    """
    pixels = _decode_jpeg(data) if data[:3] == b"\xff\xd8\xff" else None
    return _decode_any(data, name, range16) if pixels is None else pixels


def size(data: bytes, name: str) -> tuple[int, int]:
    """Width and height of a picture file by its header alone; raises BadImageError as `decode`."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.size
    except BROKEN as error:
        raise _broken(data, name, error) from error


def fit(
    pixels: np.ndarray, name: str, size: tuple[int, int], resample: Image.Resampling, part: int | None = None
) -> np.ndarray:
    """One picture of what `read` returned, resized by Pillow to `size` (H, W)  ->  [H,W,3] uint8.

    `part` is the row of an array, or the third of a strip counted from the left; None for a file of one picture.
    Raises BadImageError naming the file for a strip of another size, DataError for a part that the file does not have.
    """
    if pixels.ndim == 4 or part is not None:
        pixels = _cut(pixels, name, part)
    height, width = size
    if pixels.shape[:2] == (height, width):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((width, height), resample))


def as_png(path: str, part: int) -> bytes:
    """One picture of a file that holds several, as the bytes of a PNG file; raises as `read` and `fit`."""
    pixels = np.ascontiguousarray(_cut(read(path), path, part))
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def _decode_jpeg(data: bytes) -> np.ndarray | None:
    """The pixels of an ordinary JPEG file from simplejpeg; None for one that it does not support or rejects."""
    if simplejpeg is None:
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours not in ("YCbCr", "Gray") or height * width > Image.MAX_IMAGE_PIXELS:
            return None
        return simplejpeg.decode_jpeg(data, "RGB")
    except ValueError:
        return None


def _decode_any(data: bytes, name: str, range16: tuple[int, int]) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.mode.startswith("I;16"):
                return _to_8_bits(np.asarray(image), range16)
            if image.mode.startswith(("I", "F")):
                raise BadImageError(
                    f"images: {name} has pixels of mode {image.mode}, 32 bits per channel; "
                    "convert it to 8 or 16 bits with a scale that suits the camera"
                )
            return np.asarray(image.convert("RGB"))
    except BROKEN as error:
        raise _broken(data, name, error) from error


def _broken(data: bytes, name: str, error: Exception) -> BadImageError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if isinstance(error, UnidentifiedImageError):  # whose message names a buffer
        reason = "not a picture of a known format" if data else "the file is empty"
    return BadImageError(f"images: cannot read {name} ({reason}); replace the file or remove it")


def _to_8_bits(pixels: np.ndarray, range16: tuple[int, int]) -> np.ndarray:
    """[h,w] uint16 -> [h,w,3] uint8."""
    low, high = range16
    steps = (pixels.clip(low, high).astype(np.int64) - low) * 256 // (high - low + 1)
    return np.repeat(steps.astype(np.uint8)[..., None], 3, axis=2)


def _cut(pixels: np.ndarray, name: str, part: int | None) -> np.ndarray:
    if pixels.ndim == 4:
        if part is None or not 0 <= part < len(pixels):
            raise DataError(f"images: {name} has {len(pixels)} pictures and none with number {part}; fix the list")
        return pixels[part]
    if pixels.shape[:2] != STRIP:
        height, width = pixels.shape[:2]
        raise BadImageError(
            f"images: {name} is {width}x{height} pixels; a strip of three pictures has {STRIP[1]}x{STRIP[0]}"
        )
    third = STRIP[1] // 3
    if not 0 <= part < 3:
        raise DataError(f"images: {name} is a strip of 3 pictures and has none with number {part}; fix the list")
    return pixels[:, part * third : (part + 1) * third]


@functools.lru_cache(maxsize=16)
def _array(path: str, changed: int) -> np.ndarray:
    """The memory-mapped array of a file that was last written at time `changed`."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except BROKEN as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"images: cannot read {path} ({reason}); expected a plain array of pictures, uint8 [N,H,W,3]"
        ) from error
    if not isinstance(array, np.ndarray) or array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] != 3:
        found = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else "an archive"
        raise DataError(f"images: {path} holds {found}; expected an array of pictures, uint8 [N,H,W,3]")
    return array


def _unopened(path: str, error: OSError) -> DataError:
    return DataError(f"images: cannot read {path} ({error.strerror}); replace the file or remove it")
