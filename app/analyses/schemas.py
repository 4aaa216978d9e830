"""What callers send and get about analyses."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from app.analyses.status import Status, Step
from app.analyses.tables import Analysis
from app.cases.schemas import ClinicalVariables, PlainNumber
from app.reports.schemas import Report

_RFC_3339 = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d(?:\.\d+)?)([Zz]|[+-]\d\d:\d\d)", re.ASCII
)


def point_in_time(value: object) -> datetime:
    """A time with its zone as RFC 3339 writes it, in UTC.

    A time at the edge of the calendar, whose UTC would be before the year 1 or after 9999, becomes
    the first or the last time there is.

    Raises:
        ValueError: anything else, such as a time without zone: no zone is guessed.
    """
    found = _RFC_3339.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise ValueError(f"{value!r} is not a time with its zone, such as 2026-11-25T10:00:00Z")
    date, time, zone = found.groups()
    try:
        moment = datetime.fromisoformat(f"{date}T{time}{zone.upper()}")
    except ValueError:
        raise ValueError(f"{value!r} is not a time that exists") from None
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        edge = datetime.min if moment.year == 1 else datetime.max
        return edge.replace(tzinfo=UTC)


PointInTime = Annotated[datetime, BeforeValidator(point_in_time)]


class AnalysisRequest(ClinicalVariables):
    """The text fields of the form. The slide is the file in the field `slide`, or `slide_uri`."""

    slide_uri: Annotated[
        Annotated[str, Field(min_length=1, max_length=2048)] | None,
        Field(description="A slide within the organisation's store."),
    ] = None
    mpp: Annotated[
        Annotated[float, Field(ge=0.05, le=20.0), PlainNumber] | None,
        Field(description="Micrometres per pixel, for a slide whose metadata have none."),
    ] = None

    def variables(self) -> ClinicalVariables:
        """The clinical variables alone."""
        return ClinicalVariables(
            **{name: getattr(self, name) for name in ClinicalVariables.model_fields}
        )


def _form_schema() -> dict[str, Any]:
    """JSON schema of the form. A field that is left out is absent: a form has no null."""
    file = {
        "type": "string",
        "format": "binary",
        "minLength": 1,
        "description": "The slide, as one file.",
    }
    properties: dict[str, Any] = {"slide": file}
    described = AnalysisRequest.model_json_schema()["properties"]
    del described["unknown"]  # a form says it in the variable's own field
    for name, field in described.items():
        kinds = [kind for kind in field["anyOf"] if kind != {"type": "null"}]
        value = kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
        properties[name] = {**value, "description": field["description"]}
    together = (
        ["gleason_primary", "gleason_secondary"],
        ["positive_cores", "total_cores"],
    )
    return {
        "title": "AnalysisForm",
        "type": "object",
        "properties": properties,
        "oneOf": [{"required": ["slide"]}, {"required": ["slide_uri"]}],
        "dependentRequired": {
            name: [other for other in group if other != name]
            for group in together
            for name in group
        },
        "additionalProperties": False,
    }


_FILE_NAME = {
    "description": "The file's name counts for its suffix only, which says the kind of slide.",
    "schema": {"type": "string"},
    "example": 'form-data; name="slide"; filename="slide.svs"',
}
FORM_SCHEMA: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": _form_schema(),
                "encoding": {"slide": {"headers": {"Content-Disposition": _FILE_NAME}}},
            }
        },
    }
}
"""The form for OpenAPI: the endpoint reads it as a stream, so FastAPI cannot derive it."""


class Links(BaseModel):
    """Where the parts of an analysis are found; the last three answer 409 until it is done."""

    analysis: str
    report_json: str
    heatmap: str
    report_pdf: str

    @classmethod
    def of(cls, analysis_id: str) -> Self:
        """Paths below the service's address."""
        base = f"/api/v1/analyses/{analysis_id}"
        return cls(
            analysis=base,
            report_json=f"{base}/report.json",
            heatmap=f"{base}/heatmap.png",
            report_pdf=f"{base}/report.pdf",
        )


class Accepted(BaseModel):
    """The answer to a new analysis."""

    analysis_id: str
    case_id: str
    links: Links


class Progress(BaseModel):
    """How far the embedding of patches, by far the longest step, has come."""

    shards_done: int
    shards_total: int | None


class AnalysisSummary(BaseModel):
    """One line of the list."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    case_id: str
    slide_id: str | None
    status: Status
    step: Step | None
    error: str | None
    error_sentence: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


class AnalysisState(AnalysisSummary):
    """Everything about one analysis."""

    progress: Progress
    result: Report | None
    links: Links

    @classmethod
    def of(cls, row: Analysis) -> Self:
        """From its row."""
        return cls(
            **AnalysisSummary.model_validate(row).model_dump(),
            progress=Progress(shards_done=row.shards_done, shards_total=row.shards_total),
            result=Report.model_validate(row.result) if row.result is not None else None,
            links=Links.of(row.id),
        )


class AnalysisList(BaseModel):
    """A page of analyses, newest first."""

    items: list[AnalysisSummary]
    next_before: datetime | None
    """Give as `before` for the next page; None at the end."""
