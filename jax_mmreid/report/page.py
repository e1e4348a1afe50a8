"""One HTML file of titled sections that needs nothing else: pictures are inlined, all text is escaped, nothing runs."""

import base64
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

STYLE = """
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; }
body { margin: 1.5rem auto; padding: 0 1rem; max-width: 75rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; } p { max-width: 50rem; white-space: pre-line; }
nav ul { columns: 16rem; padding-left: 1.2rem; }
figure { margin: 1rem 0 2rem; } figcaption, caption { opacity: .8; max-width: 50rem; text-align: left; }
img { background: #fff; border-radius: 6px; max-width: 100%; height: auto; }
.wide { overflow-x: auto; margin: 1rem 0; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { padding-bottom: .3rem; } th, td { border: 1px solid #8886; padding: .15rem .5rem; text-align: left; }
.number { text-align: right; } thead { background: #8882; }
"""


class Picture(NamedTuple):
    """A PNG picture with what is seen in it and how to read it, in plain text."""

    name: str  # of its file, without ".png"
    png: bytes
    caption: str


class Section(NamedTuple):
    """A part of the page: text, then tables, then pictures. A blank line in the text begins a new paragraph."""

    title: str
    text: str = ""
    pictures: Sequence[Picture] = ()
    # (caption, rows of cells), the first row is the head; of a table without one its cells are empty.
    tables: Sequence[tuple[str, Sequence[Sequence[str]]]] = ()

    def _repr_html_(self) -> str:
        """How a notebook shows it."""
        return _section(0, self)


def page(title: str, sections: Sequence[Section]) -> str:
    """The sections as an HTML document, with a list of them at the top; for light and dark screens."""
    links = "".join(f'<li><a href="#s{i}">{text(x.title)}</a></li>' for i, x in enumerate(sections))
    body = "".join(_section(i, x) for i, x in enumerate(sections))
    # A page without an icon of its own makes browsers ask the server for one.
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{text(title)}</title>'
    head += f'<link rel="icon" href="data:,"><style>{STYLE}</style>'
    nav = f"<nav><ul>{links}</ul></nav>"
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}</head><body><h1>{text(title)}</h1>{nav}{body}</body></html>\n'
    )


def text(value: str) -> str:
    """Text as HTML: markup is escaped, and characters that do not print become question marks."""
    return escape("".join(c if c.isprintable() or c == "\n" else "?" for c in value))


def _section(number: int, section: Section) -> str:
    paragraphs = "".join(f"<p>{text(part)}</p>" for part in section.text.split("\n\n") if part.strip())
    tables = "".join(_table(*table) for table in section.tables)
    pictures = "".join(_picture(picture) for picture in section.pictures)
    return f'<section id="s{number}"><h2>{text(section.title)}</h2>{paragraphs}{tables}{pictures}</section>\n'


def _table(caption: str, rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    titled = f"<caption>{text(caption)}</caption>" if caption else ""
    top = f"<thead><tr>{''.join(f'<th>{text(cell)}</th>' for cell in head)}</tr></thead>" if any(head) else ""
    lines = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in body)
    return f'<div class="wide"><table>{titled}{top}<tbody>{lines}</tbody></table></div>'


def _cell(cell: str) -> str:
    kind = ' class="number"' if cell.lstrip("+-−")[:1].isdigit() else ""
    return f"<td{kind}>{text(cell)}</td>"


def _picture(picture: Picture) -> str:
    data = base64.b64encode(picture.png).decode()
    image = f'<img id="{text(picture.name)}" alt="{text(picture.caption)}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{text(picture.caption)}</figcaption></figure>"
