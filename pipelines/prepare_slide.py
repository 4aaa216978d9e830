"""One slide of a preparation, as a worker process runs it: index it, write what was found.

prepare_slide(row, config)
  find_record         what `resume` finds finished is kept
  index_slide         open -> thumbnail -> tissue mask -> patch grid -> shard table
  write_index         to its addresses, and the slide's record last
"""

from __future__ import annotations

import json
from dataclasses import replace

from pipelines import storage
from pipelines.cohort import CohortSlide
from pipelines.completion import completion_key, find_record, slide_version, write_record
from pipelines.index import IndexedSlide, SlideRecord, index_slide, write_index
from pipelines.manifest import ManifestRow
from pipelines.preparation import OutputError, PrepareConfig, SlideOutcome, writing
from pipelines.read_counts import ReadCounts
from pipelines.slides.opening import open_slide


def prepare_slide(row: ManifestRow, config: PrepareConfig) -> SlideOutcome:
    """Index one slide and write what was found; a failure is an outcome, not an exception.

    Raises:
        OutputError: `config.out` can't be written.
    """
    with storage.metered() as meter:
        outcome = _prepare_slide(row, config)
    counts = ReadCounts(requests=meter.requests, fetched=meter.fetched, needed=meter.needed)
    return replace(outcome, read=counts)


def _prepare_slide(row: ManifestRow, config: PrepareConfig) -> SlideOutcome:
    try:
        key = _key(row, config)
        kept = _find(key, config) if config.resume else None
        record = kept or _store(_index(row, config), key, config)
    except OutputError:
        raise
    except Exception as error:  # noqa: BLE001 - one bad slide must not end the run
        return SlideOutcome.failed(row, error)
    return SlideOutcome(
        line=row.line,
        slide=storage.object_name(row.uri),
        row=_cohort_slide(row, record, config),
        thumbnail_sha256=record.thumbnail_sha256,
        kept=kept is not None,
        remarks=record.remarks,
    )


def _key(row: ManifestRow, config: PrepareConfig) -> str:
    return completion_key(
        row.uri,
        slide_version(row.uri),
        config.spec.hash,
        config.organisation,
        row.mpp,
        config.mpp,
        config.mpp_from_objective,
        config.shard_side,
    )


def _find(key: str, config: PrepareConfig) -> SlideRecord | None:
    return find_record(config.out, config.organisation, key, config.spec.hash)


def _index(row: ManifestRow, config: PrepareConfig) -> IndexedSlide:
    with open_slide(
        row.uri,
        mpp=row.mpp,
        default_mpp=config.mpp,
        mpp_from_objective=config.mpp_from_objective,
    ) as slide:
        return index_slide(
            slide, config.spec, organisation=config.organisation, shard_side=config.shard_side
        )


def _store(indexed: IndexedSlide, key: str, config: PrepareConfig) -> SlideRecord:
    with writing(config.out):
        write_index(indexed, config.out, organisation=config.organisation, spec=config.spec)
        write_record(config.out, config.organisation, key, indexed.record)
    return indexed.record


def _cohort_slide(row: ManifestRow, record: SlideRecord, config: PrepareConfig) -> CohortSlide:
    return CohortSlide(
        organisation_id=config.organisation,
        slide_id=record.slide_id,
        uri=row.uri,
        vendor=record.vendor,
        staged=record.staged,
        icc=record.icc,
        case=row.case,
        split=row.split,
        label=row.label,
        annotation=row.annotation,
        annotation_origin=row.annotation_origin,
        spec=json.dumps(config.spec.to_dict(), sort_keys=True),
        mpp=record.mpp,
        width=record.width,
        height=record.height,
        bounds_x=record.bounds_x,
        bounds_y=record.bounds_y,
        bounds_width=record.bounds_width,
        bounds_height=record.bounds_height,
        n_patches=record.n_patches,
        shards_sha256=record.shards_sha256,
    )
