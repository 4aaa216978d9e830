"""HTTP of risks without a slide."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import ConfigDict

from app import errors
from app.accounts.principal import CurrentPrincipal
from app.cases.schemas import ClinicalVariables
from app.context import AppContext
from app.reports.schemas import RiskReport
from app.risks.assess import assess

router = APIRouter(prefix="/api/v1/risks", tags=["risks"])


class RiskRequest(ClinicalVariables):
    """Clinical variables as JSON: numbers are numbers, not text."""

    model_config = ConfigDict(strict=True)


@router.post("", responses=errors.documented(422))
def create_risk(
    request: RiskRequest, context: AppContext, _principal: CurrentPrincipal
) -> RiskReport:
    """Risk, NCCN group and recommendation from clinical variables alone.

    Nothing that is sent is stored, and the answer is in no list: it is computed and sent back.
    Research use only; not a diagnosis.
    """
    return assess(context.settings.models, request)
