"""The risk of one patient as a part of a report: what the model predicts, and what follows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from app.reports import schemas
from training.risk.covariates import Covariates
from training.risk.prediction import (
    CAUSE_WORDS,
    Interval,
    RiskCurve,
    RiskPrediction,
    TreatmentBenefit,
)
from training.risk.recommendation import Recommendation, recommend

GleasonFrom = Literal["pathologist", "image"]


def risk_part(
    prediction: RiskPrediction,
    covariates: Covariates,
    gleason_from: GleasonFrom,
    *,
    doubts: Sequence[str] = (),
) -> schemas.Risk:
    """What the model says of a patient, and the recommendation that follows.

    Args:
        prediction: of the risk model.
        covariates: that it was made from.
        gleason_from: whose Gleason patterns those are, if they have any.
        doubts: why the slide may not be relied on, one sentence each.
    """
    nccn = prediction.nccn
    return schemas.Risk.model_validate(
        {
            "endpoint": CAUSE_WORDS[prediction.endpoint],
            "five_year": estimate(prediction.five_year),
            "ten_year": estimate(prediction.ten_year),
            "curve": _curve(prediction.curve),
            "curves": {
                CAUSE_WORDS[cause]: _curve(curve) for cause, curve in prediction.curves.items()
            },
            "score": prediction.score,
            "nccn_group": nccn.name if nccn else None,
            "nccn_reasons": list(nccn.reasons) if nccn else [],
            "nccn_missing": list(nccn.missing) if nccn else [],
            "nccn_edition": nccn.edition if nccn else "",
            "percentile": prediction.percentile,
            "contributions": prediction.contributions,
            "no_effect": prediction.no_effect,
            "missing": list(prediction.missing),
            "outside_training_range": prediction.outside_training_range,
            "gleason_from": None if covariates.gleason is None else gleason_from,
            "benefit": _benefit(prediction.benefit),
            "recommendation": _recommendation(recommend(prediction, covariates, doubts=doubts)),
        }
    )


def share(value: float) -> float:
    """Within [0, 1] also where float32 sums end at 1.0000001."""
    return min(max(float(value), 0.0), 1.0)


def estimate(interval: Interval) -> schemas.Estimate:
    """A risk with its interval."""
    return schemas.Estimate(
        estimate=share(interval.estimate),
        lower=share(interval.lower),
        upper=share(interval.upper),
    )


def _difference(interval: Interval) -> schemas.Difference:
    return schemas.Difference(
        estimate=interval.estimate, lower=interval.lower, upper=interval.upper
    )


def _curve(curve: RiskCurve) -> schemas.RiskCurve:
    return schemas.RiskCurve(
        years=curve.years.tolist(),
        estimate=[share(value) for value in curve.estimate],
        lower=[share(value) for value in curve.lower],
        upper=[share(value) for value in curve.upper],
    )


def _benefit(benefit: TreatmentBenefit | None) -> schemas.Benefit | None:
    if benefit is None:
        return None
    return schemas.Benefit(
        treatment=benefit.treatment,
        hazard_ratio=_difference(benefit.hazard_ratio),
        without_treatment=estimate(benefit.without_treatment),
        with_treatment=estimate(benefit.with_treatment),
        reduction=_difference(benefit.reduction),
        randomised=benefit.randomised,
    )


def _recommendation(found: Recommendation) -> schemas.Recommendation:
    return schemas.Recommendation(
        groups=list(found.groups),
        edition=found.edition,
        options=[
            schemas.Option(
                treatment=option.treatment,
                guideline=option.guideline,
                verdict=option.verdict,
                reason=option.reason,
                trials=[str(trial) for trial in option.trials],
            )
            for option in found.options
        ],
        advice=found.advice,
        withheld=list(found.withheld),
        short_term_adt=schemas.Verdict(
            verdict=found.short_term_adt.verdict, reason=found.short_term_adt.reason
        ),
    )
