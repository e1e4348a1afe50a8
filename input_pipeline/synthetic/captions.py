"""English captions of one spectrum of a procedural pedestrian: true to the picture, in varying words.

Captions mention only parts that are visible in the picture. RGB captions name colours; near infrared captions say how
light or dark the clothes are, thermal ones how warm, and neither names a colour.
"""

import numpy as np

from input_pipeline.synthetic.people import Identity

PERSON = ("person", "pedestrian", "passer-by")
WORDS = {  # the braces hold the word for colour, lightness or warmth, if there is one
    "t-shirt": ("{}t-shirt", "{}short-sleeved top"),
    "jacket": ("{}jacket", "{}long-sleeved jacket"),
    "coat": ("{}coat", "long {}coat"),
    "trousers": ("{}trousers", "long {}trousers"),
    "shorts": ("{}shorts", "short {}trousers"),
    "skirt": ("{}skirt", "{}knee-length skirt"),
    "backpack": ("{}backpack", "{}rucksack"),
    "shoulder bag": ("{}shoulder bag", "{}bag across the shoulder"),
    "handbag": ("{}handbag", "{}bag in one hand"),
    "cap": ("{}cap", "{}peaked cap"),
    "brimmed hat": ("{}brimmed hat", "{}hat with a wide brim"),
    "short hair": ("short {}hair", "{}hair cut short"),
    "long hair": ("long {}hair", "{}hair down to the shoulders"),
    "bun": ("{}hair in a bun", "{}hair tied up in a bun"),
    "shoes": ("{}shoes", "{}footwear"),
    "horizontal stripes": ("with horizontal stripes", "striped from side to side"),
    "vertical stripes": ("with vertical stripes", "striped from top to bottom"),
    "checks": ("with checks", "with a checked pattern"),
    "warm chest": ("a warm spot on the chest", "warmth at the chest"),
    "warm thigh": ("a warm spot on the thigh", "warmth at one thigh"),
    "cold hip": ("a cold spot at the hip", "something cold at the hip"),
    "warm waist": ("a warm band around the waist", "a belt of warmth at the waist"),
}
SENTENCES = (
    "A {person} wearing {upper} and {lower}{extras}.",
    "The {person} is dressed in {lower} and {upper}{extras}.",
    "{upper} over {lower}, worn by a {person}{extras}.",
    "Seen here is a {person} who wears {upper} together with {lower}{extras}.",
)


def make_captions(identity: Identity, seen: frozenset[str], spectrum: str, rng: np.random.Generator) -> tuple[str, str]:
    """A caption of one picture and the same rephrased; `spectrum` is "rgb", "nir" or "tir".

    `seen` names the parts that are visible in the picture (`Drawing.seen`); garments are always mentioned.
    """
    first, second = rng.permutation(len(SENTENCES))[:2]
    return tuple(_sentence(identity, seen, spectrum, rng, SENTENCES[i]) for i in (first, second))


def _sentence(identity: Identity, seen: frozenset[str], spectrum: str, rng, pattern: str) -> str:
    def word(name: str, quality: str = "") -> str:
        return _choose(rng, WORDS[name]).format(quality and quality + " ")

    upper, lower = _qualities(identity, spectrum)
    above, below = _with_article(word(identity.upper, upper)), word(identity.lower, lower)
    if spectrum == "nir" and "reflectance_pattern" in seen:
        above += " " + word(identity.reflectance_pattern)
    text = pattern.format(
        person=_build(identity) + _choose(rng, PERSON),
        upper=above,
        lower=_with_article(below) if identity.lower == "skirt" else below,
        extras=_extras(identity, seen, spectrum, rng, word),
    )
    return text[0].upper() + text[1:]


def _qualities(identity: Identity, spectrum: str) -> tuple[str, str]:
    return {
        "rgb": (identity.upper_colour, identity.lower_colour),
        "nir": (identity.upper_reflectance, identity.lower_reflectance),
        "tir": (identity.upper_heat, identity.lower_heat),
    }[spectrum]


def _extras(identity: Identity, seen: frozenset[str], spectrum: str, rng, word) -> str:
    """Hair, hat, bag, shoes and warm spots, in any order, as the end of a sentence."""
    extras = []
    if "hair" in seen and (identity.hat == "no hat" or identity.hair != "short hair"):
        extras.append(word(identity.hair, identity.hair_colour if spectrum == "rgb" else ""))
    if "hat" in seen:
        extras.append(_with_article(word(identity.hat)))
    if "bag" in seen:
        quality = {"rgb": identity.bag_colour, "nir": "", "tir": "cold"}[spectrum]
        extras.append(_with_article(word(identity.bag, quality)))
    if spectrum == "tir" and "shoe" in seen:
        extras.append(word("shoes", identity.shoe_heat))
    if spectrum == "tir" and "heat_pattern" in seen:
        extras.append(word(identity.heat_pattern))
    if not extras:
        return ""
    extras = [extras[i] for i in rng.permutation(len(extras))]
    return ", with " + (", ".join(extras[:-1]) + " and " + extras[-1] if len(extras) > 1 else extras[0])


def _build(identity: Identity) -> str:
    """Words for unusual sizes only, so that most captions have none."""
    size = "tall " if identity.stature > 0.96 else "small " if identity.stature < 0.89 else ""
    return size + ("stout " if identity.belly > 0.105 else "slim " if identity.belly < 0.083 else "")


def _choose(rng: np.random.Generator, words: tuple[str, ...]) -> str:
    return words[rng.integers(len(words))]


def _with_article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase
