"""The one process that works the queue of cases."""

from __future__ import annotations

import asyncio

import structlog
from dbos import DBOS, DBOSConfig

from app.analyses import repository as analyses
from app.database.migrate import upgrade_to_head
from app.database.session import Database
from app.inference.models import Models
from app.settings import Settings
from app.workflow.case_workflow import CaseWorkflow
from app.workflow.ingestion import remove_abandoned
from app.workflow.queue import APPLICATION, QUEUE, VERSION, open_queue
from pipelines import storage

log = structlog.get_logger(__name__)


class CaseExecutor:
    """The one process that works the queue.

    Start it inside a running event loop, and stop it before that loop ends.
    """

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
        await asyncio.to_thread(self._remove_abandoned)
        log.info("executor started", executor=settings.executor_id)

    def _queue_waiting(self) -> None:
        """Queue what a web process wrote down but could not queue before it died.

        Queueing again changes nothing.
        """
        assert self._database is not None
        with self._database.session() as session:
            waiting = analyses.queued(session)
        queue = open_queue(self._settings)
        try:
            for organisation_id, analysis_id in waiting:
                queue.enqueue(organisation_id, analysis_id)
        finally:
            queue.close()

    def _remove_abandoned(self) -> None:
        assert self._database is not None
        try:
            remove_abandoned(self._settings, self._database)
        except storage.StorageError as error:  # cases that need the store say so themselves
            log.error("abandoned uploads not removed", error=type(error).__name__)

    async def stop(self) -> None:
        """Stop working. The next process of this executor id takes up what stays open."""
        await asyncio.to_thread(DBOS.destroy, destroy_registry=False)
        if self._database is not None:
            self._database.close()
