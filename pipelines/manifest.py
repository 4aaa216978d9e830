"""The list of slides that a cohort is made of: a CSV or Parquet table, one row a slide.

Columns: `slide` (path or URI, relative to the manifest); optional `mpp`, `case` (pseudonymous group id: slides of one case
never part between splits), `split` (`train`, `validation`, `test`, ...), `label` (grade as `benign`, `3+4`, ...), `annotation`
(GeoJSON with regions).
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from pipelines import storage
from pipelines.slides.errors import ManifestError
from pipelines.slides.slide import slide_name

COLUMNS = ("slide", "mpp", "case", "split", "label", "annotation")


@dataclass(frozen=True, kw_only=True)
class ManifestRow:
    """One slide of a cohort.

    Attributes:
        line: line in the file, the header being line 1.
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


def read_manifest(uri: str) -> list[ManifestRow]:
    """Read and validate a manifest.

    Raises:
        ManifestError: the table can't be read, lacks the `slide` column, has an unusable value, names a slide twice, or puts
            one case into two splits; names the line.
    """
    uri = storage.as_uri(uri)
    table = _read_table(uri)
    unknown = sorted(set(table.column_names) - set(COLUMNS))
    if "slide" not in table.column_names or unknown:
        cause = f"has the unknown column {unknown[0]!r}" if unknown else "has no column 'slide'"
        raise ManifestError(slide_name(uri), cause, f"use the columns {', '.join(COLUMNS)}")
    rows = [_row(uri, line, values) for line, values in enumerate(table.to_pylist(), start=2)]
    if not rows:
        raise ManifestError(slide_name(uri), "lists no slide", "add rows")
    _refuse_repeats(rows)
    _refuse_leakage(rows)
    return rows


def _read_table(uri: str) -> pa.Table:
    try:
        data = storage.read_bytes(uri)
        if uri.endswith(".parquet"):
            return pa.parquet.read_table(io.BytesIO(data))
        text = {name: pa.string() for name in COLUMNS}
        return pa.csv.read_csv(
            io.BytesIO(data), convert_options=pa.csv.ConvertOptions(column_types=text, strings_can_be_null=True)
        )
    except FileNotFoundError as error:
        raise ManifestError(slide_name(uri), "is not there", "check the path of the manifest") from error
    except pa.ArrowInvalid as error:
        raise ManifestError(slide_name(uri), f"can't be read as a table ({error})", "give CSV or Parquet") from error


def _row(manifest: str, line: int, values: dict[str, Any]) -> ManifestRow:
    text = {name: str(values.get(name) if values.get(name) is not None else "").strip() for name in COLUMNS}
    if not text["slide"]:
        raise ManifestError(slide_name(manifest), f"names no slide in line {line}", "fill the column 'slide' or delete the line")
    try:
        mpp = float(text["mpp"]) if text["mpp"] else None
    except ValueError as error:
        raise ManifestError(
            text["slide"], f"has the mpp {text['mpp']!r} in line {line}", "give a number of micrometres"
        ) from error
    uri = _resolve(manifest, text["slide"])
    return ManifestRow(
        line=line,
        uri=uri,
        mpp=mpp,
        case=text["case"] or slide_name(uri),
        split=text["split"],
        label=text["label"],
        annotation=_resolve(manifest, text["annotation"]) if text["annotation"] else "",
    )


def _resolve(manifest: str, path: str) -> str:
    """A URI or absolute path as it is; another relative to the manifest's folder."""
    if "://" in path or PurePosixPath(path).is_absolute():
        return storage.as_uri(path)
    return storage.join(manifest.rsplit("/", 1)[0], path)


def _refuse_repeats(rows: list[ManifestRow]) -> None:
    seen: dict[str, int] = {}
    for row in rows:
        if row.uri in seen:
            raise ManifestError(slide_name(row.uri), f"stands in lines {seen[row.uri]} and {row.line}", "delete one of them")
        seen[row.uri] = row.line


def _refuse_leakage(rows: list[ManifestRow]) -> None:
    """One case in two splits would let a model be tested on a patient that it has seen."""
    split_of: dict[str, tuple[str, int]] = {}
    for row in rows:
        split, line = split_of.setdefault(row.case, (row.split, row.line))
        if split != row.split:
            cause = (
                f"belongs to case {row.case}, which is in split {split!r} in line {line} and in {row.split!r} in line {row.line}"
            )
            raise ManifestError(slide_name(row.uri), cause, "put all slides of a case into one split")
