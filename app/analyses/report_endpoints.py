"""HTTP of reports: the three forms in which a finished analysis is fetched."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import Response
from sqlalchemy.orm import Session

from app import errors
from app.accounts.principal import CurrentPrincipal, Principal
from app.analyses import repository as analyses
from app.analyses.errors import NotReady
from app.analyses.files import HEATMAP, PDF, REPORT, AnalysisFiles
from app.analyses.status import Status
from app.context import AppContext, Context, UnitOfWork
from pipelines import storage

router = APIRouter(
    prefix="/api/v1/analyses/{analysis_id}",
    tags=["reports"],
    responses=errors.documented(404, 409),
)


def _content(
    context: Context, session: Session, principal: Principal, analysis_id: str, name: str
) -> bytes:
    analysis = analyses.get(session, principal.organisation_id, analysis_id)
    if analysis.status is Status.FAILED:
        raise NotReady(
            f"The analysis failed, so there is no report: {analysis.error_sentence}",
            analysis=analysis_id,
        )
    if analysis.status is not Status.DONE or analysis.slide_id is None:
        raise NotReady(
            "The analysis is not done yet; look again in a moment.", analysis=analysis_id
        )
    files = AnalysisFiles(
        root=context.settings.storage_root,
        organisation=principal.organisation_id,
        analysis_id=analysis_id,
    )
    return storage.read_bytes(files.uri(analysis.slide_id, name))


@router.get(
    "/report.json", response_class=Response, responses={200: {"content": {"application/json": {}}}}
)
def report_json(
    analysis_id: str, context: AppContext, session: UnitOfWork, principal: CurrentPrincipal
) -> Response:
    """The report as JSON."""
    return Response(
        _content(context, session, principal, analysis_id, REPORT), media_type="application/json"
    )


@router.get(
    "/heatmap.png", response_class=Response, responses={200: {"content": {"image/png": {}}}}
)
def heatmap_png(
    analysis_id: str, context: AppContext, session: UnitOfWork, principal: CurrentPrincipal
) -> Response:
    """Where which pattern was seen, over the slide's thumbnail."""
    return Response(
        _content(context, session, principal, analysis_id, HEATMAP), media_type="image/png"
    )


@router.get(
    "/report.pdf", response_class=Response, responses={200: {"content": {"application/pdf": {}}}}
)
def report_pdf(
    analysis_id: str, context: AppContext, session: UnitOfWork, principal: CurrentPrincipal
) -> Response:
    """The report as PDF/A."""
    headers = {"content-disposition": f'inline; filename="acinus-{analysis_id}.pdf"'}
    return Response(
        _content(context, session, principal, analysis_id, PDF),
        media_type="application/pdf",
        headers=headers,
    )
