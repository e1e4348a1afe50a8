"""One picture: the fast decoder against Pillow, bad files, conversions to 8-bit RGB, strips and arrays."""

import io
import itertools
import pickle
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from input_pipeline.reading import images
from jax_mmreid.errors import DataError

H, W = 11, 7
BILINEAR, BICUBIC, LANCZOS = Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS


def drawn(height, width, seed=0):
    """Smooth colours with grain, [height,width,3] uint8."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 3, 3)).astype(np.uint8))
    smooth = np.asarray(coarse.resize((width, height), BICUBIC), np.float32)
    return (smooth + rng.normal(0, 8, smooth.shape)).clip(0, 255).astype(np.uint8)


def encoded(pixels, kind="JPEG", mode="RGB", **options):
    out = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(out, kind, **options)
    return out.getvalue()


def pillow(data):
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def off(a, b):
    """The largest difference in levels."""
    assert a.shape == b.shape and a.dtype == b.dtype == np.uint8
    return np.abs(a.astype(int) - b).max()


def jpegs():
    orientation = Image.Exif()
    orientation[0x0112] = 6
    sizes = [(256, 128), (11, 7), (1, 1), (17, 33), (128, 768)]
    for size, mode, quality, progressive in itertools.product(
        sizes, ("RGB", "L", "CMYK"), (30, 90, 100), (False, True)
    ):
        for subsampling in (0, 1, 2) if mode == "RGB" else (-1,):
            options = dict(quality=quality, progressive=progressive, subsampling=subsampling, exif=orientation)
            yield encoded(drawn(*size), mode=mode, **options)


def test_jpegs_are_what_pillow_says_within_a_level(monkeypatch):
    monkeypatch.setattr(ImageFile, "MAXBLOCK", 1 << 20)  # of the encoder, for pictures of little redundancy
    for data in jpegs():
        assert off(images.decode(data, "x.jpg"), pillow(data)) <= 1


def test_ordinary_jpegs_do_not_need_pillow(monkeypatch):
    pytest.importorskip("simplejpeg", reason="has no wheel for this machine")
    monkeypatch.setattr(images, "_decode_any", None)
    for mode in ("RGB", "L"):
        assert images.decode(encoded(drawn(H, W), mode=mode), "x.jpg").shape == (H, W, 3)


def test_without_the_fast_decoder_pillow_reads_all(monkeypatch):
    monkeypatch.setattr(images, "simplejpeg", None)
    data = encoded(drawn(H, W))
    np.testing.assert_array_equal(images.decode(data, "x.jpg"), pillow(data))
    with pytest.raises(DataError, match="cannot read x.jpg .Truncated File Read"):
        images.decode(data[: len(data) // 2], "x.jpg")


@pytest.mark.parametrize("progressive", [False, True])
def test_a_truncated_jpeg_is_refused_wherever_it_ends(progressive):
    data = encoded(drawn(64, 32), quality=80, progressive=progressive)
    for length in range(0, len(data), 3):
        with pytest.raises(images.BadImageError, match=r"cannot read a/x\.jpg \(.+\); replace the file") as error:
            images.decode(data[:length], "a/x.jpg")
        assert "\n" not in str(error.value)


def test_a_flaw_that_pillow_forgives_is_pillows_picture():
    """What the fast decoder finds at fault must not depend on whether it is installed."""
    whole, rng = encoded(drawn(64, 32), quality=80), np.random.default_rng(0)
    accepted = 0
    for at in rng.integers(len(whole) // 3, len(whole) - 2, 200):
        data = whole[:at] + bytes([rng.integers(256)]) + whole[at + 1 :]
        try:
            want = pillow(data)
        except OSError:
            with pytest.raises(images.BadImageError):
                images.decode(data, "x.jpg")
        else:
            accepted += 1
            assert off(images.decode(data, "x.jpg"), want) <= 1
    assert accepted > 100


def png_header(height, width):
    """A PNG whose header gives a huge size, without pixels."""
    chunks = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def jpeg_header(height, width):
    """A JPEG of a few pixels whose header gives a huge size."""
    data = bytearray(encoded(drawn(16, 16)))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


@pytest.mark.parametrize(
    "name, data, reason",
    [
        ("zero.jpg", b"", "the file is empty"),
        ("text.jpg", b"these are not pixels\n", "not a picture of a known format"),
        ("text.png", b"\xff\xd8\xff and then nothing", "not a picture of a known format"),
        ("bomb.png", png_header(60_000, 60_000), "decompression bomb"),
        ("bomb.jpg", jpeg_header(60_000, 60_000), "decompression bomb"),
        ("half.png", encoded(drawn(64, 32), "PNG")[:900], "truncated"),
        ("drawing.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture of a known format"),
    ],
)
def test_what_is_no_picture_is_refused_by_name(tmp_path, name, data, reason):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(images.BadImageError, match=f"cannot read {tmp_path}/{name} .*{reason}.*; replace") as error:
        images.read(str(tmp_path / name))
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_is_no_bad_image(tmp_path):
    for name in ("x.jpg", "x.npy"):
        with pytest.raises(DataError, match=f"cannot read {tmp_path}/{name} .No such file") as error:
            images.read(str(tmp_path / name))
        assert not isinstance(error.value, images.BadImageError)


def test_other_modes_become_rgb_as_pillow_converts_them():
    pixels = drawn(H, W)
    palette = Image.fromarray(pixels).quantize(5)
    clear = Image.fromarray(np.dstack([pixels, pixels[..., :1]]))
    for image, kind in [(palette, "PNG"), (palette, "GIF"), (clear, "PNG"), (clear.getchannel("A"), "BMP")]:
        out = io.BytesIO()
        image.save(out, kind)
        want = np.asarray(Image.open(io.BytesIO(out.getvalue())).convert("RGB"))
        np.testing.assert_array_equal(images.decode(out.getvalue(), "x"), want)
    cmyk = encoded(pixels, mode="CMYK", quality=95)
    np.testing.assert_array_equal(images.decode(cmyk, "x.jpg"), pillow(cmyk))
    np.testing.assert_array_equal(images.decode(encoded(pixels[..., 0], "PNG", "L"), "x")[..., 2], pixels[..., 0])


def test_of_an_animation_the_first_picture_counts():
    first, second = (Image.fromarray(drawn(H, W, seed)) for seed in (0, 1))
    out = io.BytesIO()
    first.save(out, "PNG", save_all=True, append_images=[second])
    np.testing.assert_array_equal(images.decode(out.getvalue(), "x.png"), np.asarray(first))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_become_8_on_a_fixed_scale(kind):
    values = np.array([[0, 1, 255, 256, 257, 1000], [1003, 1004, 2023, 2024, 30_000, 65_535]], np.uint16)
    out = io.BytesIO()
    Image.fromarray(values).save(out, kind)
    read = images.decode(out.getvalue(), "x")
    np.testing.assert_array_equal(read, np.repeat((values >> 8)[..., None], 3, axis=2))
    assert read.dtype == np.uint8
    # 1024 values in 256 steps of 4
    scaled = images.decode(out.getvalue(), "x", (1000, 2023))[..., 0]
    assert scaled.tolist() == [[0, 0, 0, 0, 0, 0], [0, 1, 255, 255, 255, 255]]


def test_32_bits_are_refused(tmp_path):
    Image.fromarray(np.zeros((H, W), np.float32)).save(tmp_path / "deep.tif")
    with pytest.raises(DataError, match="deep.tif has pixels of mode F"):
        images.read(str(tmp_path / "deep.tif"))


@pytest.mark.parametrize("resample", [BILINEAR, BICUBIC, LANCZOS])
def test_resizing_is_pillows(resample):
    data = encoded(drawn(37, 29))
    for height, width in ((17, 13), (37, 29), (61, 30)):
        want = Image.open(io.BytesIO(data)).convert("RGB").resize((width, height), resample)
        got = images.fit(images.decode(data, "x"), "x", (height, width), resample)
        np.testing.assert_array_equal(got, np.asarray(want))


def test_thirds_of_a_strip(tmp_path):
    pixels, path = drawn(128, 768), str(tmp_path / "strip.png")
    (tmp_path / "strip.png").write_bytes(encoded(pixels, "PNG"))
    for part in range(3):
        third = pixels[:, 256 * part : 256 * (part + 1)]
        np.testing.assert_array_equal(images.fit(images.read(path), path, (128, 256), BICUBIC, part), third)
        small = images.fit(images.read(path), path, (H, W), BICUBIC, part)
        np.testing.assert_array_equal(small, np.asarray(Image.fromarray(third).resize((W, H), BICUBIC)))
        np.testing.assert_array_equal(pillow(images.as_png(path, part)), third)
    with pytest.raises(DataError, match="strip.png is a strip of 3 pictures and has none with number 3"):
        images.fit(pixels, path, (H, W), BICUBIC, 3)
    assert images.fit(pixels, path, (H, W), BICUBIC).shape == (H, W, 3)  # without a part it is one picture


def test_a_strip_of_another_size_is_refused():
    for height, width in ((128, 767), (256, 768), (768, 128)):
        with pytest.raises(images.BadImageError, match=f"a/x.jpg is {width}x{height} .*768x128"):
            images.fit(drawn(height, width), "a/x.jpg", (H, W), BICUBIC, 0)


def test_rows_of_an_array(tmp_path):
    path, pixels = str(tmp_path / "x.npy"), np.stack([drawn(13, 5, seed) for seed in range(4)])
    np.save(path, pixels)
    for part in range(4):
        np.testing.assert_array_equal(images.fit(images.read(path), path, (13, 5), BICUBIC, part), pixels[part])
        np.testing.assert_array_equal(pillow(images.as_png(path, part)), pixels[part])
    want = Image.fromarray(pixels[2]).resize((W, H), BILINEAR)
    np.testing.assert_array_equal(images.fit(images.read(path), path, (H, W), BILINEAR, 2), np.asarray(want))
    for part in (None, -1, 4):
        with pytest.raises(DataError, match=f"x.npy has 4 pictures and none with number {part}"):
            images.fit(images.read(path), path, (H, W), BILINEAR, part)


class Trap:
    """Says so when it is unpickled."""

    def __reduce__(self):
        return pytest.fail, ("the pickle was run",)


def test_arrays_with_pickles_or_other_numbers_are_refused(tmp_path):
    np.save(tmp_path / "objects.npy", np.array([Trap()], object), allow_pickle=True)
    (tmp_path / "pickle.npy").write_bytes(pickle.dumps(Trap()))
    np.save(tmp_path / "floats.npy", np.zeros((2, H, W, 3)))
    np.save(tmp_path / "single.npy", np.zeros((H, W, 3), np.uint8))
    (tmp_path / "zero.npy").write_bytes(b"")
    whole = io.BytesIO()
    np.save(whole, np.zeros((2, H, W, 3), np.uint8))
    (tmp_path / "half.npy").write_bytes(whole.getvalue()[:200])
    with open(tmp_path / "archive.npy", "wb") as file:
        np.savez(file, x=np.zeros(3))
    for name in ("objects", "pickle", "floats", "single", "zero", "half", "archive"):
        with pytest.raises(DataError, match=rf"{tmp_path}/{name}\.npy .*expected .*uint8 \[N,H,W,3\]") as error:
            images.read(str(tmp_path / f"{name}.npy"))
        assert "\n" not in str(error.value)
