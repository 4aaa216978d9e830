"""The slides that a cohort is made of: a table (CSV or Parquet), or a folder, S3 prefix or pattern.

Columns of a table:

    slide              path or URI, relative to the manifest; `*` and `**` are wildcards
    mpp                micrometres per pixel of level 0
    case               pseudonymous group id: slides of one case never part between splits
    split              `train`, `validation`, `test`, ...
    label              grade of the slide, as `benign`, `3+4`, ...
    annotation         GeoJSON with regions
    annotation_origin  `bounds` (the default) or `slide`: see `pipelines.annotations`

Only `slide` is needed. All slides of a pattern get the row's values. `manifest_table` says which
tables can be read. Everything that is wrong is reported at once, with line numbers.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import overload

from pipelines import storage
from pipelines.annotations import check_annotations
from pipelines.discovery import PassedOver, discover, is_pattern, passed_over_summary
from pipelines.manifest_table import SPREADSHEETS, SUFFIXES, Row, Table, read_table, together
from pipelines.slides.errors import ManifestError
from pipelines.slides.resolution import PLAUSIBLE_MPP, is_plausible
from pipelines.splits import SplitShares

ORIGINS = ("bounds", "slide")
"""What coordinates of annotations are relative to (`AnnotationFrame`); the default first."""
COLUMNS = ("slide", "mpp", "case", "split", "label", "annotation", "annotation_origin")
MAX_CHECKS = 16
"""Annotations that are looked up at once: a store takes 10 to 100 ms to answer each."""


@dataclass(frozen=True, kw_only=True)
class ManifestRow:
    """One slide of a cohort.

    Attributes:
        line: line in the file, the header being line 1; of Parquet, as if it were CSV. 0 if a
            folder or a pattern was given.
        uri: where the slide is.
        mpp: micrometres per pixel if the manifest gives it.
        case: pseudonymous group id; one of its own if the manifest gives none.
        split: name of the split, empty if none.
        label: label of the whole slide, empty if none.
        annotation: URI of region annotations, empty if none.
        annotation_origin: what their coordinates are relative to, one of `ORIGINS`.
    """

    line: int
    uri: str
    mpp: float | None = None
    case: str = ""
    split: str = ""
    label: str = ""
    annotation: str = ""
    annotation_origin: str = "bounds"

    @property
    def described(self) -> str:
        """Name and, if there is one, line: for errors."""
        name = storage.object_name(self.uri)
        return f"{name} in line {self.line}" if self.line else name


@dataclass(frozen=True, kw_only=True)
class Manifest(Sequence[ManifestRow]):
    """The slides of a cohort, as a sequence, and what was skipped on the way.

    Attributes:
        rows: one a slide.
        passed_over: files that look like slides but can't be read, and unreadable
            folders.
    """

    rows: tuple[ManifestRow, ...]
    passed_over: tuple[PassedOver, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> ManifestRow: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[ManifestRow]: ...
    def __getitem__(self, index: int | slice) -> ManifestRow | Sequence[ManifestRow]:
        return self.rows[index]


def read_manifest(location: str, *, shares: SplitShares | None = None) -> Manifest:
    """Read and validate a manifest, or find the slides of a location.

    Args:
        location: manifest; or a folder, an S3 prefix, a slide or a pattern, whose slides are then
            each a case of their own.
        shares: assign splits by case. Only if the manifest has no `split` column and every slide
            has a case: without one, two slides of a patient could part.

    Raises:
        ManifestError: the table can't be read, lacks the `slide` column, has unusable values, names
            a slide twice, names an annotation that is missing or of two slides, or puts one case
            into two splits; names the lines. Or there is no slide at the location.
        StorageError: the location can't be listed.
    """
    uri = storage.as_uri(location)
    if not is_pattern(uri) and uri.lower().endswith(SPREADSHEETS):
        remedy = "save it as CSV UTF-8, or as Parquet"
        raise ManifestError(storage.object_name(uri), "is a spreadsheet", remedy)
    if not is_pattern(uri) and uri.lower().endswith(SUFFIXES):
        return _read_table(uri, shares)
    found = discover(uri)
    if not found.slides:
        raise _no_slide(uri, found.passed_over)
    if shares is not None:
        cause = "names no case of its slides: slides of one patient could part between splits"
        remedy = "list slides and cases in a manifest"
        raise ManifestError(storage.object_name(uri), cause, remedy)
    rows = [
        ManifestRow(line=0, uri=slide, case=_case_of_its_own(found.root, slide))
        for slide in found.slides
    ]
    return Manifest(rows=tuple(rows), passed_over=found.passed_over)


def _no_slide(uri: str, passed_over: tuple[PassedOver, ...]) -> ManifestError:
    name = storage.object_name(uri)
    path = storage.local_path(uri)
    if path is not None and not is_pattern(uri) and not path.exists():
        return ManifestError(name, "is not there", "check the path")
    cause = "has no slide"
    if passed_over:
        cause += f" that can be read ({passed_over_summary(passed_over)})"
    remedy = "give a manifest (.csv, .parquet), or a folder or pattern with slides"
    return ManifestError(name, cause, remedy)


def _read_table(manifest: str, shares: SplitShares | None) -> Manifest:
    table = read_table(manifest, COLUMNS)
    name = storage.object_name(manifest)
    problems = list(table.problems)
    if shares is not None and "split" in table.columns:
        remedy = "delete the column or don't ask for splits by share"
        problems.append(ManifestError(name, "has a column 'split' already", remedy))
        shares = None
    rows, passed_over = _checked_rows(manifest, table, shares, problems)
    problems += [*_wrong_annotations(rows), *_repeats(rows), *_shared_annotations(rows)]
    problems += _leaks(rows)
    if problems:
        raise together(name, problems)
    if not rows:
        raise ManifestError(name, "lists no slide", "add rows")
    own = [_with_case(manifest, row) for row in _one_spelling(rows)]
    return Manifest(rows=tuple(own), passed_over=tuple(passed_over))


def _checked_rows(
    manifest: str, table: Table, shares: SplitShares | None, problems: list[ManifestError]
) -> tuple[list[ManifestRow], list[PassedOver]]:
    """The slides of all lines; what is wrong with a line is added to `problems`."""
    rows: list[ManifestRow] = []
    passed_over: list[PassedOver] = []
    for line in table.rows:
        if torn := list(_torn_uris(manifest, line)):
            problems += torn
            continue
        wrong = list(_mistakes(manifest, line, shares))
        problems += wrong
        if not line.cells["slide"]:
            continue
        row = _row(manifest, line, shares)
        if not is_pattern(line.cells["slide"]):
            rows.append(row)
            continue
        found = discover(row.uri)
        passed_over += found.passed_over
        rows += [replace(row, uri=uri, annotation="") for uri in found.slides]
        if not found.slides:
            cause = f"matches no slide in line {line.line}"
            if found.passed_over:
                cause += f" that can be read ({passed_over_summary(found.passed_over)})"
            remedy = "correct the pattern or delete the line"
            problems.append(ManifestError(storage.object_name(row.uri), cause, remedy))
    return rows, passed_over


def _row(manifest: str, line: Row, shares: SplitShares | None) -> ManifestRow:
    """The row of one line, whose mistakes are known already."""
    text = line.cells
    case = text.get("case", "")
    split = text.get("split", "")
    annotation = text.get("annotation", "")
    return ManifestRow(
        line=line.line,
        uri=_resolve(manifest, text["slide"]),
        mpp=_number(text.get("mpp", "")),
        case=case,
        split=shares.of(case) if shares is not None and case else split,
        label=text.get("label", ""),
        annotation=_resolve(manifest, annotation) if annotation else "",
        annotation_origin=text.get("annotation_origin", "") or ORIGINS[0],
    )


def _resolve(manifest: str, path: str) -> str:
    return storage.resolve(manifest.rsplit("/", 1)[0], path)


def _torn_uris(manifest: str, line: Row) -> Iterator[ManifestError]:
    """The paths of one line that are URIs without a slash or bucket: no row can be made of it."""
    for path in (line.cells["slide"], line.cells.get("annotation", "")):
        try:
            _resolve(manifest, path)
        except storage.InvalidUri as error:
            cause = f"{error.reason} in line {line.line}"
            yield ManifestError(storage.object_name(path), cause, error.remedy)


def _mistakes(manifest: str, line: Row, shares: SplitShares | None) -> Iterator[ManifestError]:
    """Everything that is wrong with the values of one line."""
    text, where = line.cells, f"in line {line.line}"
    if not text["slide"]:
        remedy = "fill the column 'slide' or delete the line"
        yield ManifestError(storage.object_name(manifest), f"names no slide {where}", remedy)
        return
    name = storage.object_name(_resolve(manifest, text["slide"]))
    if "\\" in text["slide"] and not storage.exists(_resolve(manifest, text["slide"])):
        remedy = "write it with / and as this machine sees it"
        yield ManifestError(name, f"is a path of Windows {where}", remedy)
    if text.get("mpp"):
        yield from _wrong_mpp(name, where, text["mpp"])
    origin = text.get("annotation_origin") or ORIGINS[0]
    if origin not in ORIGINS:
        cause = f"has the annotation_origin {origin!r} {where}"
        yield ManifestError(name, cause, f"use {' or '.join(ORIGINS)}, or leave it empty")
    if shares is not None and not text.get("case"):
        cause = f"has no case {where}: slides of one patient could part between splits"
        remedy = "fill the column 'case' before asking for splits by share"
        yield ManifestError(name, cause, remedy)
    if is_pattern(text["slide"]) and (annotation := text.get("annotation")):
        shown = storage.object_name(annotation)
        cause = f"stands for several slides {where}, which can't share the annotation {shown}"
        yield ManifestError(name, cause, "give each annotated slide a line of its own")


def _wrong_mpp(name: str, where: str, text: str) -> Iterator[ManifestError]:
    mpp, (low, high) = _number(text), PLAUSIBLE_MPP
    if mpp is None:
        remedy = "give a number of micrometres, such as 0.25"
        yield ManifestError(name, f"has the mpp {text!r} {where}", remedy)
    elif not is_plausible(mpp):
        cause = f"has the mpp {text} {where}, outside {low:g} to {high:g}"
        yield ManifestError(name, cause, "give micrometres per pixel of level 0")


def _number(text: str) -> float | None:
    """A number with a decimal point or, as many spreadsheets write it, a comma; else None."""
    if "_" in text:  # Python reads 1_0 as 10
        return None
    try:
        return float(text.replace(",", ".") if text.count(",") == 1 else text)
    except ValueError:
        return None


def _repeats(rows: Sequence[ManifestRow]) -> Iterator[ManifestError]:
    seen: dict[str, int] = {}
    for row in rows:
        first = seen.setdefault(row.uri, row.line)
        if first != row.line:
            cause = f"is in lines {first} and {row.line}"
            yield ManifestError(storage.object_name(row.uri), cause, "delete one of them")


def _wrong_annotations(rows: Sequence[ManifestRow]) -> Iterator[ManifestError]:
    """Annotations that are missing or of another kind: a training that finds out is hours later."""

    def checked(row: ManifestRow) -> ManifestError | None:
        try:
            check_annotations(row.annotation)
        except ManifestError as error:
            cause = f"{error.cause} (annotation in line {row.line})"
            return ManifestError(error.slide, cause, error.remedy)
        return None

    annotated = [row for row in rows if row.annotation]
    with ThreadPoolExecutor(MAX_CHECKS, thread_name_prefix="annotation") as checks:
        yield from filter(None, checks.map(checked, annotated))


def _shared_annotations(rows: Sequence[ManifestRow]) -> Iterator[ManifestError]:
    """Regions drawn on one slide would label the tissue of another."""
    seen: dict[str, ManifestRow] = {}
    for row in rows:
        first = seen.setdefault(row.annotation, row)
        if row.annotation and first.uri != row.uri:
            cause = f"is the annotation of two slides, in lines {first.line} and {row.line}"
            remedy = "give each slide the annotation that was drawn on it"
            yield ManifestError(storage.object_name(row.annotation), cause, remedy)


def _leaks(rows: Sequence[ManifestRow]) -> Iterator[ManifestError]:
    """One case in two splits would let a model be tested on a patient that it has seen."""
    split_of: dict[str, tuple[str, int]] = {}
    for row in rows:
        if not row.case:
            continue
        split, line = split_of.setdefault(_key(row.case), (row.split, row.line))
        if split != row.split:
            cause = (
                f"belongs to case {row.case}, which is in split {split!r} in line {line} "
                f"and in {row.split!r} in line {row.line}"
            )
            remedy = "put all slides of a case into one split"
            yield ManifestError(storage.object_name(row.uri), cause, remedy)


def _key(case: str) -> str:
    """What spellings of a case that look alike have in common: P1 and p1, or both forms of ä."""
    shown = "".join(letter for letter in case if unicodedata.category(letter) != "Cf")
    return unicodedata.normalize("NFC", " ".join(shown.split())).casefold()


def _one_spelling(rows: Sequence[ManifestRow]) -> list[ManifestRow]:
    """Each case as it is spelt first: cross-validation compares cases letter by letter."""
    spelling: dict[str, str] = defaultdict(str)
    for row in rows:
        spelling.setdefault(_key(row.case), row.case)
    return [replace(row, case=spelling[_key(row.case)]) for row in rows]


def _with_case(manifest: str, row: ManifestRow) -> ManifestRow:
    if row.case:
        return row
    return replace(row, case=_case_of_its_own(manifest.rpartition("/")[0], row.uri))


def _case_of_its_own(folder: str, uri: str) -> str:
    """A case for a slide that has none: its path below the folder, so that equal names stay apart.

    Of a slide elsewhere, its name and a digest: folders on the way could be named after patients.
    """
    if uri.startswith(f"{folder}/"):
        return storage.relative_name(folder, uri)
    return f"{storage.object_name(uri)}-{hashlib.sha256(uri.encode()).hexdigest()[:8]}"
