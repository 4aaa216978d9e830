"""The queue of cases in the workflow database, as web processes see it: they only add to it.

It imports no model: what takes requests in stays small.
"""

from __future__ import annotations

from typing import Final

from dbos import DBOS, DBOSClient

from app.settings import Settings

APPLICATION: Final = "acinus"
QUEUE: Final = "cases"
CLASS: Final = "CaseWorkflow"
WORKFLOW: Final = "analyse_case"
VERSION: Final = "3"
"""Of the sequence of steps and of what they hand on: change it with them. A workflow only ever
resumes under the version that it started with."""


class DurableQueue:
    """The queue in the workflow database (`app.context.CaseQueue`)."""

    def __init__(self, settings: Settings) -> None:
        DBOS.migrate(settings.workflow_database_url)
        self._client = DBOSClient(
            system_database_url=settings.workflow_database_url, application_name=APPLICATION
        )

    def enqueue(self, organisation_id: str, analysis_id: str) -> None:
        """Put an analysis on the queue; doing it again changes nothing."""
        self._client.enqueue(
            {
                "workflow_name": WORKFLOW,
                "queue_name": QUEUE,
                "class_name": CLASS,
                "instance_name": QUEUE,
                "workflow_id": analysis_id,
                "app_version": VERSION,
            },
            organisation_id,
            analysis_id,
        )

    def close(self) -> None:
        """Give connections back."""
        self._client.destroy()


def open_queue(settings: Settings) -> DurableQueue:
    """The queue of the settings' workflow database."""
    return DurableQueue(settings)
