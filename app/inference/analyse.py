"""One analysis, stage by stage, in plain Python: index -> embed -> predict -> render.

    index     header and thumbnail -> tissue, patch lattice, shard table
    embed     every shard whose embeddings are not in the store yet
    predict   the bag of embeddings -> patterns, grade, risk -> report.json
    render    heatmap.png and report.pdf

The case workflow runs the stages as durable steps against Ray Serve; `analyse` runs them in this process. Each stage reads
what it needs from the store and may be repeated: addresses are made of content, so nothing is computed or counted twice.
This module knows neither HTTP nor database.
"""

from __future__ import annotations

import asyncio
import io
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow as pa
import safetensors.numpy
from PIL import Image

from app.analyses.status import Step
from app.cases.schemas import ClinicalVariables
from app.errors import ModelSetUnusable
from app.inference.models import InProcessModels, ModelFacts, Models, Reading
from app.inference.place import HEATMAP, PATCHES, PDF, REPORT, THUMBNAIL, Place
from app.reports import schemas
from app.reports.heatmap import heatmap_png, pattern_raster
from app.reports.pdf import report_pdf
from app.reports.schemas import Report
from pipelines import addresses, cohort, storage
from pipelines.grid import PatchSpec
from pipelines.index import index_files, index_slide
from pipelines.shards import SCHEMA, shards_of
from pipelines.slides.opening import open_slide
from training.encoder.embed import missing_shards

Progress = Callable[[Step, int, int | None], None]
"""Called as (step, shards done, shards in all)."""


@dataclass(frozen=True, kw_only=True)
class IndexedSlide:
    """What later stages need to know of an indexed slide; the shard table itself lies in the store.

    Attributes:
        slide_id: the slide's identity.
        vendor: format.
        width: pixels of level 0.
        height: pixels of level 0.
        mpp: micrometres per pixel of level 0.
        n_patches: in all shards.
        n_shards: rows of the shard table.
        spec_hash: of the PatchSpec it was indexed with.
    """

    slide_id: str
    vendor: str
    width: int
    height: int
    mpp: float
    n_patches: int
    n_shards: int
    spec_hash: str


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


SHARD_SIDE = 16
"""Most patches along a side of a shard: half of what training reads by, for here a shard is what progress counts and a crash
repeats, and computing costs far more than the few tiles that are decoded twice."""


def index(
    slide_uri: str,
    place: Place,
    spec: PatchSpec,
    *,
    slide_id: str | None = None,
    mpp: float | None = None,
) -> IndexedSlide:
    """Find the tissue and write the shard table.

    All files belong to the analysis: another one of the same slide may have another mpp, and must
    not exchange the shard table of one that is running. Embeddings alone are shared, since their
    addresses follow from what they are computed from.

    Args:
        slide_uri: where the slide lies.
        place: where to write.
        spec: the encoder's patches.
        slide_id: the identity that ingestion gave; a slide read in place gets its own.
        mpp: micrometres per pixel, for a slide whose metadata carry none.

    Raises:
        SlideError: the slide cannot be analysed, with the reason.
    """
    with open_slide(slide_uri, identity=slide_id, default_mpp=mpp) as slide:
        indexed = index_slide(slide, spec, organisation=place.organisation, shard_side=SHARD_SIDE)
    record = indexed.record
    stream = io.BytesIO()
    Image.fromarray(indexed.thumbnail).save(stream, "PNG")
    files = {**index_files(indexed), THUMBNAIL: stream.getvalue()}
    for name, content in files.items():
        storage.write_bytes(place.file(record.slide_id, name), content)
    return IndexedSlide(
        slide_id=record.slide_id,
        vendor=record.vendor,
        width=record.width,
        height=record.height,
        mpp=record.mpp,
        n_patches=record.n_patches,
        n_shards=len(indexed.shards),
        spec_hash=spec.hash,
    )


def shard_table(place: Place, indexed: IndexedSlide) -> pa.Table:
    """The shards that `index` wrote."""
    uri = place.file(indexed.slide_id, addresses.SHARD_TABLE)
    return cohort.from_parquet(storage.read_bytes(uri), SCHEMA)


