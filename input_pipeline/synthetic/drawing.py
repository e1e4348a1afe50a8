"""Draws a procedural pedestrian in three spectra.

The scene is drawn once, as a map of parts. A spectrum is a table from part to grey level, so it cannot show an
attribute that its table does not use. The camera then adds light, blur and noise.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from input_pipeline.synthetic.body import draw_body, draw_heat_marks, draw_reflectance_marks
from input_pipeline.synthetic.people import (
    BAG_COLOUR,
    HAIR_COLOUR,
    HEAT,
    LOWER_COLOUR,
    REFLECTANCE,
    SHOE_HEAT,
    SKIN_COLOUR,
    UPPER_COLOUR,
    Camera,
    Identity,
    Shot,
    generator,
)

PARTS = (
    *("wall", "ground", "panel", "pole", "obstacle"),
    *("hair", "eyes", "face", "limb", "upper", "upper_far", "lower", "lower_far", "shoe", "bag", "hat"),
)
PART_CODE = {name: code for code, name in enumerate(PARTS)}
FAR_SHADE = 0.82  # the arm and leg on the far side are in the shade of the body


@dataclass(frozen=True)
class Drawing:
    """Three aligned pictures and the names of their visible parts."""

    pictures: dict[str, np.ndarray]  # "rgb" [H,W,3], "nir" [H,W], "tir" [H,W], uint8
    seen: frozenset[str]  # names in PARTS, and "reflectance_pattern", "heat_pattern"


def _levels(identity: Identity, camera: Camera) -> np.ndarray:
    """The grey level of every part in every channel: [len(PARTS), 5] uint8, channels R, G, B, NIR, TIR."""
    skin, head = SKIN_COLOUR[identity.skin_colour], identity.head_heat
    upper = (
        *UPPER_COLOUR[identity.upper_colour],
        REFLECTANCE[identity.upper_reflectance],
        HEAT[identity.upper_heat],
    )
    lower = (
        *LOWER_COLOUR[identity.lower_colour],
        REFLECTANCE[identity.lower_reflectance],
        HEAT[identity.lower_heat],
    )
    rows = camera.background | {
        "hair": (*HAIR_COLOUR[identity.hair_colour], 70, 118),
        "eyes": (40, 32, 30, 60, 0.8 * head),
        "face": (*skin, 178, head),
        "limb": (*skin, 172, 0.9 * head),
        "upper": upper,
        "upper_far": [FAR_SHADE * x for x in upper[:4]] + [upper[4]],
        "lower": lower,
        "lower_far": [FAR_SHADE * x for x in lower[:4]] + [lower[4]],
        "shoe": (46, 44, 48, 84, SHOE_HEAT[identity.shoe_heat]),
        "bag": (*BAG_COLOUR[identity.bag_colour], 118, 22),
        "hat": (70, 72, 82, 128, 76),
    }
    return np.array([rows[name] for name in PARTS]).clip(0, 255).astype(np.uint8)


def draw(identity: Identity, camera: Camera, shot: Shot, *, height: int) -> Drawing:
    """One shot of one identity in three spectra, `height` x `height // 2` pixels."""
    over = 4 if height <= 96 else 2  # drawn larger, then averaged: smooth edges
    size = (height // 2 * over, height * over)
    parts = Image.new("L", size)
    _draw_background(parts, camera, shot)
    frame = draw_body(ImageDraw.Draw(parts), PART_CODE, identity, camera, shot, height * over)
    _draw_obstacle(parts, shot)

    stripes, spots = Image.new("L", size), Image.new("L", size)
    draw_reflectance_marks(ImageDraw.Draw(stripes), identity.reflectance_pattern, frame)
    draw_heat_marks(ImageDraw.Draw(spots), identity.heat_pattern, frame)
    stripes = ImageChops.darker(stripes, _mask(parts, "upper"))
    spots = ImageChops.darker(spots, _mask(parts, "upper", "lower"))

    tables = np.zeros((256, 5), np.uint8)
    tables[: len(PARTS)] = _levels(identity, camera)
    channels = [parts.point(table.tolist()) for table in tables.T]
    reflectance = REFLECTANCE[identity.upper_reflectance]
    channels[3].paste(reflectance + 64 if reflectance < 128 else reflectance - 64, mask=stripes)
    channels[4].paste(12 if identity.heat_pattern.startswith("cold") else 225, mask=spots)

    pixels = _film([x.reduce(over) for x in channels], camera, shot, height)
    pictures = {"rgb": pixels[..., :3], "nir": pixels[..., 3], "tir": pixels[..., 4]}
    return Drawing(pictures, _seen(parts, stripes, spots))


def _mask(parts: Image.Image, *names: str) -> Image.Image:
    codes = [PART_CODE[name] for name in names]
    return parts.point([255 * (code in codes) for code in range(256)])


def _draw_background(parts: Image.Image, camera: Camera, shot: Shot) -> None:
    pen, (w, h) = ImageDraw.Draw(parts), parts.size
    pen.rectangle((0, 0, w, h), fill=PART_CODE["wall"])
    for left, right in camera.panels:
        edges = (left + shot.backdrop) * h, 0.12 * h, (right + shot.backdrop) * h, camera.horizon * h
        pen.rectangle(edges, fill=PART_CODE["panel"])
    pen.rectangle((0, camera.horizon * h, w, h), fill=PART_CODE["ground"])
    x = (camera.pole + shot.backdrop) * h
    pen.rectangle((x, 0, x + 0.02 * h, (camera.horizon + 0.03) * h), fill=PART_CODE["pole"])


def _draw_obstacle(parts: Image.Image, shot: Shot) -> None:
    """An obstacle before the person, narrow enough never to hide a garment entirely."""
    if shot.obstacle:
        left, right, top = (x * parts.height for x in shot.obstacle)
        ImageDraw.Draw(parts).rectangle((left, top, right, parts.height), fill=PART_CODE["obstacle"])


def _film(channels: list[Image.Image], camera: Camera, shot: Shot, height: int) -> np.ndarray:
    """The picture that the camera takes, with light, blur and noise: [H,W,5] uint8."""
    blur = ImageFilter.GaussianBlur(camera.blur * height / 64)
    pixels = np.stack([np.asarray(x.filter(blur), np.float32) for x in channels], axis=-1)
    pixels *= np.array(camera.gain, np.float32) * np.array(shot.gain, np.float32)
    pixels *= np.linspace(1 - camera.ramp, 1 + camera.ramp, pixels.shape[1], dtype=np.float32)[:, None]
    noise = generator(*shot.key).standard_normal(pixels.shape, np.float32)
    return (pixels + camera.noise * noise).round().clip(0, 255).astype(np.uint8)


def _seen(parts: Image.Image, stripes: Image.Image, spots: Image.Image) -> frozenset[str]:
    """Names of the parts that cover at least 3 pixels of a picture 64 high; captions mention no others."""
    enough = 3 / (64 * 32) * parts.width * parts.height
    counts = dict(zip(PARTS, parts.histogram(), strict=False))
    counts |= {"reflectance_pattern": stripes.histogram()[255], "heat_pattern": spots.histogram()[255]}
    return frozenset(name for name, count in counts.items() if count >= enough)
