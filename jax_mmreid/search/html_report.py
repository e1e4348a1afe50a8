"""The matches of queries as one HTML file that needs nothing else: small pictures are inlined, everything is escaped.

A query is {"name": str, "pictures": {modality: file}, "captions": {modality: sentence}, "matches": [match, ..]}, and a
match what `tools.search` prints as JSON, with `pictures` {modality: file} too.
"""

import base64
import io
from collections.abc import Callable, Collection, Mapping, Sequence
from html import escape

import numpy as np
from PIL import Image

from jax_mmreid.search.pictures import shown

SIDE = 112  # pixels of the longer side of a picture
STYLE = """
:root { color-scheme: light dark; font: 14px/1.4 system-ui, sans-serif; }
body { margin: 1.5rem; } h1 { font-size: 1.3rem; } h2 { font-size: 1rem; margin: 2rem 0 .5rem; }
ol { display: flex; flex-wrap: wrap; gap: .75rem; list-style: none; margin: 0; padding: 0; }
li, .query { border: 1px solid #8886; border-radius: 6px; padding: .5rem; max-width: 15rem; }
.query { display: inline-block; border-width: 2px; margin-bottom: .75rem; }
figure { display: inline-block; margin: 0 .25rem 0 0; text-align: center; } figcaption, small { opacity: .75; }
figure div { width: 56px; height: 112px; margin: auto; border-radius: 3px; background: #8883; }
b { font-variant-numeric: tabular-nums; } small { display: block; overflow-wrap: anywhere; }
"""


def page(queries: Sequence[Mapping], title: str, read: Callable[[str], np.ndarray]) -> str:
    """The page. `read` gives the pixels [h,w,3] uint8 of a file; one for which it raises OSError has an empty place.

    A picture is in the page once, however often it is shown.
    """
    rows = [side["pictures"] for query in queries for side in (query, *query["matches"])]
    numbers = {file: i for i, file in enumerate(dict.fromkeys(file for files in rows for file in files.values()))}
    style = STYLE + "".join(_thumbnail(number, file, read) for file, number in numbers.items())
    body = "".join(_query(query, numbers) for query in queries)
    head = f'<meta charset="utf-8"><title>{escape(shown(title))}</title><style>{style}</style>'
    return (
        f'<!doctype html><html lang="en"><head>{head}</head><body><h1>{escape(shown(title))}</h1>{body}</body></html>\n'
    )


def _query(query: Mapping, numbers: Mapping[str, int]) -> str:
    captions = "".join(f"<small>{escape(m)}: “{escape(shown(text))}”</small>" for m, text in query["captions"].items())
    own = f'<div class="query">{_figures(query["pictures"], numbers)}{captions}</div>'
    matches = "".join(f"<li>{_match(match, numbers)}</li>" for match in query["matches"])
    return f"<section><h2>{escape(shown(query['name']))}</h2>{own}<ol>{matches}</ol></section>"


def _match(match: Mapping, numbers: Mapping[str, int]) -> str:
    chance = "" if match["probability"] is None else f", probability {match['probability']:.3f}"
    by = " + ".join(f"{m} {share:.4f}" for m, share in match["shares"].items()) or "no modality in common"
    known = [f"{key} {match[key]}" for key in ("pid", "camid", "time") if match[key] is not None]
    lines = [by, ", ".join([f"id {match['id']}", *known]), match["path"]]
    score = f"<b>{match['rank']}. {match['score']:.4f}</b>{chance}"
    text = "".join(f"<small>{escape(shown(line))}</small>" for line in lines)
    return f"{_figures(match['pictures'], numbers, match['shares'])}<div>{score}</div>{text}"


def _figures(files: Mapping[str, str], numbers: Mapping[str, int], counted: Collection[str] = ()) -> str:
    """Pictures beside each other; the names of modalities that counted are bold."""
    figures = []
    for m, file in files.items():
        picture = f'<div role="img" aria-label="{escape(shown(file))}" class="p{numbers[file]}"></div>'
        name = f"<b>{escape(m)}</b>" if m in counted else escape(m)
        figures.append(f"<figure>{picture}<figcaption>{name}</figcaption></figure>")
    return "".join(figures)


def _thumbnail(number: int, file: str, read: Callable[[str], np.ndarray]) -> str:
    """The style of an element that shows a file as a small JPEG."""
    try:
        image = Image.fromarray(read(file))
    except OSError:
        return ""
    image.thumbnail((SIDE, SIDE))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=85)
    data = base64.b64encode(out.getvalue()).decode()
    size = f"width:{image.width}px;height:{image.height}px"
    return f".p{number}{{{size};background:url(data:image/jpeg;base64,{data})}}\n"
