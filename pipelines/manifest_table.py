"""The cells of a table, as people have them: CSV of any spreadsheet, or Parquet.

CSV is UTF-8 or UTF-16 with a byte-order mark, with commas, semicolons or tabs, and line ends of any
system. Column names may be in capitals; columns without name or cell are left out. What other
programs write for nothing (`NA`, `nan`, `NULL`, ...) is nothing; what spreadsheets write for a
formula that failed is a mistake. This module does not know what the columns mean.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from pipelines import storage
from pipelines.slides.errors import ManifestError

MAX_REPORTED = 10
"""Unusable rows that one error names; it counts the others."""
SUFFIXES = (".csv", ".tsv", ".txt", ".parquet")
"""Of manifests."""
SPREADSHEETS = (".xlsx", ".xls", ".xlsm", ".ods", ".numbers")
"""Of tables that have to be saved as another kind first."""
NOTHING = frozenset(
    {
        "na",
        "n/a",
        "<na>",
        "#na",
        "#n/a",
        "#n/a n/a",
        "#n/d",
        "#nv",
        "nan",
        "-nan",
        "1.#qnan",
        "-1.#ind",
        "nat",
        "null",
        "(null)",
        "\\n",
        "nil",
        "none",
        ".",
        "-",
        "--",
        "\N{EN DASH}",
        "\N{EM DASH}",
        "?",
    }
)
"""What R, pandas, SAS, spreadsheets, databases and people write for a cell that holds nothing, in
small letters. Read as a case, it would be one that all such slides share."""
FAILED_FORMULA = re.compile(r"#[¡¿]?\w[\w/]*[!?]|#GETTING_DATA|##+|Err:\d+", re.IGNORECASE)
"""What spreadsheets in any language write for a formula that failed, or a number too wide for its
column: the value is lost, not absent."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a table.

    Attributes:
        line: in the file, the header being line 1; of Parquet, as if it were CSV.
        cells: text by column, without spaces around it; empty for nothing.
    """

    line: int
    cells: dict[str, str]


@dataclass(kw_only=True)
class Table:
    """A table as it could be read.

    Attributes:
        columns: that have a name, in small letters.
        rows: that are not blank.
        problems: rows that can't be read.
    """

    columns: tuple[str, ...] = ()
    rows: list[Row] = field(default_factory=list)
    problems: list[ManifestError] = field(default_factory=list)


def read_table(uri: str, known: Sequence[str], *, literal: Sequence[str] = ()) -> Table:
    """Read a table.

    Args:
        uri: of the file.
        known: columns that it may have; it must have the first.
        literal: columns in which the words of NOTHING are values, such as the event `none`.

    Raises:
        ManifestError: the file can't be read, or has other columns.
    """
    name = storage.object_name(uri)
    try:
        data = storage.read_bytes(uri)
    except storage.ObjectNotFound:
        raise ManifestError(name, "is not there", "check its path") from None
    except storage.StorageError as error:  # its text holds the path
        raise ManifestError(name, error.reason, error.remedy) from None
    problems: list[ManifestError] = []
    lines = _parquet_lines(name, data) if uri.lower().endswith(".parquet") else None
    lines = lines or _csv_lines(name, data, problems)
    line, header = next(lines, (1, []))
    columns = tuple(_or_nothing(_text(cell)).lower() for cell in header)
    _check_columns(name, line, columns, known)
    table = Table(columns=tuple(filter(None, columns)), problems=problems)
    for line, cells in lines:
        try:
            table.rows.append(Row(line=line, cells=_named(name, line, columns, cells, literal)))
        except ManifestError as error:
            problems.append(error)
    return table


def _check_columns(table: str, line: int, columns: Sequence[str], known: Sequence[str]) -> None:
    wrong = []
    if unknown := [column for column in columns if column and column not in known]:
        wrong.append(f"the unknown column {', '.join(map(repr, unknown))}")
    if repeated := sorted({name for name in columns if name and columns.count(name) > 1}):
        wrong.append(f"the repeated column {', '.join(map(repr, repeated))}")
    if known[0] not in columns:
        wrong.append(f"no column {known[0]!r}")
    if wrong:
        remedy = f"use the columns {', '.join(known)}, each once"
        raise ManifestError(table, f"has {' and '.join(wrong)} in line {line}", remedy)


def together(name: str, problems: Sequence[ManifestError]) -> ManifestError:
    """One error of all that is wrong with a table."""
    if len(problems) == 1:
        return problems[0]
    reported = [
        f"\n  {problem.slide} {problem.cause}; {problem.remedy}"
        for problem in problems[:MAX_REPORTED]
    ]
    hidden = len(problems) - MAX_REPORTED
    more = f"\n  and {hidden} more" if hidden > 0 else ""
    cause = f"has {len(problems)} mistakes:{''.join(reported)}{more}\n"
    return ManifestError(name, cause, "correct these lines")


def _named(
    name: str, line: int, columns: Sequence[str], cells: Sequence[Any], literal: Sequence[str]
) -> dict[str, str]:
    """Cells by column.

    Raises:
        ManifestError: there are more or fewer cells than columns, or a cell has no column, line
            breaks, or what a spreadsheet writes for a formula that failed.
    """
    texts = [_text(cell) for cell in cells]
    while len(texts) > len(columns) and not texts[-1]:
        texts.pop()  # spreadsheets end lines with empty cells
    if len(texts) != len(columns):
        cause = f"has {len(texts)} cells in line {line} for {len(columns)} columns"
        remedy = "quote cells that hold the separator, and leave none out"
        raise ManifestError(name, cause, remedy)
    named = {
        column: text if column in literal else _or_nothing(text)
        for column, text in zip(columns, texts, strict=True)
    }
    if any(text and not column for column, text in zip(columns, texts, strict=True)):
        cause = f"has a cell in line {line} whose column has no name"
        raise ManifestError(name, cause, "name the column, or delete it")
    named.pop("", None)
    for column, text in named.items():
        if FAILED_FORMULA.fullmatch(text):
            cause = f"has {text} of a spreadsheet in column {column!r} in line {line}"
            remedy = "correct the formula, or write the value itself or nothing"
            raise ManifestError(name, cause, remedy)
    if any(ord(letter) < 32 for text in named.values() for letter in text):
        cause = f"has a line break within a cell in line {line}"
        raise ManifestError(name, cause, "put each row on one line")
    return named


def _text(value: Any) -> str:
    """A cell as text. Numbers with gaps hold NaN for nothing, and whole numbers as 12.0."""
    if value is None or value != value:  # noqa: PLR0124 - NaN alone differs from itself
        return ""
    whole = isinstance(value, float) and value.is_integer()
    return _stripped(str(int(value) if whole else value))


def _or_nothing(text: str) -> str:
    return "" if text.casefold() in NOTHING else text


def _stripped(text: str) -> str:
    """Without spaces and letters of no width at its ends: web pages and chats put them there."""
    seen = [k for k, letter in enumerate(text) if not _is_invisible(letter)]
    return text[seen[0] : seen[-1] + 1] if seen else ""


def _is_invisible(letter: str) -> bool:
    return letter.isspace() or unicodedata.category(letter) == "Cf"


def _decoded(name: str, data: bytes) -> str:
    utf_16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if utf_16 else "utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:  # UTF-16 without its mark reads as UTF-8 with zeros between
        remedy = "save it as CSV UTF-8, or as Parquet"
        raise ManifestError(name, "is not UTF-8 text", remedy)
    return text


def _csv_lines(
    name: str, data: bytes, problems: list[ManifestError]
) -> Iterator[tuple[int, list[Any]]]:
    """Line number and cells of each row that is not blank; none after a wrong quotation."""
    text = _decoded(name, data)
    first = next((line for line in text.splitlines() if line.strip()), "")
    declared = re.fullmatch(r"sep=(.)", first.strip())  # as Excel writes it, and hides it
    separators = [declared[1]] if declared else [mark for mark in (",", ";", "\t") if mark in first]
    lines = io.StringIO(text, newline="")
    reader = csv.reader(lines, delimiter=(separators or [","])[0], strict=True)
    # A quoted cell can hold line ends: a row begins behind the last line of the row before.
    behind = 0
    try:
        for cells in reader:
            hidden = declared and "".join(cells).strip() in ("sep=", first.strip())
            if any(cell.strip() for cell in cells) and not hidden:
                yield behind + 1, cells
            behind = reader.line_num
    except csv.Error as error:
        cause = f"can't be read as a table from line {behind + 1} on ({error})"
        remedy = "close each quotation mark, or save the table as Parquet"
        problems.append(ManifestError(name, cause, remedy))


def _parquet_lines(name: str, data: bytes) -> Iterator[tuple[int, list[Any]]]:
    try:
        table = pa.parquet.read_table(io.BytesIO(data))
    except pa.ArrowException as error:
        cause = f"can't be read as Parquet ({error})"
        raise ManifestError(name, cause, "write it again") from error
    yield 1, table.column_names
    columns = [column.to_pylist() for column in table.columns]
    for line, values in enumerate(zip(*columns, strict=True), start=2):
        yield line, list(values)
