"""OPEN FIRST. From a manifest of slides to a cohort that can be trained on.

    prepare(config)
      read_manifest                      rows, validated
      local_workers or ray_workers       processes that run `prepare_slide`, row by row:
                                         thumbnail -> tissue mask -> patch grid -> shard table
      cohort.parquet, report.json        every success kept, every failure recorded

Headers and thumbnails are read, never whole slides. What is written depends on slides and config
alone: not on who ran them, the order in which slides finish, or how often the run was killed and
resumed. Knows no model and no patient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace

from pipelines import addresses, cohort, local_workers, storage
from pipelines.manifest import ManifestRow, read_manifest
from pipelines.preparation import (
    OutputError,
    PrepareConfig,
    PrepareReport,
    RunSlides,
    SlideOutcome,
    writing,
)
from pipelines.slides.errors import ManifestError

__all__ = ["OutputError", "PrepareConfig", "PrepareReport", "SlideOutcome", "prepare"]


def prepare(
    config: PrepareConfig,
    *,
    run_slides: RunSlides = local_workers.run_slides,
    on_slide: Callable[[SlideOutcome, int], None] = lambda _outcome, _total: None,
) -> PrepareReport:
    """Prepare a cohort: attempt every slide, keep every success, record each failure.

    Args:
        config: what to prepare.
        run_slides: who does it: processes of this machine, or `ray_workers.run_slides`.
        on_slide: called with each outcome and the number of slides, as slides finish.

    Raises:
        ManifestError: the manifest itself can't be used; single bad slides don't raise.
        OutputError: `out` can't be written, a full disk for example. What is finished stays there
            and can be resumed.
    """
    manifest = read_manifest(config.manifest, shares=config.shares)
    rows = manifest.rows
    finished: dict[int, SlideOutcome] = {}
    with closing(run_slides(rows, config)) as results:
        for k, outcome in results:
            finished[k] = outcome
            on_slide(outcome, len(rows))
    found = [finished[k] for k in range(len(rows))]
    outcomes = _refuse_same_slide(rows, found)
    outcomes = _tidy_refused(rows, found, outcomes, config, run_slides)
    report = PrepareReport(
        out=config.out,
        prepared=[outcome for outcome in outcomes if outcome.row is not None],
        failed=[outcome for outcome in outcomes if outcome.row is None],
        passed_over=manifest.passed_over,
    )
    table = cohort.table_of([outcome.row for outcome in outcomes if outcome.row is not None])
    with writing(config.out):
        storage.write_bytes(storage.join(config.out, "cohort.parquet"), cohort.to_parquet(table))
        storage.write_bytes(storage.join(config.out, "report.json"), report.to_json())
    return report


def _refuse_same_slide(
    rows: Sequence[ManifestRow], outcomes: Sequence[SlideOutcome]
) -> list[SlideOutcome]:
    """Outcomes in which a slide with two names counts once; its second name is a failure.

    It would be counted twice else, or be in two splits. The same identity or the same thumbnail is
    the same slide.
    """
    seen: dict[str, ManifestRow] = {}
    kept = []
    for row, outcome in zip(rows, outcomes, strict=True):
        if outcome.row is None:
            kept.append(outcome)
            continue
        names = (outcome.row.slide_id, outcome.thumbnail_sha256)
        first = next((seen[name] for name in names if name in seen), None)
        for name in names:
            seen.setdefault(name, first or row)
        if first is None:
            kept.append(outcome)
        else:
            cause = f"is the same slide as {first.described}"
            error = ManifestError(outcome.slide, cause, "delete one of them")
            kept.append(SlideOutcome.failed(row, error))
    return kept


def _tidy_refused(
    rows: Sequence[ManifestRow],
    found: Sequence[SlideOutcome],
    kept: Sequence[SlideOutcome],
    config: PrepareConfig,
    run_slides: RunSlides,
) -> list[SlideOutcome]:
    """Undo what preparing a refused copy did: only slides of the cohort keep a shard table.

    A copy with an identity of its own has files of its own: they are removed. One with the identity
    of the first has overwritten its shard table, which names the copy's URI: the first is prepared
    again. Returns what is kept, with the outcomes of those slides: one may have failed this time.
    """
    refused = [k for k, outcome in enumerate(kept) if outcome.row is None and found[k].row]
    copies = {one.slide_id for k in refused if (one := found[k].row)}
    firsts = {outcome.row.slide_id: k for k, outcome in enumerate(kept) if outcome.row}
    with writing(config.out):
        for slide_id in sorted(copies - firsts.keys()):
            for address in addresses.of_slide(config.organisation, slide_id, config.spec.hash):
                storage.delete(addresses.uri(config.out, address))
    again = [firsts[slide_id] for slide_id in sorted(copies & firsts.keys())]
    outcomes = list(kept)
    with closing(run_slides([rows[k] for k in again], replace(config, resume=True))) as results:
        for j, outcome in results:
            outcomes[again[j]] = replace(outcome, read=kept[again[j]].read + outcome.read)
    return outcomes
