"""The tables and sentences of results.md and its like, read back for a page that is no Markdown."""

from collections.abc import Iterator
from typing import NamedTuple

RULE = "|---"  # how the line below the head of a table begins


class Block(NamedTuple):
    """Sentences, or the rows of a table, whose first is the head; the other of the two is empty."""

    text: str = ""
    rows: list[list[str]] = []


def blocks(text: str) -> Iterator[Block]:
    """What `report.settings.table` wrote and the text between, in their order; blank lines part them."""
    for part in text.split("\n\n"):
        lines = part.strip().splitlines()
        if len(lines) > 1 and lines[1].startswith(RULE):
            yield Block(rows=[_cells(line) for line in (lines[0], *lines[2:])])
        elif lines:
            yield Block(text=" ".join(lines))


def captioned(text: str) -> tuple[str, list[tuple[str, list[list[str]]]]]:
    """(sentences, tables with captions) as a `page.Section` has them.

    A sentence that does not end with a full stop is the caption of the table that follows.
    """
    sentences, tables, caption = [], [], ""
    for block in blocks(text):
        if block.rows:
            tables.append((caption, block.rows))
            caption = ""
        elif block.text.endswith((".", "!", "?")):
            sentences.append(block.text)
        else:
            caption = block.text
    return "\n\n".join(sentences), tables


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip()[1:-1].split("|")]
