"""Cases of one organisation."""

from __future__ import annotations

from sqlalchemy.orm import Session

from app.accounts.tables import Organisation
from app.cases.schemas import ClinicalVariables
from app.cases.tables import Case
from app.database.session import insert_if_absent


def add(session: Session, organisation_id: str, case_id: str, variables: ClinicalVariables) -> Case:
    """Add a case; the organisation's row too, the first time it is seen."""
    insert_if_absent(session, Organisation(id=organisation_id))
    values = variables.model_dump() | {"unknown": " ".join(variables.unknown)}
    case = Case(organisation_id=organisation_id, id=case_id, **values)
    session.add(case)
    session.flush()
    return case


def clinical_variables(session: Session, organisation_id: str, case_id: str) -> ClinicalVariables:
    """What was stated about a case."""
    case = session.get_one(Case, (organisation_id, case_id))
    values = {name: getattr(case, name) for name in ClinicalVariables.model_fields}
    return ClinicalVariables(**values | {"unknown": tuple(case.unknown.split())})
