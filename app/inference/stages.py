"""The stages of an analysis, written once: index -> embed -> predict -> report.

    index     header and thumbnail -> tissue, patch lattice, shard table
    embed     every shard whose embeddings are not in the store yet
    predict   the bag of embeddings -> patterns, grade, risk -> report.json
    report    heatmap.png and report.pdf

`run_stages` runs them, whoever runs a stage: the case workflow as durable steps against Ray Serve
(`app.workflow.case_workflow`), `analyse` in this process (`app.inference.analyse`). Each stage
reads what it needs from the store and may be repeated: all files belong to the analysis, and
embeddings have addresses made of content, so nothing is computed or counted twice. `index` takes
the model set that is in production then; the other stages go on with that version. This module
knows neither HTTP nor database.
"""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol, TypeVar

import numpy as np
import pyarrow as pa
import safetensors.numpy
from PIL import Image

from app.analyses.files import HEATMAP, PATCHES, PDF, REPORT, THUMBNAIL, AnalysisFiles
from app.analyses.status import Step
from app.cases.schemas import ClinicalVariables
from app.inference.errors import ModelSetUnusable
from app.inference.models import Models
from app.reports.findings import AnalysedSlide, ModelSetFacts
from app.reports.heatmap import heatmap_png, pattern_raster
from app.reports.making import make_report
from app.reports.pdf import report_pdf
from app.reports.schemas import Report
from pipelines import addresses, cohort, storage
from pipelines.fingerprint import Fingerprint
from pipelines.index import IndexedSlide, index_files, index_slide
from pipelines.shards import SCHEMA, shards_of
from pipelines.slides.opening import open_slide
from training.encoder.embed import missing_shards
from training.errors import VersionNotFound

T = TypeVar("T")

SHARD_SIDE = 16
"""Maximum number of patches along a side of a shard: half of what training reads by. Here a shard
is what progress counts and a crash repeats, and computing costs far more than the few tiles that
are decoded twice."""


@dataclass(frozen=True, kw_only=True)
class SlideSource:
    """The slide of an analysis.

    Attributes:
        uri: where it is stored.
        slide_id: the identity that ingestion gave; None for a slide read in place.
        mpp: micrometres per pixel, for a slide whose metadata have none.
    """

    uri: str
    slide_id: str | None = None
    mpp: float | None = None


@dataclass(frozen=True, kw_only=True)
class AnalysisResult:
    """A finished analysis.

    Attributes:
        report: what it says.
        report_json, heatmap, report_pdf: URIs of the files.
    """

    report: Report
    report_json: str
    heatmap: str
    report_pdf: str


@dataclass(frozen=True, kw_only=True)
class Work:
    """What the stages of one analysis work with. The callbacks are called in threads.

    Attributes:
        models: where the models run.
        files: of the analysis.
        in_flight: shards at the encoder at a time: one is fetched while another is computed.
        clinical: gives the patient's clinical variables.
        on_shards: called with the number of embedded shards and of all, whenever either changes.
        on_result: called once with the result, as the end of the last stage.
    """

    models: Models
    files: AnalysisFiles
    in_flight: int
    clinical: Callable[[], ClinicalVariables]
    on_shards: Callable[[int, int], None]
    on_result: Callable[[AnalysisResult], None]


class RunStage(Protocol):
    """Runs one stage: in this process, or so that its result survives the process."""

    async def __call__(self, step: Step, stage: Callable[[], Awaitable[T]]) -> T:
        """The stage's result."""


async def run_stages(work: Work, source: SlideSource, run: RunStage) -> None:
    """Run all stages in their order.

    Raises:
        SlideError: the slide cannot be analysed, with the reason.
        TrainingError: the models cannot be used, with the reason.
        ModelSetUnusable: the models were exchanged between two stages.
        StorageError: the store cannot be read or written.
    """
    slide = await run(Step.INDEX, lambda: index(work, source))
    await run(Step.EMBED, lambda: embed(work, slide))
    await run(Step.PREDICT, lambda: predict(work, slide))
    await run(Step.REPORT, lambda: report(work, slide))


async def index(work: Work, source: SlideSource) -> AnalysedSlide:
    """Find the tissue and write the shard table.

    All files belong to the analysis: another one of the same slide may have another mpp, and must
    not exchange the shard table of one that is running. Embeddings alone are shared, since their
    addresses follow from what they are computed from.
    """
    facts = await work.models.facts()
    slide = await asyncio.to_thread(_index, source, work.files, facts)
    await asyncio.to_thread(work.on_shards, 0, slide.n_shards)
    return slide


def _index(source: SlideSource, files: AnalysisFiles, facts: ModelSetFacts) -> AnalysedSlide:
    with open_slide(source.uri, identity=source.slide_id, default_mpp=source.mpp) as slide:
        indexed = index_slide(
            slide, facts.spec, organisation=files.organisation, shard_side=SHARD_SIDE
        )
    contents = {**index_files(indexed), THUMBNAIL: _png(indexed)}
    for name, content in contents.items():
        storage.write_bytes(files.uri(indexed.record.slide_id, name), content)
    [first] = shards_of(indexed.shards.slice(0, 1))
    record = indexed.record
    return AnalysedSlide(
        slide_id=record.slide_id,
        vendor=record.vendor,
        width=record.width,
        height=record.height,
        mpp=record.mpp,
        patch_side=first.patch_side,
        n_patches=record.n_patches,
        n_shards=len(indexed.shards),
        version=facts.version,
        encoder_key=facts.encoder_key,
    )


