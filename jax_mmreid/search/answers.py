"""What the service answers, as dataclasses that become JSON and the schemas of /openapi.json."""

import dataclasses


class RefusedError(Exception):
    """A request that is not carried out: an HTTP status, and one sentence that names what is wrong and the way out."""

    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status = status


@dataclasses.dataclass(frozen=True)
class Problem:
    """Why a request was refused, in one sentence."""

    error: str


@dataclasses.dataclass(frozen=True)
class Entry:
    """An entry of the gallery. Times are Unix seconds; what is unknown is null, and so is `expires` of one that stays.

    `thumbnail` is the address of its picture, null if there is none to show.
    """

    id: int
    path: str
    pid: int | None
    camid: int | None
    time: float | None
    expires: float | None
    thumbnail: str | None


@dataclasses.dataclass(frozen=True)
class Share:
    """What one of the modalities that the query and the entry both have adds to their score."""

    modality: str
    share: float


@dataclasses.dataclass(frozen=True)
class Match:
    """An entry that was found, with its score in -1..1.

    `probability` that it shows the identity of the query is null without a calibration, and where that cannot say.
    `shares` has the modalities that counted and adds up to the score. It is empty where the two sides have no modality
    in common and were compared by all that each of them has.
    """

    entry: Entry
    score: float
    probability: float | None
    shares: list[Share]


@dataclasses.dataclass(frozen=True)
class Found:
    """The matches of a query, the best first.

    `modalities` and `captions` are those of the query; `searched` counts the entries that the filters let through.
    """

    modalities: list[str]
    captions: list[str]
    searched: int
    matches: list[Match]


@dataclasses.dataclass(frozen=True)
class Deleted:
    """The number of an entry that is gone."""

    id: int


@dataclasses.dataclass(frozen=True)
class Gallery:
    """What can be searched, and within which limits.

    `modalities` and `captions` are what a query may have; `earliest` and `latest` the range of known times; `model`
    names the weights, and `caller` is the name under which this caller stands in the audit log.
    """

    model: str
    modalities: list[str]
    captions: list[str]
    entries: int
    cameras: list[int]
    earliest: float | None
    latest: float | None
    calibrated: bool
    caller: str
    max_matches: int
    max_bytes: int
    max_pixels: int
