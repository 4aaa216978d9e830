"""An executor in a process of its own, which dies where CRASH says.

    python -m tests.support.executor_process SETTINGS CRASH

CRASH is empty, the name of a step (killed as it begins, the step before it being recorded),
`embed:N` (killed when N shards are done) or `done` (killed when the result is written down but the
workflow does not know it yet). Prints one line per step it runs.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import Any

from sqlalchemy import select

from app import log
from app.analyses.files import AnalysisFiles
from app.analyses.status import Status
from app.analyses.tables import Analysis
from app.database.session import Database
from app.inference.models import InProcessModels
from app.settings import Settings
from app.workflow.case_workflow import CaseWorkflow
from app.workflow.executor import CaseExecutor

PATIENCE_S = 240.0


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def install_crash(crash: str) -> None:
    """Replace `CaseWorkflow._note`, which every step calls, by one that dies when asked."""
    wanted, _, shards = crash.partition(":")
    original = CaseWorkflow._note

    def note(own: CaseWorkflow, files: AnalysisFiles, **values: Any) -> None:
        step = values.get("step")
        if step is not None:
            print(f"step {step.value}", flush=True)
            if step.value == wanted and not shards:
                die()
        original(own, files, **values)
        if shards and values.get("shards_done", 0) >= int(shards):
            die()
        if wanted == "done" and values.get("status") is Status.DONE:
            die()

    CaseWorkflow._note = note  # type: ignore[method-assign]


def unfinished(database: Database) -> int:
    with database.session() as session:
        rows = session.scalars(select(Analysis.status)).all()
    return sum(status not in {Status.DONE, Status.FAILED} for status in rows)


async def work(settings: Settings) -> None:
    executor = CaseExecutor(settings, InProcessModels.load(settings.models))
    await executor.start()
    database = Database(settings.database_url)
    async with asyncio.timeout(PATIENCE_S):
        while unfinished(database):
            await asyncio.sleep(0.1)
        await asyncio.sleep(0.5)  # the workflow's own end is recorded just behind the result
    database.close()
    await executor.stop()


if __name__ == "__main__":
    log.configure()
    install_crash(sys.argv[2])
    asyncio.run(work(Settings.model_validate_json(sys.argv[1])))
