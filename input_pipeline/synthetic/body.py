"""The outline of a procedural pedestrian: limbs, garments, bag and hat, drawn on a map of parts.

Lengths are in body units: x to the right of the spine and y above the ground, both in statures, so the crown of the
head is at y = 1. `Frame` converts them to pixels.
"""

from dataclasses import dataclass

from PIL import ImageDraw

from input_pipeline.synthetic.people import Camera, Identity, Shot

SHOULDER, CHIN, HEAD = 0.815, 0.865, 0.932  # heights of the shoulder line, the chin and the middle of the head


@dataclass(frozen=True)
class Frame:
    """Where the body stands on the canvas, and the joints that several parts share."""

    x: float  # pixel column of the spine
    ground: float  # pixel row of the ground
    unit: float  # pixels per stature
    width: float  # horizontal stretch
    tilt: float
    turn: float  # -1 faces left, 1 right
    hip: float
    shoulders: float
    belly: float

    @property
    def near(self) -> int:
        """The sign of x on the side that is nearer to the camera."""
        return 1 if self.turn >= 0 else -1

    def point(self, x: float, y: float) -> tuple[float, float]:
        """Pixel column and row of a body point; a camera that looks down lowers the middle of the body."""
        lowered = y - 0.12 * self.tilt * y * (1 - y)
        return self.x + x * self.unit * self.width, self.ground - lowered * self.unit


class Brush:
    """Draws shapes given in body units on the map of parts."""

    def __init__(self, pen: ImageDraw.ImageDraw, frame: Frame):
        self.pen, self.frame = pen, frame

    def polygon(self, points: list[tuple[float, float]], fill: int) -> None:
        """A polygon through the points."""
        self.pen.polygon([self.frame.point(*p) for p in points], fill=fill)

    def box(self, x0: float, y0: float, x1: float, y1: float, fill: int) -> None:
        """A box with rounded corners; (x0, y0) and (x1, y1) are any two opposite corners."""
        (a, b), (c, d) = self.frame.point(x0, y0), self.frame.point(x1, y1)
        edges = min(a, c), min(b, d), max(a, c), max(b, d)
        self.pen.rounded_rectangle(edges, radius=0.018 * self.frame.unit, fill=fill)

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: int, *, top_half: bool = False) -> None:
        """An ellipse around (x, y) with radii rx and ry, or its upper half."""
        (cx, cy), unit = self.frame.point(x, y), self.frame.unit
        rx, ry = rx * unit * self.frame.width, ry * unit
        edges = cx - rx, cy - ry, cx + rx, cy + ry
        if top_half:
            self.pen.pieslice(edges, 180, 360, fill=fill)
        else:
            self.pen.ellipse(edges, fill=fill)

    def stroke(self, points: list[tuple[float, float]], width: float, fill: int) -> None:
        """A line of the given width with round ends and joints."""
        pixels, thick = [self.frame.point(*p) for p in points], width * self.frame.unit * self.frame.width
        self.pen.line(pixels, fill=fill, width=max(1, round(thick)))
        for x, y in pixels:
            self.pen.ellipse((x - thick / 2, y - thick / 2, x + thick / 2, y + thick / 2), fill=fill)


def draw_body(
    pen: ImageDraw.ImageDraw, code: dict[str, int], identity: Identity, camera: Camera, shot: Shot, size: int
) -> Frame:
    """Draws the person on a canvas `size` pixels high, each part in the grey level `code` gives it."""
    frame = Frame(
        x=(0.25 + camera.shift[0] + shot.shift[0]) * size,
        ground=(0.965 + camera.shift[1] + shot.shift[1]) * size,
        unit=0.92 * identity.stature * camera.scale * shot.scale * size,
        width=camera.width,
        tilt=camera.tilt,
        turn=max(-1.0, min(1.0, camera.turn + shot.turn)),
        hip=identity.legs,
        shoulders=identity.shoulders,
        belly=identity.belly,
    )
    brush, near = Brush(pen, frame), frame.near
    if identity.bag == "backpack":
        brush.box(-near * (frame.shoulders + 0.045), 0.80, near * 0.5 * frame.shoulders, 0.56, code["bag"])
    _draw_arm(brush, code, identity, -near, -shot.swing)
    _draw_leg(brush, code, identity, -near, -shot.step)
    _draw_leg(brush, code, identity, near, shot.step)
    _draw_torso(brush, code, identity)
    _draw_arm(brush, code, identity, near, shot.swing)
    _draw_head(brush, code, identity)
    _draw_bag(brush, code, identity, shot.swing)
    return frame


