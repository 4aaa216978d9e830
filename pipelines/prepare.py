"""OPEN FIRST. From a manifest of slides to a cohort that can be trained on: index every slide, write its shards and its picture.

    prepare(config)
      read_manifest                      rows, validated
      prepare_slide (a Ray task each)    open -> thumbnail -> tissue mask -> patch grid -> shard table, overview picture
                                         its record last (completion.py): what `resume` finds is not done again
      cohort.parquet, report.json        every success kept, every failure recorded

Headers and thumbnails are read, never whole slides. What is written depends on slides and config alone: not on the order in which
slides finish, nor on how often the run was killed and resumed. Knows no model and no patient.
"""

from __future__ import annotations

import hashlib
import json
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from typing import Any

import pyarrow as pa
import ray
from ray.exceptions import RayError, RayTaskError

from pipelines import cohort, storage
from pipelines.completion import (
    Completion,
    completion_key,
    find_completion,
    record_completion,
    slide_version,
)
from pipelines.grid import PatchSpec
from pipelines.index import IndexedSlide, index_slide, write_index
from pipelines.manifest import ManifestRow, read_manifest
from pipelines.patches import ReadCounts
from pipelines.ray_session import ensure_ray
from pipelines.shards import SIDE
from pipelines.slides.errors import BrokenSlide, ManifestError, SlideError
from pipelines.slides.opening import open_slide
from pipelines.slides.resolution import check_mpp
from pipelines.splits import SplitShares
from pipelines.storage import StorageError

ATTEMPTS = 4
"""Times that a slide is tried whose worker process dies."""


class OutputError(StorageError):
    """The cohort can't be written; names the place, the reason and the remedy."""


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """What to prepare.

    Attributes:
        manifest: path or URI of the manifest; or a folder, an S3 prefix or a pattern of slides.
        out: folder or URI prefix that the cohort is written to.
        spec: what a patch is.
        organisation: owner of all derived objects.
        mpp: micrometres per pixel for slides whose manifest row and metadata have none.
        mpp_from_objective: take it from the objective's magnification where all three have none.
        shard_side: most patches along one side of a shard.
        shares: splits to assign by case, where the manifest has none.
        resume: keep what an earlier run finished, unless slide, mpp, spec or code have changed since.
    """

    manifest: str
    out: str
    spec: PatchSpec = PatchSpec()
    organisation: str = "local"
    mpp: float | None = None
    mpp_from_objective: bool = False
    shard_side: int = SIDE
    shares: SplitShares | None = None
    resume: bool = False


@dataclass(frozen=True, kw_only=True)
class SlideOutcome:
    """What became of one manifest row.

    Attributes:
        line: in the manifest, 0 where there is none.
        slide: its name.
        row: of the cohort table, None where the slide failed.
        thumbnail_sha256: of what it looks like.
        kept: whether an earlier run had finished it.
        read: what reading it took.
        kind: class of the error, empty where there is none.
        code: of the error, if it is a `SlideError`: what a door looks its own remedy up by.
        error: for people.
        trace: for engineers.
    """

    line: int
    slide: str
    row: dict[str, Any] | None = None
    thumbnail_sha256: str = ""
    kept: bool = False
    read: ReadCounts = field(default_factory=ReadCounts)
    kind: str = ""
    code: str = ""
    error: str = ""
    trace: str = ""


@dataclass(frozen=True, kw_only=True)
class PrepareReport:
    """What a run did, in the order of the manifest; `failed` is empty where every slide succeeded."""

    out: str
    prepared: list[SlideOutcome]
    failed: list[SlideOutcome]

    @property
    def n_patches(self) -> int:
        """Patches of all prepared slides."""
        return sum(outcome.row["n_patches"] for outcome in self.prepared if outcome.row)

    @property
    def kept(self) -> int:
        """Slides that an earlier run had finished."""
        return sum(outcome.kept for outcome in self.prepared)

    @property
    def staged(self) -> int:
        """Slides that were copied from object storage whole, since their format can't be read in place."""
        return sum(bool(outcome.row and outcome.row["staged"]) for outcome in self.prepared)

    @property
    def reading(self) -> ReadCounts:
        """Requests and bytes of this run."""
        return sum((at.read for at in [*self.prepared, *self.failed]), ReadCounts())

    @property
    def errors(self) -> dict[str, int]:
        """Failures by class of error, most frequent first."""
        return dict(Counter(outcome.kind for outcome in self.failed).most_common())

    @property
    def splits(self) -> dict[str, int]:
        """Prepared slides by split."""
        return dict(
            sorted(
                Counter(outcome.row["split"] for outcome in self.prepared if outcome.row).items()
            )
        )

    def to_json(self) -> bytes:
        """`report.json`: counts first, then every failure, then every prepared slide."""
        slides = {
            "total": len(self.prepared) + len(self.failed),
            "prepared": len(self.prepared),
            "failed": len(self.failed),
        }
        counts = {
            "slides": {**slides, "kept": self.kept, "staged": self.staged},
            "reading": {**asdict(self.reading), "amplification": self.reading.amplification},
            "patches": self.n_patches,
            "splits": self.splits,
            "errors": self.errors,
        }
        outcomes = {
            "failed": [asdict(at) for at in self.failed],
            "prepared": [asdict(at) for at in self.prepared],
        }
        return json.dumps({"out": self.out, **counts, **outcomes}, indent=1).encode()


