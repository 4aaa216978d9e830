"""Where an analysis stands: its status, and the step that its workflow is at."""

from __future__ import annotations

import enum


class Status(enum.StrEnum):
    """Where an analysis stands."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


class Step(enum.StrEnum):
    """What the workflow is doing, in this order."""

    INGEST = "ingest"
    INDEX = "index"
    EMBED = "embed"
    PREDICT = "predict"
    REPORT = "report"