def _hand(frame: Frame, side: int, swing: float) -> tuple[float, float]:
    return side * (frame.shoulders + 0.022) + 0.05 * swing, frame.hip - 0.005 + 0.012 * abs(swing)


def _draw_arm(brush: Brush, code: dict[str, int], identity: Identity, side: int, swing: float) -> None:
    frame = brush.frame
    hand = _hand(frame, side, swing)
    shoulder = side * (frame.shoulders - 0.012), SHOULDER - 0.022
    elbow = side * (frame.shoulders + 0.02) + 0.012 * swing, (SHOULDER + hand[1]) / 2
    sleeve = code["upper" if side == frame.near else "upper_far"]
    brush.stroke([shoulder, elbow, hand], 0.04, code["limb"])
    if identity.upper == "t-shirt":
        middle = 0.35 * shoulder[0] + 0.65 * elbow[0], 0.35 * shoulder[1] + 0.65 * elbow[1]
        brush.stroke([shoulder, middle], 0.054, sleeve)
    else:
        wrist = 0.2 * elbow[0] + 0.8 * hand[0], 0.2 * elbow[1] + 0.8 * hand[1]
        brush.stroke([shoulder, elbow, wrist], 0.056 if identity.upper == "jacket" else 0.06, sleeve)


def _draw_leg(brush: Brush, code: dict[str, int], identity: Identity, side: int, step: float) -> None:
    frame = brush.frame
    hip = side * 0.042, frame.hip
    knee = side * 0.046 + 0.025 * step, 0.53 * frame.hip
    ankle = side * 0.044 + 0.07 * step, 0.045 + 0.012 * abs(step)
    cloth = code["lower" if side == frame.near else "lower_far"]
    toe = 0.022 * frame.turn
    brush.ellipse(ankle[0] + toe, ankle[1] - 0.02, 0.03 + 0.012 * abs(frame.turn), 0.02, code["shoe"])
    if identity.lower == "trousers":
        brush.stroke([hip, knee, ankle], 0.07, cloth)
        return
    brush.stroke([hip, knee, ankle], 0.05, code["limb"])
    if identity.lower == "shorts":
        brush.stroke([hip, knee], 0.08, cloth)


def _draw_torso(brush: Brush, code: dict[str, int], identity: Identity) -> None:
    frame = brush.frame
    hip, broad, belly = frame.hip, frame.shoulders, frame.belly
    if identity.lower == "skirt":
        hem = 0.46 * hip
        brush.polygon([(-belly, hip + 0.03), (belly, hip + 0.03), (0.115, hem), (-0.115, hem)], code["lower"])
    else:
        brush.box(-0.9 * belly, hip + 0.04, 0.9 * belly, hip - 0.03, code["lower"])
    brush.box(-0.026, CHIN + 0.01, 0.026, SHOULDER - 0.015, code["limb"])
    loose = {"t-shirt": 0.0, "jacket": 0.008, "coat": 0.012}[identity.upper]
    hem = {"t-shirt": hip + 0.015, "jacket": hip - 0.035, "coat": 0.72 * hip}[identity.upper]
    flare = 0.02 if identity.upper == "coat" else 0.0
    right = [
        (0.03, SHOULDER + 0.028),
        (broad - 0.01, SHOULDER + 0.008),
        (broad, SHOULDER - 0.03),
        (0.5 * (broad + belly) + loose, 0.68),
        (belly + loose, hip + 0.09),
        (0.95 * belly + loose, hip + 0.02),
        (0.95 * belly + loose + flare, hem),
    ]
    brush.polygon(right + [(-x, y) for x, y in reversed(right)], code["upper"])


