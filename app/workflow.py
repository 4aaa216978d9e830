"""The durable case workflow: ingest -> index -> embed -> predict -> report. Its steps survive the death of any process.

Web processes only put analyses on the queue (`app.queue`). ONE executor process, with a fixed executor id, works it
(`CaseExecutor`): two executors that share an id would both recover the same workflows. DBOS records each finished step in
its database; after a crash the next process of that id goes on behind the last one recorded. A step may therefore run twice,
and every step is idempotent: objects have addresses made of their content, rows have keys, progress is set and never added to.

This module knows the order of the steps and where results are written down. What a step does is in `app.inference.analyse`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import structlog
from dbos import DBOS, DBOSConfig, DBOSConfiguredInstance, StepOptions

from app.analyses import repository as analyses
from app.analyses.status import Status, Step
from app.cases import repository as cases
from app.cases.schemas import ClinicalVariables
from app.database.migrate import upgrade_to_head
from app.database.models import Analysis, now
from app.database.session import Database
from app.errors import AnalysisAbandoned, ServiceError, clinical_sentence
from app.inference import analyse
from app.inference.analyse import IndexedSlide
from app.inference.models import Models
from app.inference.place import Place
from app.queue import APPLICATION, CLASS, QUEUE, VERSION, WORKFLOW, CaseQueue
from app.settings import Settings
from app.slides.ingest import IngestedSlide, ingest
from pipelines import storage
from pipelines.slides.errors import SlideError
from training.errors import TrainingError

log = structlog.get_logger(__name__)

T = TypeVar("T")

MOST_ATTEMPTS: Final = 5
EXPECTED: Final = (SlideError, ServiceError, TrainingError)
"""Errors that say what is wrong: trying again would not help."""


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
        """Analyse one case; returns its final status. The two ids are all that the workflow database learns about a case."""
        place = Place(
            root=self._settings.storage_root, organisation=organisation_id, analysis_id=analysis_id
        )
        try:
            if await asyncio.to_thread(self._begin, place):
                return Status.DONE.value
            slide = await self._step(Step.INGEST, place, self._ingest)
            indexed = await self._step(Step.INDEX, place, self._index, slide)
            await self._step(Step.EMBED, place, self._embed, indexed)
            await self._step(Step.PREDICT, place, self._predict, indexed)
            await self._step(Step.REPORT, place, self._report, indexed)
        except Exception as error:  # noqa: BLE001 - the case boundary: whatever went wrong is recorded and told
            await asyncio.to_thread(self._fail, place, error)
            return Status.FAILED.value
        return Status.DONE.value

    async def _step(
        self, step: Step, place: Place, work: Callable[..., Awaitable[T]], *args: Any
    ) -> T:
        """Run one step: its result is kept, and it is not run again once that has happened.

        Unexpected errors are tried again for half a minute: a replica that died comes back, and a service that is being shut down
        is gone before the last try, so that its cases stay open for the next process.
        """

        async def noted() -> T:
            await asyncio.to_thread(self._note, place, step=step)
            try:
                return await work(place, *args)
            except EXPECTED:
                raise
            except Exception:
                log.exception(
                    "step failed",
                    step=step.value,
                    analysis=place.analysis_id,
                    organisation=place.organisation,
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

    async def _ingest(self, place: Place) -> IngestedSlide:
        return await asyncio.to_thread(
            ingest, self._settings, self._database, place.organisation, place.analysis_id
        )

    async def _index(self, place: Place, slide: IngestedSlide) -> IndexedSlide:
        facts = await self._models.facts()
        mpp = (await asyncio.to_thread(self._row, place)).mpp
        indexed = await asyncio.to_thread(
            analyse.index, slide.uri, place, facts.spec, slide_id=slide.slide_id, mpp=mpp
        )
        await asyncio.to_thread(self._note, place, shards_total=indexed.n_shards)
        return indexed

    async def _embed(self, place: Place, indexed: IndexedSlide) -> None:
        await analyse.embed(
            self._models,
            place,
            indexed,
            in_flight=self._settings.shards_in_flight,
            on_done=lambda done: self._note(place, shards_done=done),
        )

    async def _predict(self, place: Place, indexed: IndexedSlide) -> None:
        clinical = await asyncio.to_thread(self._clinical, place)
        await analyse.predict(self._models, place, indexed, clinical)

    async def _report(self, place: Place, indexed: IndexedSlide) -> None:
        result = await asyncio.to_thread(analyse.render, place, indexed)
        document = result.report.model_dump(mode="json")
        await asyncio.to_thread(
            self._note, place, status=Status.DONE, step=None, result=document, finished_at=now()
        )
        log.info(
            "analysis done",
            analysis=place.analysis_id,
            organisation=place.organisation,
            slide=indexed.slide_id,
        )

    def _begin(self, place: Place) -> bool:
        """Count the attempt: the one thing that happens each time a process takes the workflow up.

        Returns:
            Whether the analysis is done: the process before this one died between writing the result and noting that it had.
        """
        with self._database.session() as session:
            row = session.get_one(Analysis, (place.organisation, place.analysis_id))
            if row.status is Status.DONE:
                return True
            row.attempts += 1
            row.status, row.started_at = Status.RUNNING, row.started_at or now()
            attempts = row.attempts
        log.info(
            "analysis taken up",
            analysis=place.analysis_id,
            organisation=place.organisation,
            attempt=attempts,
        )
        if attempts > MOST_ATTEMPTS:
            raise AnalysisAbandoned(
                f"The analysis was interrupted {attempts - 1} times and given up; our engineers can find the cause in the log.",
                analysis=place.analysis_id,
            )
        return False

    def _row(self, place: Place) -> Analysis:
        with self._database.session() as session:
            return session.get_one(Analysis, (place.organisation, place.analysis_id))

    def _clinical(self, place: Place) -> ClinicalVariables:
        with self._database.session() as session:
            row = session.get_one(Analysis, (place.organisation, place.analysis_id))
            return cases.clinical_variables(session, place.organisation, row.case_id)

    def _note(self, place: Place, **values: Any) -> None:
        """Write down how far the analysis is: values are set, never added to, so that a repeated step counts once."""
        with self._database.session() as session:
            row = session.get_one(Analysis, (place.organisation, place.analysis_id))
            for name, value in values.items():
                setattr(row, name, value)

    def _fail(self, place: Place, error: Exception) -> None:
        name = type(error).__name__ if isinstance(error, EXPECTED) else "InternalError"
        log.error(
            "analysis failed",
            analysis=place.analysis_id,
            organisation=place.organisation,
            error=name,
            exc_info=error,
        )
        row = self._row(place)
        if row.uploaded:  # an original that could not be de-identified is not kept
            storage.delete(row.source_uri)
        self._note(
            place,
            status=Status.FAILED,
            error=name,
            error_sentence=clinical_sentence(error),
            finished_at=now(),
        )


def _unexpected(error: BaseException) -> bool:
    return not isinstance(error, EXPECTED)


class CaseExecutor:
    """The one process that works the queue. Start it inside a running event loop, stop it before that loop ends."""

    def __init__(self, settings: Settings, models: Models) -> None:
        self._settings = settings
        self._models = models
        self._database: Database | None = None

    async def start(self) -> None:
        """Take up what an earlier process of the same executor id left, then whatever is queued."""
        settings = self._settings
        await asyncio.to_thread(upgrade_to_head, settings.database_url)
        self._database = Database(settings.database_url)
        DBOS(
            config=DBOSConfig(
                name=APPLICATION,
                system_database_url=settings.workflow_database_url,
                executor_id=settings.executor_id,
                application_version=VERSION,
                log_level="WARNING",
            )
        )
        CaseWorkflow(settings, self._database, self._models)
        await asyncio.to_thread(DBOS.launch)
        await DBOS.register_queue_async(
            QUEUE, worker_concurrency=settings.concurrent_cases, polling_interval_sec=0.25
        )
        await asyncio.to_thread(self._queue_waiting)
        log.info("executor started", executor=settings.executor_id)

    def _queue_waiting(self) -> None:
        """Queue what a web process wrote down but died before it could queue. Queueing again changes nothing."""
        assert self._database is not None
        with self._database.session() as session:
            waiting = analyses.queued(session)
        queue = CaseQueue(self._settings)
        try:
            for organisation_id, analysis_id in waiting:
                queue.enqueue(organisation_id, analysis_id)
        finally:
            queue.close()

    async def stop(self) -> None:
        """Stop working. What is under way stays open and is taken up by the next process of this executor id."""
        await asyncio.to_thread(DBOS.destroy, destroy_registry=False)
        if self._database is not None:
            self._database.close()
