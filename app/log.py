"""Logs for engineers: one JSON object a line, no patient data.

Events carry identifiers (`analysis`, `organisation`, `slide` = SHA-256) and never clinical
variables or file names, which can hold a patient's name. `configure()` is called once by each
process's entry point.
"""

from __future__ import annotations

import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

PATIENT_KEYS = frozenset(
    {
        "age",
        "psa",
        "t_stage",
        "gleason_primary",
        "gleason_secondary",
        "positive_cores",
        "total_cores",
        "covariates",
        "file_name",
        "filename",
    }
)


def drop_patient_data(
    _logger: Any, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Remove values that must not be in a log, whoever put them there."""
    for key in PATIENT_KEYS & event.keys():
        event[key] = "[withheld]"
    return event


def configure() -> None:
    """JSON lines on standard error, with tracebacks as text."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            drop_patient_data,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )
