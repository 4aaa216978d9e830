"""The report as a table in a terminal. It warns of what the PDF warns of."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from app.reports.schemas import NOTICE, SIMULATED, Estimate, Grading, Reading, Report, Risk


def risk_table(report: Report) -> Table:
    """Patterns, grade and risk, with the notice on top."""
    notice = f"{NOTICE}. {SIMULATED}." if report.simulated_outcomes else f"{NOTICE}."
    table = Table(
        title=f"Analysis {report.analysis_id}\n[red]{notice}[/red]",
        show_header=False,
        title_justify="left",
    )
    if report.reading is not None:
        table.add_row("Grade to read", _reading(report.reading))
    table.add_row("Gleason, grade group", _grade(report.grading))
    table.add_row("Share of area", _shares(report.grading))
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
        ("NCCN group", _nccn(risk)),
        ("Gleason of the risk", f"the {risk.gleason_from}'s"),
    ]
    if risk.outside_training_range:
        outside = ", ".join(risk.outside_training_range)
        rows.append(("Outside the training data", f"[red]{escape(outside)}[/red]"))
    return rows


def _nccn(risk: Risk) -> str:
    reasons = f" ({'; '.join(risk.nccn_reasons)})" if risk.nccn_reasons else ""
    missing = f"; not known: {', '.join(risk.nccn_missing)}" if risk.nccn_missing else ""
    return escape(f"{risk.nccn_group}{reasons}{missing}")


def _interval(estimate: Estimate) -> str:
    return f"{estimate.estimate:.1%} (95 % interval {estimate.lower:.1%} to {estimate.upper:.1%})"
