"""The slides that a cohort is made of: a CSV or Parquet table, or just a folder, an S3 prefix or a pattern.

Columns: `slide` (path or URI, relative to the manifest); optional `mpp`, `case` (pseudonymous group id: slides of one case
never part between splits), `split` (`train`, `validation`, `test`, ...), `label` (grade as `benign`, `3+4`, ...), `annotation`
(GeoJSON with regions).

A `slide` with `*` or `**` stands for all slides that it matches; each gets the row's mpp, case, split and label. CSV is UTF-8
with or without a byte-order mark, with commas, semicolons or tabs, and line ends of any system. What is wrong is told all at
once, with line numbers.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from pipelines import storage
from pipelines.discovery import find_slides, is_pattern
from pipelines.slides.errors import ManifestError
from pipelines.slides.resolution import PLAUSIBLE_MPP
from pipelines.splits import SplitShares

COLUMNS = ("slide", "mpp", "case", "split", "label", "annotation")
SUFFIXES = (".csv", ".tsv", ".txt", ".parquet")
"""Of manifests; any other place is looked through for slides."""
MOST_TOLD = 10
"""Unusable rows that one error names; it counts the others."""


@dataclass(frozen=True, kw_only=True)
class ManifestRow:
    """One slide of a cohort.

    Attributes:
        line: line in the file, the header being line 1; of Parquet, as if it were CSV. 0 where a folder or a pattern was given.
        uri: where the slide is.
        mpp: micrometres per pixel where the manifest gives it.
        case: pseudonymous group id; the slide's own name where the manifest gives none.
        split: name of the split, empty where none.
        label: label of the whole slide, empty where none.
        annotation: URI of region annotations, empty where none.
    """

    line: int
    uri: str
    mpp: float | None = None
    case: str = ""
    split: str = ""
    label: str = ""
    annotation: str = ""

    @property
    def place(self) -> str:
        """Name and, where there is one, line: for errors."""
        return (
            f"{storage.object_name(self.uri)} in line {self.line}"
            if self.line
            else storage.object_name(self.uri)
        )


def read_manifest(place: str, *, shares: SplitShares | None = None) -> list[ManifestRow]:
    """Read and validate a manifest, or find the slides of a place.

    Args:
        place: manifest; or a folder, an S3 prefix or a pattern, whose slides are then each a case of their own.
        shares: assign splits by case. Only where the manifest has no `split` column and every slide has a case: without one, two
            slides of a patient could part.

    Raises:
        ManifestError: the table can't be read, lacks the `slide` column, has unusable values, names a slide twice, or puts one
            case into two splits; names the lines. Or there is no slide at the place.
    """
    if not is_pattern(place) and place.lower().endswith(SUFFIXES):
        return _read_table(storage.as_uri(place), shares)
    rows = [
        ManifestRow(line=0, uri=uri, case=storage.object_name(uri)) for uri in find_slides(place)
    ]
    if not rows:
        raise ManifestError(
            place,
            "has no slide",
            "give a manifest (.csv, .parquet), or a folder or pattern with slides",
        )
    if shares is not None:
        cause = "tells no case of its slides: slides of one patient could part between splits"
        raise ManifestError(place, cause, "list slides and cases in a manifest")
    return rows


def _read_table(manifest: str, shares: SplitShares | None) -> list[ManifestRow]:
    problems: list[ManifestError] = []
    rows: list[ManifestRow] = []
    for line, values in _table_rows(manifest, shares):
        try:
            rows += _rows(manifest, line, values, shares)
        except ManifestError as error:
            problems.append(error)
    problems += [*_repeats(rows), *_leaks(rows)]
    if problems:
        raise _together(manifest, problems)
    if not rows:
        raise ManifestError(storage.object_name(manifest), "lists no slide", "add rows")
    return rows


def _together(manifest: str, problems: list[ManifestError]) -> ManifestError:
    if len(problems) == 1:
        return problems[0]
    told = [
        f"\n  {problem.slide} {problem.cause}; {problem.remedy}" for problem in problems[:MOST_TOLD]
    ]
    more = f"\n  and {len(problems) - MOST_TOLD} more" if len(problems) > MOST_TOLD else ""
    cause = f"has {len(problems)} mistakes:{''.join(told)}{more}\n"
    return ManifestError(storage.object_name(manifest), cause, "mend these lines")


def _table_rows(manifest: str, shares: SplitShares | None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and values by column of each row that is not blank."""
    name = storage.object_name(manifest)
    try:
        data = storage.read_bytes(manifest)
    except FileNotFoundError:  # its text holds the path
        raise ManifestError(name, "is not there", "check the path of the manifest") from None
    lines = (
        _parquet_lines(name, data)
        if manifest.lower().endswith(".parquet")
        else _csv_lines(name, data)
    )
    header_line, header = next(lines, (1, []))
    columns = [str(column).strip() for column in header]
    unknown = [column for column in columns if column not in COLUMNS]
    repeated = [column for column in columns if columns.count(column) > 1]
    if unknown or repeated or "slide" not in columns:
        cause = "has no column 'slide'"
        if unknown or repeated:
            cause = f"has the {'unknown' if unknown else 'repeated'} column {(unknown or repeated)[0]!r}"
        raise ManifestError(
            name,
            f"{cause} in line {header_line}",
            f"use the columns {', '.join(COLUMNS)}, each once",
        )
    if shares is not None and "split" in columns:
        raise ManifestError(
            name,
            "has a column 'split' already",
            "delete the column or don't ask for splits by share",
        )
    for line, cells in lines:
        if len(cells) != len(columns):
            cause = f"has {len(cells)} cells in line {line} for {len(columns)} columns"
            raise ManifestError(
                name, cause, "quote cells that hold the separator, and leave none out"
            )
        yield line, dict(zip(columns, cells, strict=True))


