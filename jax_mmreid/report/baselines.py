"""Learned results beside those without learning, and one line of advice that follows from the numbers.

Results belong together that have the same setting, or are of the same pair of settings.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from jax_mmreid.recipes.missing_settings import MEAN
from jax_mmreid.report import settings

SHOWN = ("mAP", "rank1")  # in a cell of the table
# Of the advice: fewer identities are few, a model below this accuracy has not learned its training data, and a larger
# share than this of identities, or pairs, is most of them.
FEW, FITTED, MOST = 200, 0.9, 0.8


class Facts(NamedTuple):
    """What the advice follows from, apart from the results."""

    identities: int  # of training
    cameras: int  # of training; with one, or none that are known, nothing follows from cameras
    one_camera: int  # training identities that one camera alone has seen
    same_camera: float  # the fraction of training pairs of one identity that are of one camera
    accuracy: float | None  # of the last training batches in the log; None if it has none
    pretrained: bool  # whether training began with given weights


class Score(NamedTuple):
    """What a setting reached, as fractions."""

    setting: str
    learned: float
    best: float
    feature: str  # whose `best` is


def tables(results: Mapping) -> Iterator[list[str]]:
    """A table with a line for the learned results and for each descriptor, mAP / R-1 in percent; heat maps of pairs."""
    modalities, found = results["modalities"], _unlearned(results["evals"])
    columns = list(dict.fromkeys(key for rows in found.values() for key in rows))
    if columns:
        learned = _learned(results["evals"])
        lines = [["learned", *(_cell(learned.get(key)) for key in columns)]]
        lines += [[feature, *(_cell(rows.get(key)) for key in columns)] for feature, rows in found.items()]
        yield settings.table(["mAP / R-1", *(_label(key, modalities) for key in columns)], lines)
    for group, names in settings.forms(results["evals"], modalities).pairs.items():
        pairs = {pair: results["evals"][name] for pair, name in names.items()}
        if all(row["kind"] == settings.UNLEARNED for row in pairs.values()):
            yield settings.heat_map(f"{group}: mAP", {pair: row["mAP"] for pair, row in pairs.items()}, modalities)


def advice(results: Mapping, facts: Facts) -> str:
    """How learned results stand to those without learning, and what to do, with the numbers that it follows from.

    `results` have "evals" and "modalities", as in results.json; "" where nothing was measured without learning.
    """
    scores = compare(results)
    if not scores:
        return ""
    behind = [score for score in scores if score.learned <= score.best]
    return f"{_verdict(scores, behind)} {_what_to_do(bool(behind), facts)}".strip()


def compare(results: Mapping) -> list[Score]:
    """Every setting that was measured with and without learning, means left out, with the best descriptor in it."""
    learned, found, scores = _learned(results["evals"]), _unlearned(results["evals"]), []
    for key in dict.fromkeys(key for rows in found.values() for key in rows):
        best, feature = max((rows[key]["mAP"], feature) for feature, rows in found.items() if key in rows)
        if key in learned and key != MEAN:
            scores.append(Score(_label(key, results["modalities"]), learned[key]["mAP"], best, feature))
    return scores


def _learned(evals: Mapping[str, Mapping]) -> dict[str, Mapping]:
    """{setting: its first learned result}."""
    found = {}
    for row in evals.values():
        if row["kind"] == settings.KIND and "pair" not in row and "setting" in row:
            found.setdefault(row["setting"], row)
    return found


def _unlearned(evals: Mapping[str, Mapping]) -> dict[str, dict[str, Mapping]]:
    """{group: {setting: result without learning}}."""
    found = {}
    for row in evals.values():
        if row["kind"] == settings.UNLEARNED and "pair" not in row and "setting" in row:
            found.setdefault(row.get("group", ""), {})[row["setting"]] = row
    return found


def _label(setting: str, modalities: Sequence[str]) -> str:
    return settings.label("", {"kind": settings.KIND, "setting": setting}, modalities)


def _cell(row: Mapping | None) -> str:
    return "" if row is None else " / ".join(f"{100 * row[key]:.1f}" for key in SHOWN)


def _verdict(scores: list[Score], behind: list[Score]) -> str:
    worst = min(scores, key=lambda score: score.learned - score.best)
    numbers = f"mAP {100 * worst.learned:.1f}, without learning {100 * worst.best:.1f} ({worst.feature})"
    if behind:
        return f"Learning does not pay in {len(behind)} of {len(scores)} settings; at {worst.setting} {numbers}."
    return f"Learning pays in all {len(scores)} settings; least at {worst.setting}: {numbers}."


def _what_to_do(behind: bool, facts: Facts) -> str:
    """The first of these rules that applies."""
    identities, accuracy = facts.identities, facts.accuracy
    if facts.cameras > 1 and facts.one_camera > MOST * identities:
        return (
            f"The cameras give identities away: {facts.one_camera} of {identities} training identities are seen by one "
            "camera only; add images of them from other cameras."
        )
    if facts.cameras > 1 and facts.same_camera > MOST:
        return (
            f"The cameras give identities away: of the training pairs of one identity, {100 * facts.same_camera:.0f} % "
            "are of one camera; add images from other cameras."
        )
    if accuracy is not None and accuracy < FITTED:
        return f"Train longer: the training accuracy is {100 * accuracy:.0f} %."
    if not behind:
        return ""
    fitted = "" if accuracy is None else f", and the training accuracy is {100 * accuracy:.0f} %"
    clip, add = "Start from CLIP's weights", "Add identities"
    what = add if facts.pretrained else f"{add}, or start from CLIP's weights" if identities < FEW else clip
    return f"{what}: training has {identities} identities{fitted}."
