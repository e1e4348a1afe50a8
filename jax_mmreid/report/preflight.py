"""What preflight found as one page of Markdown."""

from collections.abc import Mapping, Sequence

from jax_mmreid.report.settings import table

MEANINGS = {
    "leaks": "Pictures in training and in test",
    "two_identities": "One picture under two identities",
    "duplicates": "Duplicates inside an identity",
}
SHIFT = ("down, right (% of the longer side)", "pixels")


def page(found: Mapping, limit: int = 10) -> str:
    """What `tools.preflight.preflight` returns as a page, with the first `limit` findings of each kind."""
    lines = ["# Preflight", "", *_summary(found), ""]
    for key, title in MEANINGS.items():
        cells = [
            [*x["rows"], "/".join(map(str, x["pids"])), ", ".join(f"{m} {v:.2f}" for m, v in x["likeness"].items())]
            for x in found[key]
        ]
        lines += _section(title, ["row", "row", "identities", "correlation"], cells, limit)
    suspects = [x for side in (found["labels"] or {}).values() for x in side["suspects"]]
    cells = [[x["row"], str(x["pid"]), str(x["likely"]), f"{x['margin']:.2f}"] for x in suspects]
    lines += _section("Labels that are likely wrong", ["row", "identity", "looks like", "margin"], cells, limit)
    moved = [[x["row"], pair, *_shift(x)] for pair, each in found["alignment"].items() for x in each["rows"]]
    lines += _section("Modalities that are shifted in a row", ["row", "modalities", *SHIFT], moved, limit)
    moved = [
        ["rows without a camera" if camera < 0 else f"camera {camera}", pair, *_shift(each["cameras"][str(camera)])]
        for pair, each in found["alignment"].items()
        for camera in each["shifted"]
    ]
    lines += _section("Modalities that are shifted in all rows of a camera", ["", "modalities", *SHIFT], moved, limit)
    lines += _section("Pictures that cannot be read", [""], [[x] for x in found["unreadable"]], limit)
    return "\n".join(lines + _cameras(found["cameras"], limit)) + "\n"


def _shift(x: Mapping) -> list[str]:
    return [", ".join(f"{100 * v:.1f}" for v in x["shift"]), ", ".join(f"{v:.1f}" for v in x["pixels"])]


def _summary(found: Mapping) -> list[str]:
    counts = [[title, str(len(found[key]))] for key, title in MEANINGS.items()]
    for side, x in (found["labels"] or {}).items():
        counts.append([f"Labels that are likely wrong, {side}", f"{len(x['suspects'])} of {x['judged']} judged"])
    if found["labels"] is None:
        counts.append(["Labels that are likely wrong", "not judged without --workdir"])
    for pair, x in found["alignment"].items():
        counts.append([f"{pair} shifted", f"{len(x['rows'])} rows, {len(x['shifted'])} of {len(x['cameras'])} cameras"])
    counts.append(["Pictures that cannot be read", str(len(found["unreadable"]))])
    rows = ", ".join(f"{n} {split}" for split, n in found["rows"].items())
    return [f"Rows: {rows}.", "", *table(["", "found"], counts)]


def _section(title: str, head: Sequence[str], cells: Sequence[Sequence[str]], limit: int) -> list[str]:
    if not cells:
        return []
    rest = [f"and {len(cells) - limit} more", *[""] * (len(head) - 1)]
    return [f"## {title}", "", *table(head, [*cells[:limit], *([rest] if len(cells) > limit else [])]), ""]


def _cameras(splits: Mapping, limit: int) -> list[str]:
    """Which identities one camera alone shows, and how well pictures reveal their camera; the largest cameras first."""
    cells = []
    for split, each in splits.items():
        rows, alone = (str(sum(x[key] for x in each.values())) for key in ("rows", "alone"))
        cells.append([split, f"all {len(each)}", rows, "", alone, ""])
        for camera, x in sorted(each.items(), key=lambda item: -item[1]["rows"])[:limit]:
            shares = ", ".join(f"{m} {100 * share:.0f}" for m, share in x["recognised"].items())
            cells.append([split, camera, *(str(x[key]) for key in ("rows", "identities", "alone")), shares])
    note = "An identity of one camera has no match across cameras, and its camera gives it away. The last column is "
    note += "how many pictures, in %, are nearer to the mean picture of their own camera than to that of any other."
    head = ["split", "camera", "rows", "identities", "of this camera alone", "camera recognised by its mean picture"]
    return ["## Cameras", "", note, "", *table(head, cells)]
