"""What a model set's risk model says of clinical variables alone. NumPy: no torch and no Ray."""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import version

from app.cases.schemas import ClinicalVariables
from app.errors import InvalidRequest
from app.reports import schemas
from app.reports.risk import risk_part
from pipelines import storage
from training.cards import load_card
from training.registry.history import served_folder
from training.risk.risk_model import KIND, RiskModel, load_risk_model

RISK_MODEL = "risk_model"
"""Folder of a model set; `training.model_set` names it too, and imports torch."""


def assess(models: str, clinical: ClinicalVariables) -> schemas.RiskReport:
    """The risk of one patient.

    Args:
        models: URI of a registry or a model set, of which the risk model is enough.
        clinical: of the patient; what is not known, and the image, is averaged over.

    Raises:
        InvalidRequest: nothing is known of the patient.
        TrainingError: there is no risk model, or it can't be used.
    """
    if not clinical.stated:
        raise InvalidRequest("Give at least one clinical variable; nothing is known of this man.")
    model = current_risk_model(models)
    covariates = clinical.covariates()
    return schemas.RiskReport(
        simulated_outcomes=bool(model.card["simulated_outcomes"]),
        clinical=clinical,
        risk=risk_part(model.predict(None, covariates), covariates, "pathologist"),
        risk_model=schemas.ModelFacts(
            name=str(model.card.get("name", "risk model")),
            hash=model.hash,
            version=str(model.card.get("versions", {}).get("acinus", "")),
        ),
        software=f"acinus {version('acinus')}",
    )


def current_risk_model(models: str) -> RiskModel:
    """The risk model that is served now: read again only where its card names another one."""
    uri = storage.join(served_folder(storage.as_uri(models).rstrip("/")), RISK_MODEL)
    return _loaded(uri, str(load_card(uri, KIND).get("hash")))


@lru_cache(maxsize=2)
def _loaded(uri: str, _digest: str) -> RiskModel:
    return load_risk_model(uri)
