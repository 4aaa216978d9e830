"""The report as a table in a terminal. It warns of what the PDF warns of."""

from __future__ import annotations

from typing import Final

from rich.markup import escape
from rich.table import Table

from app.reports.schemas import (
    NOTICE,
    SIMULATED,
    Estimate,
    Grading,
    Likeness,
    Reading,
    Recommendation,
    Report,
    Risk,
    RiskReport,
)

WORDS: Final = {
    "image": "image",
    "age": "age",
    "psa": "PSA",
    "t_stage": "T stage",
    "gleason": "Gleason",
    "positive_cores": "positive cores",
}
"""What a risk is made from, in the words of a reader."""


def clinical_risk_table(report: RiskReport) -> Table:
    """A risk without a slide, with the notice on top."""
    table = _table("Risk from clinical variables", simulated=report.simulated_outcomes)
    for name, value in _risk_rows(report.risk):
        table.add_row(name, value)
    return table


def _table(title: str, *, simulated: bool) -> Table:
    notice = f"{NOTICE}. {SIMULATED}." if simulated else f"{NOTICE}."
    return Table(title=f"{title}\n[red]{notice}[/red]", show_header=False, title_justify="left")


def risk_table(report: Report) -> Table:
    """Patterns, grade and risk, with the notice on top."""
    table = _table(f"Analysis {report.analysis_id}", simulated=report.simulated_outcomes)
    if report.reading is not None:
        table.add_row("Grade to read", _reading(report.reading))
    if report.likeness is not None:
        table.add_row("Like the training slides", _likeness(report.likeness))
    table.add_row("Gleason, grade group", _grade(report.grading))
    table.add_row("Share of area", _shares(report.grading))
    table.add_row("Estimated tumour", _tumour(report.grading))
    table.add_row("Slide model", _slide_model(report))
    if report.risk is None:
        table.add_row("Risk", f"none: {escape(str(report.risk_absent_because))}")
    else:
        for name, value in _risk_rows(report.risk):
            table.add_row(name, value)
    return table


def _reading(reading: Reading) -> str:
    if reading.grade_group is None:
        return f"[red]none[/red]: {escape(reading.reason)}"
    group = f"grade group {reading.grade_group}" if reading.grade_group else "benign"
    return f"{group}: {escape(reading.reason)}"


def _likeness(likeness: Likeness) -> str:
    rate = f"{likeness.false_alarms:.0%} of slides like them are taken for others"
    return f"yes ({rate})" if likeness.inside else f"[red]no[/red]: {likeness.reason} ({rate})"


def _grade(grading: Grading) -> str:
    pattern = f"{grading.primary}+{grading.secondary}" if grading.primary else "no cancer pattern"
    return f"{pattern}, grade group {grading.grade_group}"


def _shares(grading: Grading) -> str:
    shares = {
        "benign": grading.benign,
        "3": grading.gleason_3,
        "4": grading.gleason_4,
        "5": grading.gleason_5,
    }
    return ", ".join(f"{name} {share:.0%}" for name, share in shares.items())


def _tumour(grading: Grading) -> str:
    extent = f"{grading.tumour_extent:.0%} of the tissue"
    if grading.tumour_extent_error is not None:
        extent += f" (error on held-out slides {grading.tumour_extent_error:.0%})"
    if grading.percent_pattern_4 is None:
        return extent
    pattern = f"pattern 4 in {grading.percent_pattern_4:.0f} % of it"
    if grading.percent_pattern_4_error is not None:
        pattern += f" ({grading.percent_pattern_4_error:.0f} %)"
    return f"{extent}, {pattern}"


def _slide_model(report: Report) -> str:
    slide = report.slide_model
    agreement = (
        "agrees with the pattern areas"
        if slide.agrees_with_grading
        else f"[red]differs from the pattern areas[/red] (grade group {report.grading.grade_group})"
    )
    return (
        f"grade group {slide.grade_group}, {agreement}; cancer probability "
        f"{slide.cancer_probability:.0%}"
    )


def _risk_rows(risk: Risk) -> list[tuple[str, str]]:
    rows = [
        (f"5-year risk, {risk.endpoint}", _interval(risk.five_year)),
        (f"10-year risk, {risk.endpoint}", _interval(risk.ten_year)),
        *(
            (f"10-year risk, {cause}", _interval(curve.end))
            for cause, curve in risk.curves.items()
            if cause != risk.endpoint
        ),
        ("NCCN group", _nccn(risk)),
        ("Gleason of the risk", f"the {risk.gleason_from}'s" if risk.gleason_from else "not known"),
    ]
    if risk.missing:
        names = ", ".join(WORDS.get(name, name) for name in risk.missing)
        rows.append(("Not known", f"{escape(names)}: the risks are averaged over likely values"))
    if risk.outside_training_range:
        outside = ", ".join(WORDS.get(name, name) for name in risk.outside_training_range)
        rows.append(("Outside the training data", f"[red]{escape(outside)}[/red]"))
    if risk.recommendation is not None:
        rows += _recommendation_rows(risk.recommendation)
    return rows


def _recommendation_rows(recommendation: Recommendation) -> list[tuple[str, str]]:
    advice = recommendation.advice or "none by the numbers; the options are the guideline's"
    rows = [("Recommendation", escape(advice))]
    rows += [("No recommendation because", escape(reason)) for reason in recommendation.withheld]
    for option in recommendation.options:
        verdict = "" if option.verdict == "guideline only" else f"[bold]{option.verdict}[/bold]. "
        text = " ".join(part for part in (f"{option.guideline}.", option.reason) if part)
        rows.append((f"Option: {option.treatment}", verdict + escape(text)))
    adt = recommendation.short_term_adt
    if adt.reason not in [option.reason for option in recommendation.options]:
        verdict = "not read" if adt.verdict == "guideline only" else adt.verdict
        rows.append(("Benefit of short-term ADT", f"{verdict}. {escape(adt.reason)}"))
    if recommendation.options:
        rows.append(("Guideline", escape(recommendation.edition)))
    return rows


def _nccn(risk: Risk) -> str:
    reasons = f" ({'; '.join(risk.nccn_reasons)})" if risk.nccn_reasons else ""
    missing = f"; not known: {', '.join(risk.nccn_missing)}" if risk.nccn_missing else ""
    group = risk.nccn_group or "not known: PSA, T stage and Gleason are needed"
    return escape(f"{group}{reasons}{missing}")


def _interval(estimate: Estimate) -> str:
    return f"{estimate.estimate:.1%} (95 % interval {estimate.lower:.1%} to {estimate.upper:.1%})"