def _draw_head(brush: Brush, code: dict[str, int], identity: Identity) -> None:
    turn, near = brush.frame.turn, brush.frame.near
    if identity.hair == "long hair":
        for side in (-1, 1):  # a lock on each side; the neck stays bare
            brush.box(0.04 * side - 0.01 * turn, 0.98, 0.08 * side - 0.01 * turn, 0.75, code["hair"])
    if identity.hair == "bun":
        brush.ellipse(-near * 0.03, 1.0, 0.034, 0.032, code["hair"])
    brush.ellipse(-0.006 * turn, HEAD + 0.006, 0.06, 0.068, code["hair"])
    brush.ellipse(0.014 * turn, HEAD - 0.012, 0.049, 0.058, code["face"])
    for x in (-0.018, 0.018):
        brush.ellipse(0.026 * turn + x, HEAD - 0.004, 0.006, 0.006, code["eyes"])
    if identity.hat == "cap":
        brush.ellipse(0.0, HEAD + 0.02, 0.066, 0.066, code["hat"], top_half=True)
        brush.box(0.0, HEAD + 0.036, near * 0.105, HEAD + 0.014, code["hat"])
    if identity.hat == "brimmed hat":
        brush.ellipse(0.0, HEAD + 0.022, 0.115, 0.02, code["hat"])
        brush.box(-0.058, HEAD + 0.1, 0.058, HEAD + 0.022, code["hat"])


def _draw_bag(brush: Brush, code: dict[str, int], identity: Identity, swing: float) -> None:
    frame, near = brush.frame, brush.frame.near
    if identity.bag == "backpack":
        for side in (-1, 1):
            x = side * 0.6 * frame.shoulders
            brush.stroke([(x, SHOULDER + 0.01), (1.1 * x, 0.62)], 0.02, code["bag"])
    if identity.bag == "shoulder bag":
        x, y = near * (frame.belly + 0.01), frame.hip + 0.02
        brush.stroke([(-near * 0.7 * frame.shoulders, SHOULDER + 0.008), (x, y)], 0.018, code["bag"])
        brush.box(x - 0.055, y + 0.025, x + 0.055, y - 0.075, code["bag"])
    if identity.bag == "handbag":
        x, y = _hand(frame, near, swing)
        brush.stroke([(x - 0.03, y - 0.05), (x, y), (x + 0.03, y - 0.05)], 0.012, code["bag"])
        brush.box(x - 0.055, y - 0.05, x + 0.055, y - 0.15, code["bag"])


def draw_reflectance_marks(pen: ImageDraw.ImageDraw, pattern: str, frame: Frame) -> None:
    """Draws the near-infrared pattern of the upper garment in 255; the caller cuts it to the garment."""
    brush = Brush(pen, frame)
    if pattern in ("horizontal stripes", "checks"):
        for y in (0.77, 0.66, 0.55, 0.44, 0.33):
            brush.box(-0.3, y, 0.3, y - 0.045, 255)
    if pattern in ("vertical stripes", "checks"):
        for x in (-0.16, -0.08, 0.0, 0.08, 0.16):
            brush.box(x - 0.018, 0.9, x + 0.018, 0.2, 255)


def draw_heat_marks(pen: ImageDraw.ImageDraw, pattern: str, frame: Frame) -> None:
    """Draws the warm or cold spot of the clothes in 255; the caller cuts it to the clothes."""
    brush, near = Brush(pen, frame), frame.near
    if pattern == "warm chest":
        brush.ellipse(near * 0.03, 0.74, 0.045, 0.035, 255)
    if pattern == "warm thigh":
        brush.ellipse(near * 0.045, 0.75 * frame.hip, 0.04, 0.045, 255)
    if pattern == "cold hip":
        brush.ellipse(-near * 0.05, frame.hip + 0.01, 0.045, 0.04, 255)
    if pattern == "warm waist":
        brush.box(-0.3, frame.hip + 0.115, 0.3, frame.hip + 0.065, 255)
