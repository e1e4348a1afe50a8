"""The matches of queries as one HTML file that needs nothing else: small pictures are inlined, everything is escaped.

A query is {"name": str, "pictures": {modality: file}, "captions": {modality: sentence}, "matches": [match, ..]}, and a
match what `tools.search` prints as JSON, with `pictures` {modality: file} too.
"""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from html import escape

import numpy as np
from PIL import Image

SIDE = 112  # pixels of the longer side of a picture
STYLE = """
:root { color-scheme: light dark; font: 14px/1.4 system-ui, sans-serif; }
body { margin: 1.5rem; } h1 { font-size: 1.3rem; } h2 { font-size: 1rem; margin: 2rem 0 .5rem; }
ol { display: flex; flex-wrap: wrap; gap: .75rem; list-style: none; margin: 0; padding: 0; }
li, .query { border: 1px solid #8886; border-radius: 6px; padding: .5rem; max-width: 24rem; }
.query { display: inline-block; border-width: 2px; margin-bottom: .75rem; }
figure { display: inline-block; margin: 0 .25rem 0 0; text-align: center; } figcaption, small { opacity: .75; }
img { display: block; border-radius: 3px; } .unread { width: 56px; height: 112px; background: #8883; }
b { font-variant-numeric: tabular-nums; } small { display: block; overflow-wrap: anywhere; }
"""


def page(queries: Sequence[Mapping], title: str, read: Callable[[str], np.ndarray]) -> str:
    """The page. `read` gives the pixels [h,w,3] uint8 of a file; one for which it raises OSError has no picture."""
    pictures = {}
    for query in queries:
        for shown in (query, *query["matches"]):
            for file in shown["pictures"].values():
                if file not in pictures:
                    pictures[file] = _thumbnail(file, read)
    body = "".join(_query(query, pictures) for query in queries)
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body><h1>{escape(title)}</h1>{body}</body></html>\n'


def _query(query: Mapping, pictures: Mapping[str, str]) -> str:
    captions = "".join(f"<small>{escape(m)}: “{escape(text)}”</small>" for m, text in query["captions"].items())
    shown = f'<div class="query">{_figures(query["pictures"], pictures)}{captions}</div>'
    matches = "".join(f"<li>{_match(match, pictures)}</li>" for match in query["matches"])
    return f"<section><h2>{escape(query['name'])}</h2>{shown}<ol>{matches}</ol></section>"


def _match(match: Mapping, pictures: Mapping[str, str]) -> str:
    chance = "" if match["probability"] is None else f", probability {match['probability']:.3f}"
    by = " + ".join(f"{m} {share:.4f}" for m, share in match["shares"].items()) or "no modality in common"
    known = [f"{key} {match[key]}" for key in ("pid", "camid", "time") if match[key] is not None]
    lines = [by, ", ".join([f"id {match['id']}", *known]), match["path"]]
    numbers = f"<b>{match['rank']}. {match['score']:.4f}</b>{escape(chance)}"
    return f"{_figures(match['pictures'], pictures)}<div>{numbers}</div>" + "".join(
        f"<small>{escape(line)}</small>" for line in lines
    )


def _figures(files: Mapping[str, str], pictures: Mapping[str, str]) -> str:
    return "".join(
        f"<figure>{pictures[file]}<figcaption>{escape(m)}</figcaption></figure>" for m, file in files.items()
    )


def _thumbnail(file: str, read: Callable[[str], np.ndarray]) -> str:
    """An <img> with the picture as a JPEG in it, or an empty place."""
    try:
        image = Image.fromarray(read(file))
    except OSError:
        return '<div class="unread"></div>'
    image.thumbnail((SIDE, SIDE))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=85)
    data = base64.b64encode(out.getvalue()).decode()
    return f'<img alt="" width="{image.width}" height="{image.height}" src="data:image/jpeg;base64,{data}">'