def _csv_lines(name: str, data: bytes) -> Iterator[tuple[int, list[Any]]]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ManifestError(
            name, "is not UTF-8 text", "save it as CSV UTF-8, or as Parquet"
        ) from error
    first = text.lstrip().split("\n", 1)[0]
    separator = next((at for at in (",", ";", "\t") if at in first), ",")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    behind = (
        0  # a quoted cell can hold line ends: a row begins behind the last line of the row before
    )
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield behind + 1, cells
            behind = reader.line_num
    except csv.Error as error:
        cause = f"can't be read as a table from line {behind + 1} on ({error})"
        raise ManifestError(
            name, cause, "close each quotation mark, or save the table as Parquet"
        ) from error


def _parquet_lines(name: str, data: bytes) -> Iterator[tuple[int, list[Any]]]:
    try:
        table = pa.parquet.read_table(io.BytesIO(data))
    except pa.ArrowException as error:
        raise ManifestError(
            name, f"can't be read as Parquet ({error})", "write it again"
        ) from error
    yield 1, table.column_names
    for line, values in enumerate(
        zip(*(column.to_pylist() for column in table.columns), strict=True), start=2
    ):
        yield line, list(values)


def _rows(
    manifest: str, line: int, values: dict[str, Any], shares: SplitShares | None
) -> list[ManifestRow]:
    """The slides of one line: one, or as many as a pattern matches."""
    text = {name: _text(values.get(name)) for name in COLUMNS}
    if not text["slide"]:
        cause = f"names no slide in line {line}"
        raise ManifestError(
            storage.object_name(manifest), cause, "fill the column 'slide' or delete the line"
        )
    uri = _resolve(manifest, text["slide"])
    name = storage.object_name(uri)
    if any(ord(character) < 32 for cell in text.values() for character in cell):
        raise ManifestError(
            storage.object_name(manifest),
            f"has a line break within a cell in line {line}",
            "put each slide on one line",
        )
    if shares is not None:
        if not text["case"]:
            cause = f"has no case in line {line}: slides of one patient could part between splits"
            raise ManifestError(
                name, cause, "fill the column 'case' before asking for splits by share"
            )
        text["split"] = shares.of(text["case"])
    row = ManifestRow(
        line=line,
        uri=uri,
        mpp=_mpp(name, line, text["mpp"]),
        case=text["case"],
        split=text["split"],
        label=text["label"],
        annotation=_resolve(manifest, text["annotation"]) if text["annotation"] else "",
    )
    if not is_pattern(text["slide"]):
        return [replace(row, case=row.case or storage.object_name(row.uri))]
    if row.annotation:
        cause = f"stands for several slides in line {line}, which can't share the annotation {storage.object_name(row.annotation)}"
        raise ManifestError(name, cause, "give each annotated slide a line of its own")
    found = find_slides(row.uri)
    if not found:
        raise ManifestError(
            name, f"matches no slide in line {line}", "mend the pattern or delete the line"
        )
    return [replace(row, uri=uri, case=row.case or storage.object_name(uri)) for uri in found]


def _text(value: Any) -> str:
    """A cell as text. Tables of numbers with gaps hold NaN for nothing, and whole numbers as 12.0."""
    if value is None or value != value:  # noqa: PLR0124 - NaN alone differs from itself
        return ""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()


def _mpp(name: str, line: int, text: str) -> float | None:
    if not text:
        return None
    try:
        mpp = float(text)
    except ValueError as error:
        raise ManifestError(
            name,
            f"has the mpp {text!r} in line {line}",
            "give a number of micrometres, such as 0.25",
        ) from error
    low, high = PLAUSIBLE_MPP
    if not low <= mpp <= high:  # NaN is not either
        cause = f"has the mpp {text} in line {line}, outside {low:g} to {high:g}"
        raise ManifestError(name, cause, "give micrometres per pixel of level 0")
    return mpp


def _resolve(manifest: str, path: str) -> str:
    return storage.resolve(manifest.rsplit("/", 1)[0], path)


def _repeats(rows: list[ManifestRow]) -> Iterator[ManifestError]:
    seen: dict[str, int] = {}
    for row in rows:
        first = seen.setdefault(row.uri, row.line)
        if first != row.line:
            yield ManifestError(
                storage.object_name(row.uri),
                f"stands in lines {first} and {row.line}",
                "delete one of them",
            )


def _leaks(rows: list[ManifestRow]) -> Iterator[ManifestError]:
    """One case in two splits would let a model be tested on a patient that it has seen; P1 and p1 are one."""
    split_of: dict[str, tuple[str, int]] = {}
    for row in rows:
        split, line = split_of.setdefault(row.case.casefold(), (row.split, row.line))
        if split != row.split:
            cause = f"belongs to case {row.case}, which is in split {split!r} in line {line} and in {row.split!r} in line {row.line}"
            yield ManifestError(
                storage.object_name(row.uri), cause, "put all slides of a case into one split"
            )