def prepare(
    config: PrepareConfig,
    *,
    on_slide: Callable[[SlideOutcome, int], None] = lambda _outcome, _total: None,
) -> PrepareReport:
    """Prepare a cohort: attempt every slide, keep every success, record each failure.

    Args:
        config: what to prepare.
        on_slide: called with each outcome and the number of slides, as slides finish.

    Raises:
        ManifestError: the manifest itself can't be used; single bad slides don't raise.
        OutputError: `out` can't be written, a full disk for example; what is finished stays and can be resumed.
    """
    rows = read_manifest(config.manifest, shares=config.shares)
    finished: dict[int, SlideOutcome] = {}
    for place, outcome in _run_on_ray(rows, config):
        finished[place] = outcome
        on_slide(outcome, len(rows))
    outcomes, doubled = _refuse_same_slide(rows, [finished[place] for place in range(len(rows))])
    for _ in _run_on_ray(doubled, replace(config, resume=True)):
        pass  # their shard tables tell the place of whichever of the two came last: put that of the first back
    report = PrepareReport(
        out=config.out,
        prepared=[at for at in outcomes if at.row is not None],
        failed=[at for at in outcomes if at.row is None],
    )
    table = pa.Table.from_pylist([at.row for at in report.prepared], schema=cohort.SCHEMA)
    with _writing(config.out):
        storage.write_bytes(storage.join(config.out, "cohort.parquet"), cohort.to_parquet(table))
        storage.write_bytes(storage.join(config.out, "report.json"), report.to_json())
    return report


def prepare_slide(row: ManifestRow, config: PrepareConfig) -> SlideOutcome:
    """Index one slide and write its shard table, picture and record; a failure is an outcome, not an exception.

    Raises:
        OutputError: `config.out` can't be written.
    """
    with storage.metered() as meter:
        outcome = _prepare_slide(row, config)
    return replace(
        outcome,
        read=ReadCounts(requests=meter.requests, fetched=meter.fetched, needed=meter.needed),
    )


def _prepare_slide(row: ManifestRow, config: PrepareConfig) -> SlideOutcome:
    try:
        key = completion_key(
            row.uri,
            slide_version(row.uri),
            config.spec.hash,
            config.organisation,
            row.mpp,
            config.mpp,
            config.mpp_from_objective,
            config.shard_side,
        )
        done = (
            find_completion(config.out, config.organisation, key, config.spec.hash)
            if config.resume
            else None
        )
        kept = done is not None
        if done is None:
            done = _store(_index(row, config), key, config)
    except OutputError:
        raise
    except Exception as error:  # noqa: BLE001 - the slide boundary: one bad slide must not end the run, and is recorded
        return _failed(row, error)
    return SlideOutcome(
        line=row.line,
        slide=storage.object_name(row.uri),
        row=_cohort_row(row, done, config),
        thumbnail_sha256=done.thumbnail_sha256,
        kept=kept,
    )


def _index(row: ManifestRow, config: PrepareConfig) -> IndexedSlide:
    with open_slide(
        row.uri, mpp=row.mpp, mpp_from_objective=config.mpp_from_objective and config.mpp is None
    ) as slide:
        if slide.resolution is None:
            check_mpp(slide.name, config.mpp)
            slide.resolution = config.mpp
        return index_slide(
            slide, config.spec, organisation=config.organisation, shard_side=config.shard_side
        )


