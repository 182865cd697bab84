"""Lists and tables of labels, line by line: what is damaged is named by its line."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from dynamonet.errors import UserError


def read_lines(file: Path) -> list[tuple[int, str]]:
    """Returns (line number, text) of the lines that hold anything.

    Raises:
        UserError: it cannot be read.
    """
    try:
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read: {error}") from None
    return [(n, line.strip()) for n, line in enumerate(text.splitlines(), 1) if line.strip()]


def damaged(file: Path, number: int, line: str, expected: str) -> UserError:
    """Returns the error for a line that is not as it should be."""
    return UserError(f"{file}: line {number}: expected `{expected}`, found {line!r}")


def read_rows(file: Path, needed: set[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yields (line number, row) of a CSV; every row has every column.

    Raises:
        UserError: it cannot be read, lacks a needed column, or a line is damaged.
    """
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            yield from _checked(csv.DictReader(stream, strict=True), file, needed)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read: {error}") from None


def _checked(
    reader: csv.DictReader[str], file: Path, needed: set[str]
) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        columns = [name.strip() for name in reader.fieldnames or []]
        absent = needed - set(columns)
        if absent:
            raise UserError(
                f"{file}: no column {', '.join(sorted(absent))}; it has "
                f"{', '.join(columns) or 'nothing'}"
            )
        reader.fieldnames = columns
        for row in reader:
            if None in row or None in row.values():
                count = sum(v is not None for k, v in row.items() if k is not None)
                count += len(row.get(None, []))  # type: ignore[call-overload]
                raise UserError(
                    f"{file}: line {reader.line_num}: {count} fields, expected {len(columns)} "
                    f"({', '.join(columns)})"
                )
            yield reader.line_num, row
    except csv.Error as error:
        raise UserError(f"{file}: line {reader.reader.line_num}: damaged: {error}") from None
