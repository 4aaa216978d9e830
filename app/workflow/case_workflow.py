"""The durable case workflow: ingest, then the stages of `app.inference.stages`.

Web processes only put analyses on the queue (`app.workflow.queue`). ONE executor process, with a
fixed executor id, works it (`app.workflow.executor`): two executors that share an id would both
recover the same workflows. DBOS records each finished step in its database; after a crash the next
process of that id goes on behind the last one recorded. A step may therefore run twice, and every
step is idempotent: the files of an analysis are its own, embeddings have addresses made of their
content, rows have keys, progress is set and never added to.

This module knows how a step is run and where results are written down, not what a stage does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import structlog
from dbos import DBOS, DBOSConfiguredInstance, StepOptions
from dbos import error as dbos_error

from app.analyses.files import AnalysisFiles
from app.analyses.status import Status, Step
from app.analyses.tables import Analysis
from app.cases import repository as cases
from app.cases.schemas import ClinicalVariables
from app.database.base import now
from app.database.session import Database
from app.errors import ServiceError, clinical_sentence
from app.inference.models import Models
from app.inference.stages import AnalysisResult, SlideSource, Work, run_stages
from app.settings import Settings
from app.slides.store import discard
from app.workflow.errors import AnalysisAbandoned
from app.workflow.ingestion import ingest
from app.workflow.queue import CLASS, QUEUE, WORKFLOW
from pipelines import storage
from pipelines.slides.errors import SlideError
from training.errors import TrainingError

log = structlog.get_logger(__name__)

T = TypeVar("T")

MAX_ATTEMPTS: Final = 5
EXPECTED: Final = (SlideError, ServiceError, TrainingError)
"""Errors that say what is wrong: trying again would not help."""
NAMED: Final = (*EXPECTED, storage.StorageError)
"""Errors whose class callers may see. A store that did not answer may answer when tried again."""


@DBOS.dbos_class(CLASS)
class CaseWorkflow(DBOSConfiguredInstance):
    """The workflow, with what its steps need. One instance a process."""

    def __init__(self, settings: Settings, database: Database, models: Models) -> None:
        super().__init__(QUEUE)
        self._settings = settings
        self._database = database
        self._models = models

    @DBOS.workflow(name=WORKFLOW, max_recovery_attempts=100)
    async def run(self, organisation_id: str, analysis_id: str) -> str:
        """Analyse one case; returns its final status.

        The two ids are all that the workflow database learns about a case.
        """
        files = AnalysisFiles(
            root=self._settings.storage_root, organisation=organisation_id, analysis_id=analysis_id
        )
        try:
            if await asyncio.to_thread(self._start, files):
                return Status.DONE.value
            await self._analyse(files)
        except Exception as error:  # noqa: BLE001 - the case boundary: any error is recorded
            await asyncio.to_thread(self._fail, files, error)
            return Status.FAILED.value
        return Status.DONE.value

    async def _analyse(self, files: AnalysisFiles) -> None:
        async def run(step: Step, stage: Callable[[], Awaitable[T]]) -> T:
            return await self._step(files, step, stage)

        work = Work(
            models=self._models,
            files=files,
            in_flight=self._settings.shards_in_flight,
            clinical=lambda: self._clinical(files),
            on_shards=lambda done, total: self._note(files, shards_done=done, shards_total=total),
            on_result=lambda result: self._finish(files, result),
        )
        source = await run(Step.INGEST, lambda: asyncio.to_thread(self._ingest, files))
        await run_stages(work, source, run)

    async def _step(self, files: AnalysisFiles, step: Step, stage: Callable[[], Awaitable[T]]) -> T:
        """Run one step: its result is kept, and it is not run again once that has happened.

        Unexpected errors are tried again for half a minute: a replica that died comes back, and a
        service that is being shut down is gone before the last try, so that its cases stay open for
        the next process.
        """

        async def noted() -> T:
            await asyncio.to_thread(self._note, files, step=step)
            try:
                return await stage()
            except EXPECTED:
                raise
            except Exception:
                log.exception(
                    "step failed",
                    step=step.value,
                    analysis=files.analysis_id,
                    organisation=files.organisation,
                )
                raise

        options = StepOptions(
            name=step.value,
            retries_allowed=True,
            max_attempts=6,
            interval_seconds=1.0,
            backoff_rate=2.0,
            should_retry=_unexpected,
        )
        return await DBOS.run_step_async(options, noted)

    def _ingest(self, files: AnalysisFiles) -> SlideSource:
        slide = ingest(self._settings, self._database, files.organisation, files.analysis_id)
        mpp = self._row(files).mpp
        return SlideSource(uri=slide.uri, slide_id=slide.slide_id, mpp=mpp)

    def _finish(self, files: AnalysisFiles, result: AnalysisResult) -> None:
        document = result.report.model_dump(mode="json")
        self._note(files, status=Status.DONE, step=None, result=document, finished_at=now())
        log.info(
            "analysis done",
            analysis=files.analysis_id,
            organisation=files.organisation,
            slide=result.report.specimen.slide_id,
        )

    def _start(self, files: AnalysisFiles) -> bool:
        """Count the attempt: the one thing that happens each time a process takes the workflow up.

        Returns:
            Whether the analysis is done: the process before this one died between writing the
            result and noting that it had.
        """
        with self._database.session() as session:
            row = session.get_one(Analysis, (files.organisation, files.analysis_id))
            if row.status is Status.DONE:
                return True
            row.attempts += 1
            row.status, row.started_at = Status.RUNNING, row.started_at or now()
            attempts = row.attempts
        log.info(
            "analysis taken up",
            analysis=files.analysis_id,
            organisation=files.organisation,
            attempt=attempts,
        )
        if attempts > MAX_ATTEMPTS:
            raise AnalysisAbandoned(
                f"The analysis was interrupted {attempts - 1} times and given up; "
                "our engineers can find the cause in the log.",
                analysis=files.analysis_id,
            )
        return False

    def _row(self, files: AnalysisFiles) -> Analysis:
        with self._database.session() as session:
            return session.get_one(Analysis, (files.organisation, files.analysis_id))

    def _clinical(self, files: AnalysisFiles) -> ClinicalVariables:
        with self._database.session() as session:
            row = session.get_one(Analysis, (files.organisation, files.analysis_id))
            return cases.clinical_variables(session, files.organisation, row.case_id)

    def _note(self, files: AnalysisFiles, **values: Any) -> None:
        """Write down how far the analysis is.

        Values are set, never added to, so that a repeated step counts once.
        """
        with self._database.session() as session:
            row = session.get_one(Analysis, (files.organisation, files.analysis_id))
            for name, value in values.items():
                setattr(row, name, value)

    def _fail(self, files: AnalysisFiles, error: Exception) -> None:
        if isinstance(error, dbos_error.DBOSMaxStepRetriesExceeded):
            error = error.errors[-1]  # what the last try failed at
        name = type(error).__name__ if isinstance(error, NAMED) else "InternalError"
        log.error(
            "analysis failed",
            analysis=files.analysis_id,
            organisation=files.organisation,
            error=name,
            exc_info=error,
        )
        self._note(
            files,
            status=Status.FAILED,
            error=name,
            error_sentence=clinical_sentence(error),
            finished_at=now(),
        )
        row = self._row(files)
        if row.uploaded:  # an original that could not be de-identified is not kept
            discard(row.source_uri, files.organisation, files.analysis_id)


def _unexpected(error: BaseException) -> bool:
    return not isinstance(error, EXPECTED)
