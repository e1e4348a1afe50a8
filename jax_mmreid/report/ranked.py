"""Ranked lists of chosen, random and the worst queries, under each other for several ways to ask."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jax_mmreid.errors import ConfigError
from jax_mmreid.evaluators import TEXT
from jax_mmreid.evaluators.encoder import Side, shown_pictures
from jax_mmreid.evaluators.retrieval import Retrieval
from jax_mmreid.metrics import ranking
from jax_mmreid.metrics.ranking import Ranks
from jax_mmreid.report import charts, frames, lists, rows, sides
from jax_mmreid.report.lists import IMPUTED, RankedList
from jax_mmreid.report.page import Picture, Section
from jax_mmreid.report.sides import Sides
from jax_mmreid.report.subject import Subject

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

LENGTH = 8  # gallery rows of a list
RANDOM, WORST = 2, 2  # queries of each kind that are shown
MOST = 4  # lists of a query
INCHES, BARS, HEAD = 0.8, 0.6, 1.1  # the width of a picture, the heights of the bars and of all words of a list
WORDS = 135  # characters of a line above a list
COLOURS = ("#0072B2", "#CC79A7", "#E69F00", "#56B4E9", "#6F6F6F")  # of shares: none that stands for right or wrong
ABOUT = (
    "What a query finds. Its pictures are on the left, the gallery rows with the greatest scores on the right, best "
    "first, one line for each modality that the list uses. Junk is left out, as in the evaluation. Green frames and ✓ "
    "mark the identity of the query, orange ones and ✗ another. A dashed frame is a picture that is missing. The "
    "figures at the bottom are what each part of the query adds to the score; they add up to it. The bars show them "
    "less their means over the gallery, so what sets a row apart: above zero a part speaks for the row more than for "
    "an average one, below zero less. Hatched bars are of features that stand in for a modality without a picture."
)
CAPTION = "{words}, {why}. {lists} AP is the average precision of the list, and the first match its rank in the CMC."


class Asked(NamedTuple):
    """A row of the evaluation, read."""

    label: str
    row: Mapping
    both: Sides
    ranks: Ranks


def section(subject: Subject, chosen: Sequence[int] = ()) -> Section | None:
    """Lists of chosen rows of the query split, random queries and those with the least AP; None without any row.

    Raises ConfigError for a chosen row that no list can ask for.
    """
    name = sides.widest(subject.rows)
    if not name:
        return None
    asked = [_read(label, row, subject) for label, row in compared(subject.rows, name).items()]
    widest = next(one for one in asked if one.row is subject.rows[name])
    queries = choose(widest, chosen, subject.seed)
    trial = " Galleries are drawn; this is the first draw." if "draw" in widest.row["gallery"] else ""
    pictures = [_picture(subject, asked, query, why) for query, why in queries.items()]
    return Section("Ranked lists", ABOUT + trial, pictures)


def compared(evals: Mapping[str, Mapping], name: str) -> dict[str, Mapping]:
    """The rows whose lists are shown under each other, by label: what the row of this name is worth comparing with.

    Rows of its group with the same splits and junk. Where captions are used, each way to ask, narrow ones first; else
    the row itself, and the first of those that use the least.
    """
    whole = evals[name]

    def key(row: Mapping) -> tuple:
        return row.get("group", ""), row["query"]["split"], row["gallery"]["split"], row["junk"], Retrieval(row).form

    def width(row: Mapping) -> int:
        return len(row["query"]["use"])

    alike = {x: row for x, row in evals.items() if key(row) == key(whole) and "mixed" not in row["query"]}
    if any(part.startswith(TEXT) for row in alike.values() for part in row["query"]["use"]):
        # Options matter where everything is used; else they are variants of the same question.
        kept = [x for x, row in alike.items() if x == name or not row.get("options") or width(row) == width(whole)]
        kept = sorted(kept, key=lambda x: (width(alike[x]), len(alike[x].get("options", {}))))[:MOST]
    else:
        least = min(alike, key=lambda x: width(alike[x]))
        kept = list(dict.fromkeys([name, least]))
    return {evals[x].get("setting", x): evals[x] for x in kept}


def choose(asked: Asked, chosen: Sequence[int], seed: int) -> dict[int, str]:
    """{row of the query split: why it is shown}; random ones and the worst are among those that have a match."""
    found = dict.fromkeys(map(int, chosen), "chosen")
    precisions, own = ranking.average_precisions(asked.ranks), asked.both.rows[0]
    some = np.flatnonzero(~np.isnan(precisions) & ~np.isin(own, chosen))
    drawn = np.random.default_rng(seed).choice(some, min(RANDOM, len(some)), replace=False)
    found |= {int(own[i]): "drawn at random" for i in np.sort(drawn)}
    left = np.setdiff1d(some, drawn)
    worst = left[np.argsort(precisions[left], kind="stable")][:WORST]
    return found | {int(own[i]): "one of the worst" for i in worst}


def _read(label: str, row: Mapping, subject: Subject) -> Asked:
    both = sides.read(row, subject.encoder)
    return Asked(label, row, both, lists.ranks(row, both, subject.encoder))


def _picture(subject: Subject, asked: Sequence[Asked], query: int, why: str) -> Picture:
    """All lists of a query; those whose row it cannot ask are left out."""
    found = []
    for one in asked:
        place = np.flatnonzero(one.both.rows[0] == query)
        if len(place):
            best = lists.read(one.row, one.both, subject.encoder, place.tolist(), LENGTH)[0]
            found.append((one, best, _heading(subject, one, int(place[0]), query)))
    if not found:
        uses, split = ", ".join(sides.used(one.row) for one in asked), asked[0].both.names[0].split
        raise ConfigError(f"row {query} of {split} has nothing to ask with ({uses}); choose others")
    pictures = [
        [_pictures(subject, *side) for side in zip(one.both.names, (np.array([query]), best.gallery))]
        for one, best, _ in found
    ]
    H, W = subject.data.spec.image_size
    heights = [(INCHES * H / W + 0.1) * max(map(len, both)) + BARS + HEAD for both in pictures]

    def paint(figure: "Figure") -> None:
        blocks = figure.subfigures(len(found), 1, squeeze=False, height_ratios=heights)[:, 0]
        for block, (one, best, heading), shown in zip(blocks, found, pictures):
            block.suptitle(heading, x=0.01, ha="left", fontsize=8)
            _paint(block, subject, one, best, shown)

    png = charts.draw(paint, width=(INCHES + 0.1) * (LENGTH + 1) + 0.4, height=sum(heights))
    split = asked[0].both.names[0].split
    words = rows.words(subject, split, query)
    shown = " and ".join(f"{one.label} ({sides.used(one.row)})" for one, _, _ in found)
    text = CAPTION.format(words=words[0].upper() + words[1:], why=why, lists=f"Lists by {shown}.")
    return Picture(f"ranked_{split}_{query}", png, text)


def _heading(subject: Subject, one: Asked, place: int, query: int) -> str:
    """What is said above a list: what it compares, how good it is, and captions that are used."""
    precision, first = ranking.average_precisions(one.ranks)[place], one.ranks.first[place]
    good = f"AP {precision:.3f}, first match at rank {first}" if first else "without a match in the gallery"
    split, use = one.both.names[0].split, one.both.names[0].use
    sentences = subject.data.sentences(split, np.array([query]))
    said = [f"{m}: “{text}”" for m, (text,) in sentences.items() if text and {TEXT, f"{TEXT}/{m}"} & {*use}]
    whole = " ".join([f"{one.label} ({sides.used(one.row)}): {good}.", *said])
    return "\n".join(textwrap.wrap(whole, WORDS, max_lines=3, placeholder=" …"))


def _pictures(subject: Subject, side: Side, own: np.ndarray) -> dict[str, list[np.ndarray | None]]:
    """The pictures of rows that a side uses, {modality: one for each row, None where it is missing}."""
    images, present = subject.data.pictures(side.split, own)
    there, shown = subject.data.present(side.split), shown_pictures(side, subject.data)
    used = [m for m in subject.data.spec.modalities if m in shown and there[m].any()]
    return {m: [x if has else None for x, has in zip(images[m], present[m] & shown[m][own])] for m in used}


def _paint(block: "SubFigure", subject: Subject, one: Asked, best: RankedList, shown: Sequence[Mapping]) -> None:
    """A list: the query in the first column, a gallery row in each of the others, the shares below."""
    query, gallery = shown
    H, W = subject.data.spec.image_size
    lines, k = max(len(query), len(gallery)), len(best.gallery)
    ratios = [INCHES * H / W] * lines + [BARS]
    grid = block.subplots(lines + 1, 1 + LENGTH, squeeze=False, height_ratios=ratios)
    for axes in [*grid[:, 1 + k :].ravel(), grid[-1, 0]]:
        axes.set_axis_off()
    for side, columns in ((query, grid[:-1, :1]), (gallery, grid[:-1, 1 : 1 + k])):
        for axes in columns[len(side) :].ravel():
            axes.set_axis_off()
        for line, (m, pictures) in zip(columns, side.items()):
            if side is query or list(query) != list(gallery):
                line[0].set_ylabel(m, fontsize=7, labelpad=1)
            for axes, picture in zip(line, pictures):
                frames.show(axes, picture)
                axes.set_box_aspect(H / W)
    for axes, picture in zip(grid[:, 0], query.values()):
        if picture[0] is not None:
            frames.frame(axes, "#000000")
    grid[0, 0].set_title("query", fontsize=7)
    if not query:
        grid[0, 0].text(0.5, 0.5, "captions\nonly", ha="center", va="center", color="#555555")
    columns = subject.data.columns(one.both.names[1].split)
    for i, row in enumerate(best.gallery):
        colour, mark = (charts.RIGHT, "✓") if best.matches[i] else (charts.WRONG, "✗")
        for axes, pictures in zip(grid[:, 1 + i], gallery.values()):
            frames.frame(axes, colour, dashed=pictures[i] is None)
        title = f"{i + 1} {mark} {best.scores[i]:.4f}\nid {columns['pid'][row]}, cam {columns['camid'][row]}"
        grid[0, 1 + i].set_title(title, fontsize=7, color=colour)
    _bars(grid[-1], best, subject.data.spec.modalities)


def _bars(line: Sequence["Axes"], best: RankedList, modalities: Sequence[str]) -> None:
    """The shares of each gallery row, in figures and, as bars, less their means over the gallery.

    Each row has a panel, all with one scale; the first one says which bar is which.
    """
    names = dict.fromkeys([*modalities, *(name.removeprefix(IMPUTED) for name in best.shares)])
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    values = np.stack([share - best.typical[name] for name, share in best.shares.items()])
    low, high = min(0.0, values.min()), max(0.0, values.max(), 1e-6)
    for i, axes in enumerate(line[1 : 1 + len(best.gallery)]):
        for x, name in enumerate(best.shares):
            colour, hatch = colours[name.removeprefix(IMPUTED)], "//////" if name.startswith(IMPUTED) else ""
            axes.bar(x, values[x, i], color=colour, hatch=hatch, edgecolor="white", linewidth=0, label=name)
        axes.axhline(0, color="#000000", linewidth=0.5)
        axes.set(xlim=(-1, len(values)), ylim=(low - 0.05 * (high - low), high + 0.05 * (high - low)))
        shares = [f"{share[i]:.4f}" for share in best.shares.values()]
        axes.set_xticks(range(len(shares)), shares, rotation=90, fontsize=6)
        axes.tick_params(axis="x", length=0, pad=1)
        axes.tick_params(axis="y", labelsize=6, labelleft=i == 0, length=2)
    handles, names = line[1].get_legend_handles_labels()
    line[0].legend(handles, names, loc="center", fontsize=6, handlelength=1, title="share of score", title_fontsize=6)
