"""The named evaluation protocols: which gallery rows are junk, what the CMC counts, and which galleries are drawn.

protocol                     junk for a query              CMC counts    gallery
rgbnt201, rgbnt100, market   its own identity and camera   pictures      the whole split
msvr310                      its own identity and scene    pictures      the whole split
regdb                        nothing                       pictures      the whole split: one of ten trials
sysu_mm01                    camera 2, for camera 3        identities    10 draws from cameras 1, 2, 4, 5; indoor: 1, 2
llcm                         its own identity and camera   identities    10 draws from cameras 1 to 9

`row` turns a protocol into fields of `config.evals`; `jax_mmreid.tools.score` applies one to features in a file.
"""

from collections.abc import Mapping
from typing import NamedTuple

from jax_mmreid.errors import ConfigError


class Protocol(NamedTuple):
    """One row of `PROTOCOLS`. Without `trials` the gallery is the whole split, and the fields below it are empty."""

    junk: str  # a rule of metrics.ranking
    cmc: str = "picture"  # what the CMC counts: every gallery picture, or an "identity" once, at its best picture
    trials: int = 0  # how many galleries are drawn; results are the mean
    search: Mapping[str, tuple[int, ...]] = {}  # {search mode: cameras that are drawn from}, the default mode first
    shots: tuple[int, ...] = ()  # pictures of an identity and camera that may be drawn, the default first
    cameras: int = 0  # cameras are numbered 1..cameras; 0 where the numbers play no part


PROTOCOLS = {
    "rgbnt201": Protocol("same_camera"),
    "rgbnt100": Protocol("same_camera"),
    "market": Protocol("same_camera"),
    "msvr310": Protocol("same_view"),
    "regdb": Protocol("none"),
    "sysu_mm01": Protocol("sysu_cameras", "identity", 10, {"all": (1, 2, 4, 5), "indoor": (1, 2)}, (1, 10), cameras=6),
    "llcm": Protocol("same_camera", "identity", 10, {"all": tuple(range(1, 10))}, (1,), cameras=9),
}


def draw(name: str, search: str | None = None, shots: int | None = None) -> dict:
    """{"cameras", "shots"} of the galleries of a protocol that draws, for `metrics.galleries.draw`.

    `search` and `shots` are the protocol's own defaults where None. Raises ConfigError for a protocol without draws,
    and for a search mode or number of shots that it does not have.
    """
    rules = find(name)
    for what, value, known in (("search", search, tuple(rules.search)), ("shots", shots, rules.shots)):
        if value is not None and value not in known:
            raise ConfigError(f"{what}={value}: protocol {name} has {' or '.join(map(str, known)) or 'none'}")
    if not rules.trials:
        raise ConfigError(f"protocol {name} draws no galleries")
    mode = next(iter(rules.search)) if search is None else search
    return dict(cameras=rules.search[mode], shots=rules.shots[0] if shots is None else shots)


def row(name: str, gallery: Mapping, *, search: str | None = None, shots: int | None = None) -> dict:
    """The fields of a retrieval row that a protocol decides: `gallery` with its draw, trials, junk and cmc.

    `gallery` is {"split", "use"} as in `evaluators.retrieval`; raises ConfigError as `draw` does.
    """
    rules = find(name)
    fields = dict(gallery=dict(gallery), junk=rules.junk)
    if rules.trials:
        fields["gallery"]["draw"] = draw(name, search, shots)
        fields["trials"] = rules.trials
    return fields if rules.cmc == "picture" else fields | dict(cmc=rules.cmc)


def find(name: str) -> Protocol:
    """The protocol of this name; raises ConfigError listing the names that exist."""
    if name not in PROTOCOLS:
        raise ConfigError(f"no protocol named {name!r}; there are {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
