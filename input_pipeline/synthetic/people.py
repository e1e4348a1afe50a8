"""Procedural pedestrians: the attributes of identities, cameras and shots in three spectra.

The shape of a person is visible in every spectrum, the colour of the clothes only in RGB, their reflectance only in
NIR, and their heat only in TIR. The four are drawn independently, so that two identities that look similar in one
spectrum usually differ in another.

Every random number comes from a generator keyed by its purpose, so that a picture does not depend on which other
pictures are drawn.
"""

from dataclasses import dataclass

import numpy as np

HAIR = ("short hair", "long hair", "bun")
UPPER = ("t-shirt", "jacket", "coat")
LOWER = ("trousers", "shorts", "skirt")
BAG = ("no bag", "backpack", "shoulder bag", "handbag")
HAT = ("no hat", "cap", "brimmed hat")
REFLECTANCE_PATTERN = ("plain", "horizontal stripes", "vertical stripes", "checks")
HEAT_PATTERN = ("even", "warm chest", "warm thigh", "cold hip", "warm waist")

UPPER_COLOUR = {
    "black": (28, 28, 32),
    "white": (226, 226, 222),
    "red": (186, 40, 42),
    "blue": (45, 78, 172),
    "green": (48, 126, 64),
    "yellow": (216, 186, 52),
    "purple": (112, 55, 136),
    "orange": (222, 116, 40),
}
LOWER_COLOUR = {
    "black": (30, 30, 34),
    "grey": (122, 123, 127),
    "blue": (48, 62, 122),
    "brown": (104, 72, 48),
    "beige": (192, 172, 136),
    "green": (70, 92, 58),
}
HAIR_COLOUR = {"black": (26, 23, 23), "brown": (92, 58, 36), "blond": (202, 166, 96), "grey": (162, 162, 164)}
SKIN_COLOUR = {"light": (234, 194, 166), "medium": (190, 140, 106), "dark": (108, 72, 52)}
BAG_COLOUR = {"black": (36, 36, 40), "brown": (122, 76, 42), "red": (160, 36, 42), "blue": (40, 72, 134)}
REFLECTANCE = {"very dark": 48, "dark": 98, "light": 150, "very light": 202}
HEAT = {"cold": 58, "cool": 92, "lukewarm": 126, "warm": 160}
SHOE_HEAT = {"cold": 42, "cool": 86, "warm": 134}

IDENTITY_STREAM, CAMERA_STREAM, SHOT_STREAM, NOISE_STREAM, TEXT_STREAM = range(5)


def generator(seed: int, stream: int, pid: int = 0, camid: int = 0, image: int = 0) -> np.random.Generator:
    """The generator of one purpose (`stream`) for one identity, camera and image; all are independent."""
    return np.random.default_rng([seed, stream, pid, camid, image])


@dataclass(frozen=True)
class Identity:
    """One identity. Lengths are fractions of the stature; strings are keys of the tables above."""

    # visible in every spectrum
    stature: float  # of the tallest person
    shoulders: float
    legs: float
    belly: float
    hair: str
    upper: str
    lower: str
    bag: str
    hat: str
    # visible only in RGB
    upper_colour: str
    lower_colour: str
    hair_colour: str
    skin_colour: str
    bag_colour: str
    # visible only in NIR
    upper_reflectance: str
    lower_reflectance: str
    reflectance_pattern: str
    # visible only in TIR
    upper_heat: str
    lower_heat: str
    head_heat: float  # grey level
    heat_pattern: str
    shoe_heat: str


@dataclass(frozen=True)
class Camera:
    """How one camera changes every picture; lengths are fractions of the picture's height."""

    scale: float
    width: float  # horizontal stretch of the body
    shift: tuple[float, float]
    turn: float  # -1 people face left, 1 right
    tilt: float  # 0 at eye level, 1 from above: legs look shorter
    gain: tuple[float, ...]  # of R, G, B, NIR, TIR
    ramp: float  # the light falls off across the picture
    blur: float  # pixels at height 64
    noise: float  # grey levels
    horizon: float
    panels: tuple[tuple[float, float], ...]  # left and right edge
    pole: float
    background: dict[str, tuple[float, ...]]  # surface -> grey levels of R, G, B, NIR, TIR


@dataclass(frozen=True)
class Shot:
    """How two pictures of one identity by one camera differ."""

    step: float  # -1..1, swing of the legs
    swing: float  # -1..1, swing of the arms
    turn: float
    shift: tuple[float, float]
    scale: float
    gain: tuple[float, ...]
    backdrop: float  # shift of the background, fraction of the height
    obstacle: tuple[float, float, float] | None  # left, right and upper edge, fractions of the height
    key: tuple[int, ...]  # the noise is that of `generator(*key)`


def make_identity(seed: int, pid: int) -> Identity:
    """The identity `pid` of the dataset `seed`."""
    rng = generator(seed, IDENTITY_STREAM, pid)

    def pick(names):
        return tuple(names)[rng.integers(len(names))]

    return Identity(
        stature=rng.uniform(0.86, 1.0),
        shoulders=rng.uniform(0.095, 0.125),
        legs=rng.uniform(0.43, 0.51),
        belly=rng.uniform(0.075, 0.115),
        hair=pick(HAIR),
        upper=pick(UPPER),
        lower=pick(LOWER),
        bag=pick(BAG),
        hat=pick(HAT),
        upper_colour=pick(UPPER_COLOUR),
        lower_colour=pick(LOWER_COLOUR),
        hair_colour=pick(HAIR_COLOUR),
        skin_colour=pick(SKIN_COLOUR),
        bag_colour=pick(BAG_COLOUR),
        upper_reflectance=pick(REFLECTANCE),
        lower_reflectance=pick(REFLECTANCE),
        reflectance_pattern=pick(REFLECTANCE_PATTERN),
        upper_heat=pick(HEAT),
        lower_heat=pick(HEAT),
        head_heat=rng.uniform(185, 240),
        heat_pattern=pick(HEAT_PATTERN),
        shoe_heat=pick(SHOE_HEAT),
    )


def make_camera(seed: int, camid: int) -> Camera:
    """The camera `camid` of the dataset `seed`; training and test identities have the same cameras."""
    rng = generator(seed, CAMERA_STREAM, camid=camid)

    def surface(rgb, nir, tir):
        base, tint = rng.uniform(*rgb), rng.uniform(-18, 18, 3)
        return (*(float(x) for x in base + tint), rng.uniform(*nir), rng.uniform(*tir))

    lefts = rng.uniform(0.0, 0.45, 2)
    return Camera(
        scale=rng.uniform(0.88, 1.0),
        width=rng.uniform(0.85, 1.1),
        shift=(rng.uniform(-0.02, 0.02), rng.uniform(-0.015, 0.015)),
        turn=rng.uniform(-1, 1),
        tilt=rng.uniform(0, 1),
        gain=tuple(rng.uniform(0.7, 1.15, 5)),
        ramp=rng.uniform(-0.12, 0.12),
        blur=rng.uniform(0.0, 0.7),
        noise=rng.uniform(3, 9),
        horizon=rng.uniform(0.62, 0.85),
        panels=tuple((float(x), float(x + w)) for x, w in zip(lefts, rng.uniform(0.06, 0.16, 2), strict=True)),
        pole=rng.uniform(0.0, 0.5),
        background={
            "wall": surface((95, 175), (75, 160), (40, 90)),
            "ground": surface((70, 140), (60, 140), (50, 110)),
            "panel": surface((60, 200), (50, 190), (30, 110)),
            "pole": surface((40, 90), (40, 110), (30, 80)),
            "obstacle": surface((50, 130), (60, 150), (40, 90)),
        },
    )


def make_shot(seed: int, pid: int, camid: int, image: int) -> Shot:
    """The shot number `image` of identity `pid` by camera `camid`."""
    rng = generator(seed, SHOT_STREAM, pid, camid, image)
    left, width, top = rng.uniform(0.0, 0.4), rng.uniform(0.045, 0.07), rng.uniform(0.55, 0.75)
    return Shot(
        step=rng.uniform(-1, 1),
        swing=rng.uniform(-1, 1),
        turn=rng.uniform(-0.3, 0.3),
        shift=(rng.uniform(-0.025, 0.025), rng.uniform(-0.015, 0.015)),
        scale=rng.uniform(0.97, 1.03),
        gain=tuple(rng.uniform(0.95, 1.05, 5)),
        backdrop=rng.uniform(-0.15, 0.15),
        obstacle=(left, left + width, top) if rng.uniform() < 0.15 else None,
        key=(seed, NOISE_STREAM, pid, camid, image),
    )
