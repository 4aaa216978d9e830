"""One analysis in this process: what `acinus analyse` runs, without service, queue and database."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from typing import TypeVar

from app.analyses.files import AnalysisFiles
from app.analyses.status import Step
from app.cases.schemas import ClinicalVariables
from app.inference.models import InProcessModels, Models
from app.inference.stages import AnalysisResult, SlideSource, Work, run_stages
from pipelines import storage

T = TypeVar("T")

Progress = Callable[[Step, int, int | None], None]
"""Called as (step, shards done, shards in all)."""


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
    """Run all stages of an analysis.

    The slide is read in place, not ingested: its size, time and tile index give its identity.

    Args:
        slide: path or URI.
        clinical: of the patient; may be empty, then the report has no risk.
        models: URI of a registry or a model set, or models that are open already.
        root: where embeddings and the report's files go.
        mpp: micrometres per pixel, for a slide whose metadata have none.
        organisation: first folder of every key.
        analysis_id: names the analysis; random if None.
        in_flight: shards at the encoder at a time.
        on_progress: called as stages start and shards finish.

    Raises:
        SlideError: the slide cannot be analysed, with the reason.
        TrainingError: the models cannot be used, with the reason.
        StorageError: the output cannot be written.
    """
    current, shards = Step.INDEX, 0
    total: int | None = None
    results: list[AnalysisResult] = []

    def show(done: int, of: int) -> None:
        nonlocal shards, total
        shards, total = done, of
        on_progress(current, shards, total)

    async def run(step: Step, stage: Callable[[], Awaitable[T]]) -> T:
        nonlocal current
        current = step
        on_progress(step, shards, total)
        return await stage()

    name = analysis_id or str(uuid.uuid4())
    work = Work(
        models=InProcessModels.load(models) if isinstance(models, str) else models,
        files=AnalysisFiles(root=storage.as_uri(root), organisation=organisation, analysis_id=name),
        in_flight=in_flight,
        clinical=lambda: clinical,
        on_shards=show,
        on_result=results.append,
    )
    asyncio.run(run_stages(work, SlideSource(uri=slide, mpp=mpp), run))
    [result] = results
    return result