async def embed(
    models: Models,
    place: Place,
    indexed: IndexedSlide,
    *,
    in_flight: int,
    on_done: Callable[[int], None] = lambda _done: None,
) -> None:
    """Embed every shard whose embeddings are not in the store.

    Args:
        models: where the encoder runs.
        place: where embeddings lie.
        indexed: the slide.
        in_flight: shards at the encoder at a time: one is fetched while another is computed.
        on_done: called with the number of shards that are done, whenever it changes.
    """
    facts = await models.facts()
    _require_spec(facts, indexed)
    shards = await asyncio.to_thread(shard_table, place, indexed)
    missing = await asyncio.to_thread(missing_shards, shards, facts.encoder_key, place.root)
    done = len(shards) - len(missing)
    await asyncio.to_thread(on_done, done)
    gate, telling = asyncio.Semaphore(in_flight), asyncio.Lock()

    async def one(row: int) -> None:
        nonlocal done
        async with gate:
            await models.embed(missing.slice(row, 1), place.root)
        async with telling:
            done += 1
            await asyncio.to_thread(on_done, done)

    try:
        async with asyncio.TaskGroup() as group:
            for row in range(len(missing)):
                group.create_task(one(row))
    except (
        ExceptionGroup
    ) as failures:  # the first failure ended the others; its class says what to do
        raise failures.exceptions[0] from None


async def predict(
    models: Models,
    place: Place,
    indexed: IndexedSlide,
    clinical: ClinicalVariables,
    *,
    made_at: datetime | None = None,
) -> Report:
    """Read the whole slide and write report.json, with the patches' probabilities beside it.

    Args:
        models: where slide and risk model run.
        place: where embeddings lie and files go.
        indexed: the slide.
        clinical: of the patient.
        made_at: the report's time; now, if None.

    Raises:
        ModelSetUnusable: the models are not those that the slide was indexed and embedded with.
    """
    facts = await models.facts()
    _require_spec(facts, indexed)
    shards = await asyncio.to_thread(shard_table, place, indexed)
    reading = await models.read(shards, place.root, clinical)
    report = make_report(
        place.analysis_id,
        facts,
        indexed,
        reading,
        clinical=clinical,
        made_at=made_at or datetime.now(UTC),
    )
    patches = {
        "x": reading.x,
        "y": reading.y,
        "probabilities": reading.slide.patch_probabilities,
        "attention": reading.slide.attention,
    }
    document = safetensors.numpy.save(
        {name: np.ascontiguousarray(values) for name, values in patches.items()}
    )
    await asyncio.to_thread(storage.write_bytes, place.file(indexed.slide_id, PATCHES), document)
    await asyncio.to_thread(
        storage.write_bytes,
        place.file(indexed.slide_id, REPORT),
        report.model_dump_json(indent=1).encode(),
    )
    return report


def render(place: Place, indexed: IndexedSlide) -> AnalysisResult:
    """Draw heatmap and PDF from what `predict` wrote."""
    report = Report.model_validate_json(storage.read_bytes(place.file(indexed.slide_id, REPORT)))
    thumbnail = np.asarray(
        Image.open(io.BytesIO(storage.read_bytes(place.file(indexed.slide_id, THUMBNAIL))))
    )
    patches = safetensors.numpy.load(storage.read_bytes(place.file(indexed.slide_id, PATCHES)))
    [shard] = shards_of(shard_table(place, indexed).slice(0, 1))
    raster = pattern_raster(
        patches["x"],
        patches["y"],
        patches["probabilities"],
        side=shard.patch_side,
        scale=thumbnail.shape[1] / indexed.width,
        shape=(thumbnail.shape[0], thumbnail.shape[1]),
    )
    heatmap = heatmap_png(thumbnail, raster, mpp=indexed.mpp * indexed.width / thumbnail.shape[1])
    files = {name: place.file(indexed.slide_id, name) for name in (REPORT, HEATMAP, PDF)}
    storage.write_bytes(files[HEATMAP], heatmap)
    storage.write_bytes(files[PDF], report_pdf(report, heatmap))
    return AnalysisResult(
        report=report, report_json=files[REPORT], heatmap=files[HEATMAP], report_pdf=files[PDF]
    )


