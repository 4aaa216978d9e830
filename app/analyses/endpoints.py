"""HTTP of analyses: send a slide, look how far it is."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool

from app import errors
from app.accounts.principal import CurrentPrincipal
from app.analyses import repository, service
from app.analyses.schemas import (
    FORM_SCHEMA,
    Accepted,
    AnalysisList,
    AnalysisState,
    AnalysisSummary,
    PointInTime,
)
from app.context import AppContext, UnitOfWork
from app.uploads.reception import receive

router = APIRouter(prefix="/api/v1/analyses", tags=["analyses"])


@router.post(
    "",
    status_code=202,
    openapi_extra=FORM_SCHEMA,
    responses=errors.documented(403, 413, 415),
)
async def create_analysis(
    request: Request, context: AppContext, principal: CurrentPrincipal
) -> Accepted:
    """Send a slide and clinical variables; the answer says where to look for the result."""
    settings = context.settings
    async with receive(request, settings.uploads, settings.max_upload_bytes) as form:
        return await run_in_threadpool(
            service.submit, settings, context.database, context.queue, principal, form
        )


@router.get("")
def list_analyses(
    session: UnitOfWork,
    principal: CurrentPrincipal,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    before: Annotated[
        PointInTime | None,
        Query(description="Only those that arrived before this time; it has a zone, such as Z."),
    ] = None,
) -> AnalysisList:
    """The organisation's analyses, newest first.

    A page may hold more than `limit` where that many arrived in the same microsecond.
    """
    rows, next_before = repository.page(
        session, principal.organisation_id, limit=limit, before=before
    )
    items = [AnalysisSummary.model_validate(row) for row in rows]
    return AnalysisList(items=items, next_before=next_before)


@router.get("/{analysis_id}", responses=errors.documented(404))
def get_analysis(
    analysis_id: str, session: UnitOfWork, principal: CurrentPrincipal
) -> AnalysisState:
    """Status, current step, progress, and the result or one plain sentence why there is none."""
    return AnalysisState.of(repository.get(session, principal.organisation_id, analysis_id))