def _png(indexed: IndexedSlide) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(indexed.thumbnail).save(stream, "PNG")
    return stream.getvalue()


def shard_table(files: AnalysisFiles, slide: AnalysedSlide) -> pa.Table:
    """The shards that `index` wrote."""
    uri = files.uri(slide.slide_id, addresses.SHARD_TABLE)
    return cohort.from_parquet(storage.read_bytes(uri), SCHEMA)


async def embed(work: Work, slide: AnalysedSlide) -> None:
    """Embed every shard whose embeddings are not in the store."""
    facts = await _facts_for(work, slide)
    root = work.files.root
    shards = await asyncio.to_thread(shard_table, work.files, slide)
    missing = await asyncio.to_thread(missing_shards, shards, facts.encoder_key, root)
    done = len(shards) - len(missing)
    await asyncio.to_thread(work.on_shards, done, len(shards))
    gate, counting = asyncio.Semaphore(work.in_flight), asyncio.Lock()

    async def one(row: int) -> None:
        nonlocal done
        async with gate:
            await work.models.embed(facts.version, missing.slice(row, 1), root)
        async with counting:
            done += 1
            await asyncio.to_thread(work.on_shards, done, len(shards))

    try:
        async with asyncio.TaskGroup() as group:
            for row in range(len(missing)):
                group.create_task(one(row))
    except ExceptionGroup as failures:
        # The first failure ended the others; its class says what to do.
        raise failures.exceptions[0] from None


async def predict(work: Work, slide: AnalysedSlide) -> None:
    """Let the models read the whole slide; write report.json and the patches' probabilities."""
    facts = await _facts_for(work, slide)
    shards = await asyncio.to_thread(shard_table, work.files, slide)
    clinical = await asyncio.to_thread(work.clinical)
    look = await asyncio.to_thread(_fingerprint, work.files, slide)
    findings = await work.models.read(facts, shards, work.files.root, clinical, look)
    made = make_report(
        work.files.analysis_id,
        facts,
        slide,
        findings,
        clinical=clinical,
        made_at=datetime.now(UTC),
    )
    patches = {
        "x": findings.x,
        "y": findings.y,
        "probabilities": findings.slide.patch_probabilities,
        "attention": findings.slide.attention,
    }
    contents = {
        PATCHES: safetensors.numpy.save(
            {name: np.ascontiguousarray(values) for name, values in patches.items()}
        ),
        REPORT: made.model_dump_json(indent=1).encode(),
    }
    for name, content in contents.items():
        uri = work.files.uri(slide.slide_id, name)
        await asyncio.to_thread(storage.write_bytes, uri, content)


def _fingerprint(files: AnalysisFiles, slide: AnalysedSlide) -> Fingerprint:
    uri = files.uri(slide.slide_id, addresses.FINGERPRINT)
    return Fingerprint.from_dict(json.loads(storage.read_bytes(uri)))


async def report(work: Work, slide: AnalysedSlide) -> None:
    """Draw heatmap and PDF from what `predict` wrote, and hand the result over."""
    result = await asyncio.to_thread(_draw, work.files, slide)
    await asyncio.to_thread(work.on_result, result)


def _draw(files: AnalysisFiles, slide: AnalysedSlide) -> AnalysisResult:
    def read(name: str) -> bytes:
        return storage.read_bytes(files.uri(slide.slide_id, name))

    made = Report.model_validate_json(read(REPORT))
    thumbnail = np.asarray(Image.open(io.BytesIO(read(THUMBNAIL))))
    patches = safetensors.numpy.load(read(PATCHES))
    height, width = thumbnail.shape[:2]
    raster = pattern_raster(
        patches["x"],
        patches["y"],
        patches["probabilities"],
        side=slide.patch_side,
        scale=width / slide.width,
        shape=(height, width),
    )
    heatmap = heatmap_png(thumbnail, raster, mpp=slide.mpp * slide.width / width)
    uris = {name: files.uri(slide.slide_id, name) for name in (REPORT, HEATMAP, PDF)}
    storage.write_bytes(uris[HEATMAP], heatmap)
    storage.write_bytes(uris[PDF], report_pdf(made, heatmap))
    return AnalysisResult(
        report=made, report_json=uris[REPORT], heatmap=uris[HEATMAP], report_pdf=uris[PDF]
    )


async def _facts_for(work: Work, slide: AnalysedSlide) -> ModelSetFacts:
    """What identifies the models that the analysis started with, whatever was promoted since.

    Raises:
        ModelSetUnusable: they are not there any more, or compute in another precision.
    """
    with suppress(VersionNotFound):
        facts = await work.models.facts(slide.version)
        if facts.encoder_key == slide.encoder_key:
            return facts
    raise ModelSetUnusable(
        "The models were exchanged while this analysis was running; send the slide again."
    )