def make_report(
    analysis_id: str,
    facts: ModelFacts,
    indexed: IndexedSlide,
    reading: Reading,
    *,
    clinical: ClinicalVariables,
    made_at: datetime,
) -> Report:
    """What the models said, as a report."""
    grading, slide = reading.grading, reading.slide
    spec = facts.spec
    return Report(
        simulated_outcomes=facts.simulated_outcomes,
        analysis_id=analysis_id,
        created_at=made_at,
        specimen=schemas.Specimen(
            slide_id=indexed.slide_id,
            vendor=indexed.vendor,
            width_px=indexed.width,
            height_px=indexed.height,
            mpp=indexed.mpp,
            patches=indexed.n_patches,
            patch_area_mm2=indexed.n_patches * ((spec.size - spec.overlap) * spec.mpp / 1000) ** 2,
        ),
        clinical=clinical,
        grading=schemas.Grading(
            **grading.shares,
            tumour_extent=min(grading.tumour_extent, 1.0),
            primary=grading.primary,
            secondary=grading.secondary,
            gleason_score=grading.gleason_score,
            grade_group=grading.grade_group,
            percent_pattern_4=grading.percent_pattern_4,
            percent_pattern_5=grading.percent_pattern_5,
        ),
        slide_model=schemas.SlideModelPrediction(
            grade_group=slide.grade_group,
            grade_group_probabilities=[_share(p) for p in slide.grade_group_probabilities],
            cancer_probability=_share(slide.cancer_probability),
            agrees_with_grading=slide.grade_group == grading.grade_group,
        ),
        risk=_risk(reading),
        risk_absent_because=reading.risk_absent_because,
        provenance=schemas.Provenance(
            encoder=facts.encoder,
            slide_model=facts.slide_model,
            risk_model=facts.risk_model,
            patch_spec=spec.to_dict(),
            patch_spec_hash=spec.hash,
            software=f"acinus {version('acinus')}",
        ),
    )


def _risk(reading: Reading) -> schemas.Risk | None:
    risk = reading.risk
    if risk is None:
        return None
    curve = risk.curve

    def estimate(interval: Any) -> schemas.Estimate:
        return schemas.Estimate(
            estimate=_share(interval.estimate),
            lower=_share(interval.lower),
            upper=_share(interval.upper),
        )

    return schemas.Risk(
        five_year=estimate(risk.five_year),
        ten_year=estimate(risk.ten_year),
        curve=schemas.RiskCurve(
            years=curve.years.tolist(),
            estimate=[_share(value) for value in curve.estimate],
            lower=[_share(value) for value in curve.lower],
            upper=[_share(value) for value in curve.upper],
        ),
        score=risk.score,
        nccn_group=risk.nccn_group,
        percentile=risk.percentile,
        contributions=risk.contributions,
        outside_training_range=risk.outside_training_range,
        gleason_from=reading.gleason_from,
    )


def _share(value: float) -> float:
    """Within [0, 1] also where float32 sums end at 1.0000001."""
    return min(max(float(value), 0.0), 1.0)


def _require_spec(facts: ModelFacts, indexed: IndexedSlide) -> None:
    if facts.spec.hash != indexed.spec_hash:
        raise ModelSetUnusable(
            "The models were exchanged while this analysis was running; send the slide again."
        )


def analyse(
    slide: str,
    clinical: ClinicalVariables,
    models: str | Models,
    root: str,
    *,
    mpp: float | None = None,
    organisation: str = "local",
    analysis_id: str | None = None,
    in_flight: int = 2,
    on_progress: Progress = lambda _step, _done, _total: None,
) -> AnalysisResult:
    """The whole analysis in this process: what `acinus analyse` runs.

    The slide is read in place and not ingested: its identity comes from its size, time and tile index.

    Args:
        slide: path or URI.
        clinical: of the patient; may be empty, then the report has no risk.
        models: URI of a model set, or models that are open already.
        root: where embeddings and the report's files go.
        mpp: micrometres per pixel, for a slide whose metadata carry none.
        organisation: first folder of every key.
        analysis_id: names the analysis; drawn if None.
        in_flight: shards at the encoder at a time.
        on_progress: called as stages begin and shards finish.

    Raises:
        SlideError: the slide cannot be analysed, with the reason.
        TrainingError: the models cannot be used, with the reason.
    """
    opened = InProcessModels.load(models) if isinstance(models, str) else models
    place = Place(
        root=storage.as_uri(root),
        organisation=organisation,
        analysis_id=analysis_id or str(uuid.uuid4()),
    )

    async def run() -> AnalysisResult:
        facts = await opened.facts()
        on_progress(Step.INDEX, 0, None)
        indexed = await asyncio.to_thread(index, slide, place, facts.spec, mpp=mpp)
        total = indexed.n_shards
        await embed(
            opened,
            place,
            indexed,
            in_flight=in_flight,
            on_done=lambda done: on_progress(Step.EMBED, done, total),
        )
        on_progress(Step.PREDICT, total, total)
        await predict(opened, place, indexed, clinical)
        on_progress(Step.REPORT, total, total)
        return await asyncio.to_thread(render, place, indexed)

    return asyncio.run(run())
