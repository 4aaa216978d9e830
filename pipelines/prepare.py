"""OPEN FIRST. From a manifest of slides to a cohort that can be trained on: index every slide, write its shards and its picture.

    prepare(config)
      read_manifest                      rows, validated
      prepare_slide (a Ray task each)    open -> thumbnail -> tissue mask -> patch grid -> shard table, overview picture
      cohort.parquet, report.json        every success kept, every failure recorded

Headers and thumbnails are read, never whole slides. Knows no model and no patient.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import pyarrow as pa
import ray

from pipelines import cohort, storage
from pipelines.grid import PatchSpec
from pipelines.index import IndexedSlide, index_slide, write_index
from pipelines.manifest import ManifestRow, read_manifest
from pipelines.ray_session import ensure_ray
from pipelines.slides.errors import ManifestError
from pipelines.slides.slide import check_mpp, open_slide, slide_name


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """What to prepare.

    Attributes:
        manifest: path or URI of the manifest.
        out: folder or URI prefix that the cohort is written to.
        spec: what a patch is.
        organisation: owner of all derived objects.
        mpp: micrometres per pixel for slides whose manifest row and metadata have none.
        shard_side: most patches along one side of a shard.
    """

    manifest: str
    out: str
    spec: PatchSpec = PatchSpec()
    organisation: str = "local"
    mpp: float | None = None
    shard_side: int = 16


@dataclass(frozen=True, kw_only=True)
class SlideOutcome:
    """What became of one manifest row: `row` of the cohort table, or `error` (for people) and `trace` (for engineers)."""

    line: int
    slide: str
    row: dict[str, Any] | None = None
    error: str = ""
    trace: str = ""


@dataclass(frozen=True, kw_only=True)
class PrepareReport:
    """What a run did; `failed` is empty where every slide succeeded."""

    out: str
    prepared: list[SlideOutcome]
    failed: list[SlideOutcome]

    @property
    def n_patches(self) -> int:
        """Patches of all prepared slides."""
        return sum(outcome.row["n_patches"] for outcome in self.prepared if outcome.row)


def prepare(
    config: PrepareConfig, *, on_slide: Callable[[SlideOutcome, int], None] = lambda _outcome, _total: None
) -> PrepareReport:
    """Prepare a cohort: attempt every slide, keep every success, record each failure.

    Args:
        config: what to prepare.
        on_slide: called with each outcome and the number of slides, as slides finish.

    Raises:
        ManifestError: the manifest itself can't be used; single bad slides don't raise.
    """
    rows = read_manifest(config.manifest)
    outcomes = []
    for outcome in _run_on_ray(rows, config):
        outcomes.append(outcome)
        on_slide(outcome, len(rows))
    outcomes = _refuse_same_slide(sorted(outcomes, key=lambda at: at.line))
    report = PrepareReport(
        out=config.out,
        prepared=[at for at in outcomes if at.row is not None],
        failed=[at for at in outcomes if at.row is None],
    )
    table = pa.Table.from_pylist([at.row for at in report.prepared], schema=cohort.SCHEMA)
    storage.write_bytes(storage.join(config.out, "cohort.parquet"), cohort.to_parquet(table))
    storage.write_bytes(storage.join(config.out, "report.json"), json.dumps(asdict(report), indent=1).encode())
    return report


def prepare_slide(row: ManifestRow, config: PrepareConfig) -> SlideOutcome:
    """Index one slide and write its shard table and picture; a failure is an outcome, not an exception."""
    try:
        with open_slide(row.uri, mpp=row.mpp) as slide:
            if slide.resolution is None:
                check_mpp(slide.name, config.mpp)
                slide.resolution = config.mpp
            indexed = index_slide(slide, config.spec, organisation=config.organisation, shard_side=config.shard_side)
        write_index(indexed, config.out, organisation=config.organisation, spec=config.spec)
        return SlideOutcome(line=row.line, slide=slide_name(row.uri), row=_cohort_row(row, indexed, config))
    except Exception as error:  # noqa: BLE001 - the slide boundary: one bad slide must not end the run, and is recorded
        return SlideOutcome(line=row.line, slide=slide_name(row.uri), error=str(error), trace=traceback.format_exc())


def _run_on_ray(rows: list[ManifestRow], config: PrepareConfig) -> Iterator[SlideOutcome]:
    """Outcomes as slides finish; as many in flight as twice the CPUs, so that a long manifest does not fill the scheduler."""
    ensure_ray()
    task = ray.remote(num_cpus=1, max_retries=3)(prepare_slide)
    waiting = iter(rows)
    most = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    running = [task.remote(row, config) for row in islice(waiting, most)]
    while running:
        done, running = ray.wait(running)
        yield ray.get(done[0])
        running += [task.remote(row, config) for row in islice(waiting, 1)]


def _cohort_row(row: ManifestRow, indexed: IndexedSlide, config: PrepareConfig) -> dict[str, Any]:
    return {
        "organisation_id": config.organisation,
        "slide_id": indexed.slide_id,
        "uri": row.uri,
        "vendor": indexed.vendor,
        "case": row.case,
        "split": row.split,
        "label": row.label,
        "annotation": row.annotation,
        "spec": json.dumps(config.spec.to_dict(), sort_keys=True),
        "mpp": indexed.mpp,
        "width": indexed.size.width,
        "height": indexed.size.height,
        "n_patches": indexed.n_patches,
    }


def _refuse_same_slide(outcomes: list[SlideOutcome]) -> list[SlideOutcome]:
    """The same slide under two names would be counted twice."""
    seen: dict[str, SlideOutcome] = {}
    kept = []
    for outcome in outcomes:
        first = seen.setdefault(outcome.row["slide_id"], outcome) if outcome.row else outcome
        if first is not outcome:
            error = ManifestError(outcome.slide, f"is the same slide as line {first.line} ({first.slide})", "delete one of them")
            kept.append(SlideOutcome(line=outcome.line, slide=outcome.slide, error=str(error)))
        else:
            kept.append(outcome)
    return kept
