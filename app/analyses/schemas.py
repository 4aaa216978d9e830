"""What callers send and get about analyses."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field

from app.analyses.status import Status, Step
from app.cases.schemas import ClinicalVariables
from app.database.models import Analysis
from app.reports.schemas import Report


class AnalysisRequest(ClinicalVariables):
    """The text fields of the form; the slide itself is the file in the field `slide`, or `slide_uri`."""

    slide_uri: Annotated[
        str | None, Field(max_length=2048, description="A slide within the organisation's store.")
    ] = None
    mpp: Annotated[
        float | None,
        Field(
            ge=0.05,
            le=20.0,
            description="Micrometres per pixel, for a slide whose metadata carry none.",
        ),
    ] = None

    def variables(self) -> ClinicalVariables:
        """The clinical variables alone."""
        return ClinicalVariables(
            **{name: getattr(self, name) for name in ClinicalVariables.model_fields}
        )


FORM_SCHEMA: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    **AnalysisRequest.model_json_schema(),
                    "title": "AnalysisForm",
                    "properties": {
                        "slide": {
                            "type": "string",
                            "format": "binary",
                            "description": "The slide, as one file.",
                        },
                        **AnalysisRequest.model_json_schema()["properties"],
                    },
                }
            }
        },
    }
}
"""The form for the OpenAPI schema: the endpoint reads it as a stream, so FastAPI cannot derive it."""


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