def _store(indexed: IndexedSlide, key: str, config: PrepareConfig) -> Completion:
    with _writing(config.out):
        write_index(indexed, config.out, organisation=config.organisation, spec=config.spec)
        done = Completion(
            slide_id=indexed.slide_id,
            vendor=indexed.vendor,
            staged=indexed.staged,
            icc=indexed.icc,
            mpp=indexed.mpp,
            width=indexed.size.width,
            height=indexed.size.height,
            n_patches=indexed.n_patches,
            thumbnail_sha256=hashlib.sha256(indexed.thumbnail.tobytes()).hexdigest(),
            # Not of what is read back: a copy of the slide, prepared at the same time, lies at the same address.
            shards_sha256=hashlib.sha256(cohort.to_parquet(indexed.shards)).hexdigest(),
        )
        record_completion(config.out, config.organisation, key, done)
    return done


@contextmanager
def _writing(out: str) -> Iterator[None]:
    try:
        yield
    except StorageError as error:
        remedy = "make room there or mend the permissions, then run again with --resume: finished slides are kept"
        raise OutputError(out, error.reason, remedy) from error


def _failed(row: ManifestRow, error: Exception) -> SlideOutcome:
    trace = "".join(traceback.format_exception(error))
    return SlideOutcome(
        line=row.line,
        slide=storage.object_name(row.uri),
        kind=type(error).__name__,
        code=error.code if isinstance(error, SlideError) else "",
        error=str(error),
        trace=trace,
    )


def _run_on_ray(
    rows: list[ManifestRow], config: PrepareConfig
) -> Iterator[tuple[int, SlideOutcome]]:
    """Places in the manifest and outcomes, as slides finish; as many in flight as twice the CPUs: a long manifest would fill
    the scheduler."""
    ensure_ray()
    task = ray.remote(num_cpus=1, max_retries=ATTEMPTS - 1)(prepare_slide)
    most = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting = iter(enumerate(rows))
    running: dict[ray.ObjectRef, int] = {}
    while True:
        running.update(
            {task.remote(row, config): place for place, row in islice(waiting, most - len(running))}
        )
        if not running:
            return
        done, _ = ray.wait(list(running))
        place = running.pop(done[0])
        try:
            outcome = _outcome(done[0], rows[place])
        except OutputError:
            if (
                running
            ):  # what is under way may still find room; nobody writes there when this run has ended
                ray.wait(list(running), num_returns=len(running))
            raise
        yield place, outcome


def _outcome(task: ray.ObjectRef, row: ManifestRow) -> SlideOutcome:
    try:
        return ray.get(task)
    except RayTaskError as error:
        raise error.cause from None
    except RayError as error:
        cause = f"ended the process that read it {ATTEMPTS} times ({type(error).__name__})"
        return _failed(
            row,
            BrokenSlide(
                storage.object_name(row.uri), cause, "export it again, or give workers more memory"
            ),
        )


def _cohort_row(row: ManifestRow, done: Completion, config: PrepareConfig) -> dict[str, Any]:
    return {
        "organisation_id": config.organisation,
        "slide_id": done.slide_id,
        "uri": row.uri,
        "vendor": done.vendor,
        "staged": done.staged,
        "icc": done.icc,
        "case": row.case,
        "split": row.split,
        "label": row.label,
        "annotation": row.annotation,
        "spec": json.dumps(config.spec.to_dict(), sort_keys=True),
        "mpp": done.mpp,
        "width": done.width,
        "height": done.height,
        "n_patches": done.n_patches,
        "shards_sha256": done.shards_sha256,
    }


def _refuse_same_slide(
    rows: list[ManifestRow], outcomes: list[SlideOutcome]
) -> tuple[list[SlideOutcome], list[ManifestRow]]:
    """The same slide under two names would be counted twice, or be in two splits: the first counts.

    Returns:
        Outcomes, and those first ones whose identity, and so the place of their shard table, a later one has too.
    """
    seen: dict[str, ManifestRow] = {}
    doubled: dict[str, ManifestRow] = {}
    kept = []
    for row, outcome in zip(rows, outcomes, strict=True):
        if outcome.row is None:
            kept.append(outcome)
            continue
        named = seen.setdefault(outcome.row["slide_id"], row)
        first = named if named is not row else seen.setdefault(outcome.thumbnail_sha256, row)
        if first is row:
            kept.append(outcome)
            continue
        if named is not row:
            doubled[first.uri] = first
        kept.append(
            _failed(
                row,
                ManifestError(
                    outcome.slide, f"is the same slide as {first.place}", "delete one of them"
                ),
            )
        )
    return kept, list(doubled.values())
