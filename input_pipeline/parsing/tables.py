"""Tables written by users: CSV with a header, or JSON Lines with one object per row; both in UTF-8.

Every fault is a DataError naming the file and the line.
"""

import csv
import difflib
import io
import json
from collections.abc import Iterator, Sequence

from jax_mmreid.errors import DataError


def read(path: str, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, {column: cell}) of every row; an absent cell is "". `columns` are the names that are allowed.

    A file whose name ends in .jsonl is JSON Lines, where a cell may be a whole number or null too; any other is CSV.
    """
    text = _text(path)
    json_lines = path.lower().endswith(".jsonl")
    for line, row in (_json_lines if json_lines else _csv)(path, text, columns):
        for column, cell in row.items():
            bad = [c for c in cell if ord(c) < 32 and c not in "\t\n\r" or "\ud800" <= c <= "\udfff"]
            if bad:
                fail(path, line, f"{column} holds the character {bad[0]!r}, which is not text; remove it")
        yield line, {column: "" for column in columns} | {column: cell.strip() for column, cell in row.items()}


def fail(path: str, line: int, message: str) -> None:
    """Raises the DataError of a line."""
    raise DataError(f"{path}, line {line}: {message}")


def _text(path: str) -> str:
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; name a table that can be read") from error
    try:
        return data.decode("utf-8-sig")  # some spreadsheets begin the file with a byte order mark
    except UnicodeDecodeError as error:
        fail(path, data.count(b"\n", 0, error.start) + 1, "the bytes are not UTF-8; save the table as CSV UTF-8")


def _csv(path: str, text: str, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        _check_names(path, 1, header, columns)
        for cells in reader:
            if not any(cells):
                continue  # spreadsheets leave empty lines behind
            if len(cells) != len(header):
                fail(
                    path,
                    reader.line_num,
                    f"{len(cells)} cells under a header of {len(header)}; put a cell with a comma in double quotes",
                )
            yield reader.line_num, dict(zip(header, cells))
    except csv.Error as error:
        fail(path, reader.line_num, f"{error}; write it as comma-separated values")


def _json_lines(path: str, text: str, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    for line, item in enumerate(text.split("\n"), 1):
        if not item.strip():
            continue
        try:
            row = json.loads(item)
        except (ValueError, RecursionError) as error:
            fail(path, line, f"not JSON ({str(error).splitlines()[0]}); write one object per line")
        if not isinstance(row, dict):
            fail(path, line, f"holds a {type(row).__name__}, not an object; write {{column: value}}")
        _check_names(path, line, list(row), columns)
        for column, cell in row.items():
            if not isinstance(cell, str | int | None) or isinstance(cell, bool):
                fail(path, line, f"{column} is {json.dumps(cell)}; write a string, a whole number or null")
        yield line, {column: "" if cell is None else str(cell) for column, cell in row.items()}


def _check_names(path: str, line: int, names: Sequence[str], columns: Sequence[str]) -> None:
    for i, name in enumerate(names):
        if name not in columns:
            hint = difflib.get_close_matches(name, columns, n=1)
            more = f"; did you mean {hint[0]!r}?" if hint else ""
            fail(path, line, f"unknown column {name!r}; the columns are {', '.join(columns)}{more}")
        if name in names[:i]:
            fail(path, line, f"column {name!r} appears twice; remove one")
