"""What the guideline offers a man, and what the risk model's numbers add to it.

    options     of his NCCN group, each with the trials behind it
    short ADT   the benefit that the model expects of it, read in intermediate risk only
    withheld    why the numbers choose nothing, wherever the evidence does not reach that far

The numbers choose in two places only. Active surveillance is supported where the whole 95 %
interval of the 10-year risk of distant metastasis is below SURVEILLANCE_LIMIT. Short-term ADT is
favoured where the whole interval of its absolute benefit is above zero, in a cohort that assigned
it at random. Everything else is the guideline's, and a clinician's: life expectancy, side effects
and wishes are not asked for here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from training.risk.covariates import Covariates
from training.risk.evidence import (
    GUIDELINE,
    SHORT_ADT,
    SURVEILLANCE,
    TRIALS,
    Treatment,
    Trial,
)
from training.risk.nccn import EDITION, NccnName, possible_groups
from training.risk.prediction import CAUSE_WORDS, METASTASIS, Interval, RiskPrediction

SURVEILLANCE_LIMIT: Final = 0.10
"""10-year risk of distant metastasis. In ProtecT 9.4 % of the men under active monitoring had
metastases after 15 years: a man who may be above 10 % after 10 years is not like them."""

SHORT_TERM_ADT: Final = "short-term ADT"
"""The treatment whose benefit is read, as the risk model names it."""

INTERMEDIATE: Final = ("favourable intermediate", "unfavourable intermediate")

Verdict = Literal["supported", "not supported", "not shown", "guideline only"]
"""What the numbers say of an option: for it, against it, not enough, or nothing."""


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option of the guideline.

    Attributes:
        treatment: what is done.
        guideline: for whom the edition names it, in our words.
        verdict: what the man's numbers say of it.
        reason: the numbers and limits that led to the verdict; empty where none did.
        trials: what it rests on.
    """

    treatment: Treatment
    guideline: str
    verdict: Verdict
    reason: str
    trials: tuple[Trial, ...]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What the numbers say, and why in one sentence."""

    verdict: Verdict
    reason: str


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """What follows for one man.

    Attributes:
        groups: NCCN groups that he may belong to: one, several where something that would decide is
            missing, none where they are not known.
        edition: of the guideline.
        options: of these groups, in the guideline's order.
        advice: the options that his numbers support, in one sentence; None where they support none
            or may not be read.
        withheld: why his numbers choose nothing, one sentence each; empty where they may be read.
        short_term_adt: what the numbers say of short-term ADT with radiotherapy.
    """

    groups: tuple[NccnName, ...]
    edition: str
    options: tuple[Option, ...]
    advice: str | None
    withheld: tuple[str, ...]
    short_term_adt: Reading


def recommend(
    prediction: RiskPrediction, covariates: Covariates, *, doubts: Sequence[str] = ()
) -> Recommendation:
    """The options of a man's NCCN group, and which of them his own numbers support.

    Args:
        prediction: of the risk model.
        covariates: that it was made from.
        doubts: why his slide may not be relied on, one sentence each.
    """
    groups = _groups(covariates)
    withheld = (*doubts, *_unreadable(prediction), *_unclear(prediction, groups))
    short_adt = _short_adt(prediction, groups, withheld)
    readings: dict[Treatment, Reading] = {}
    if not withheld:
        readings = {SHORT_ADT: short_adt, SURVEILLANCE: _surveillance(prediction)}
    options = tuple(_option(treatment, groups, readings) for treatment in _listed(groups))
    supported = [one.treatment for one in options if one.verdict == "supported"]
    return Recommendation(
        groups=groups,
        edition=EDITION,
        options=options,
        advice=f"His numbers support {' and '.join(supported)}." if supported else None,
        withheld=withheld,
        short_term_adt=short_adt,
    )


def _groups(covariates: Covariates) -> tuple[NccnName, ...]:
    gleason = covariates.gleason
    if gleason is None or covariates.psa is None or covariates.t_stage is None:
        return ()
    return possible_groups(
        t_stage=covariates.t_stage,
        psa=covariates.psa,
        grade_group=gleason.grade_group,
        primary=gleason.primary,
        positive=covariates.positive_share,
    )


def _listed(groups: tuple[NccnName, ...]) -> list[Treatment]:
    """The options of all groups, each once."""
    return list(dict.fromkeys(treatment for group in groups for treatment in GUIDELINE[group]))


def _option(
    treatment: Treatment, groups: tuple[NccnName, ...], readings: dict[Treatment, Reading]
) -> Option:
    places = {
        group: GUIDELINE[group][treatment] for group in groups if treatment in GUIDELINE[group]
    }
    reading = readings.get(treatment, Reading(verdict="guideline only", reason=""))
    return Option(
        treatment=treatment,
        guideline="; ".join(
            f"in {group} risk {text}" if len(groups) > 1 else text for group, text in places.items()
        ),
        verdict=reading.verdict,
        reason=reading.reason,
        trials=TRIALS[treatment],
    )


def _surveillance(prediction: RiskPrediction) -> Reading:
    """By the 10-year risk of distant metastasis."""
    risk, limit = prediction.ten_year_of(METASTASIS), SURVEILLANCE_LIMIT
    if risk is None:
        reason = "The model's cohort recorded no distant metastasis, which its limit is of."
        return Reading(verdict="guideline only", reason=reason)
    verdict: Verdict
    if risk.upper < limit:
        verdict, where = "supported", "below"
    elif risk.lower > limit:
        verdict, where = "not supported", "above"
    else:
        verdict, where = "not shown", "the interval does not exclude"
    reason = f"10-year risk of distant metastasis {_percent(risk)}: {where} {limit * 100:g} %."
    return Reading(verdict=verdict, reason=reason)


def _short_adt(
    prediction: RiskPrediction, groups: tuple[NccnName, ...], withheld: tuple[str, ...]
) -> Reading:
    """By the absolute benefit; read in intermediate risk only."""
    benefit = prediction.benefit
    if benefit is None or benefit.treatment.casefold() != SHORT_TERM_ADT.casefold():
        reason = "The model's cohort did not compare men with and without it."
        if benefit is not None:
            reason = f"The model's cohort compared another treatment: {benefit.treatment}."
        return Reading(verdict="guideline only", reason=reason)
    if not all(group in INTERMEDIATE for group in groups):
        reason = "Its benefit is read in intermediate risk only."
        return Reading(verdict="guideline only", reason=reason)
    if withheld:
        return Reading(verdict="guideline only", reason="The numbers may not be read.")
    numbers = (
        f"10-year risk of {CAUSE_WORDS[prediction.endpoint]} "
        f"{_percent(benefit.without_treatment)} without it, {_percent(benefit.with_treatment)} "
        f"with it: absolute benefit {_points(benefit.reduction)}, hazard ratio "
        f"{_ratio(benefit.hazard_ratio)}; "
    )
    if not benefit.randomised:
        reason = "the cohort's treatment was not assigned at random, so this is not its effect."
        return Reading(verdict="not shown", reason=numbers + reason)
    if benefit.reduction.lower <= 0:
        reason = "the interval of the benefit reaches zero."
        return Reading(verdict="not shown", reason=numbers + reason)
    reason = "the whole interval of the benefit is above zero."
    if groups == ("favourable intermediate",):
        reason += " The guideline does not list it in favourable intermediate risk."
    return Reading(verdict="supported", reason=numbers + reason)


def _unreadable(prediction: RiskPrediction) -> list[str]:
    """Why the numbers say nothing of any patient, or nothing of this one."""
    reasons = []
    if prediction.simulated_outcomes:
        reasons.append(
            "The model was fitted on simulated outcomes: its numbers say nothing about patients."
        )
    if prediction.outside_training_range:
        names = ", ".join(prediction.outside_training_range)
        reasons.append(f"The model was fitted on no patient like this one ({names}).")
    return reasons


def _unclear(prediction: RiskPrediction, groups: tuple[NccnName, ...]) -> list[str]:
    """Why the group gives the numbers nothing to choose between."""
    if prediction.nccn is None:
        return ["The NCCN group is not known: PSA, T stage and Gleason score are needed for it."]
    if len(groups) > 1:
        decisive = " and ".join(prediction.nccn.missing)
        return [f"The NCCN group may be {' or '.join(groups)}: {decisive} would decide."]
    if prediction.nccn.tier == "high":
        return [
            f"In {prediction.nccn.name} risk the options are the guideline's: no trial shows that "
            "a predicted risk chooses between them."
        ]
    return []


def _percent(interval: Interval) -> str:
    """As "4.1 % (2.0 to 8.1)"."""
    return (
        f"{interval.estimate * 100:.1f} % "
        f"({interval.lower * 100:.1f} to {interval.upper * 100:.1f})"
    )


def _points(interval: Interval) -> str:
    """As "4.0 percentage points (1.0 to 8.0)"."""
    return _percent(interval).replace(" %", " percentage points", 1)


def _ratio(interval: Interval) -> str:
    return f"{interval.estimate:.2f} ({interval.lower:.2f} to {interval.upper:.2f})"
