"""The report as a table in a terminal."""

from __future__ import annotations

from rich.table import Table

from app.reports.schemas import NOTICE, SIMULATED, Estimate, Report


def risk_table(report: Report) -> Table:
    """Patterns, grade and risk, with the notice on top."""
    notice = f"{NOTICE}. {SIMULATED}." if report.simulated_outcomes else f"{NOTICE}."
    table = Table(
        title=f"Analysis {report.analysis_id}\n[red]{notice}[/red]",
        show_header=False,
        title_justify="left",
    )
    grading = report.grading
    pattern = f"{grading.primary}+{grading.secondary}" if grading.primary else "no cancer pattern"
    table.add_row("Gleason, grade group", f"{pattern}, grade group {grading.grade_group}")
    shares = {
        "benign": grading.benign,
        "3": grading.gleason_3,
        "4": grading.gleason_4,
        "5": grading.gleason_5,
    }
    table.add_row(
        "Share of area", ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
    )
    slide = report.slide_model
    table.add_row(
        "Slide model", f"grade group {slide.grade_group}, cancer {slide.cancer_probability:.0%}"
    )
    if report.risk is None:
        table.add_row("Risk", f"none: {report.risk_absent_because}")
        return table
    table.add_row(f"5-year risk, {report.risk.endpoint}", _interval(report.risk.five_year))
    table.add_row(f"10-year risk, {report.risk.endpoint}", _interval(report.risk.ten_year))
    table.add_row("NCCN group", report.risk.nccn_group)
    return table


def _interval(estimate: Estimate) -> str:
    return f"{estimate.estimate:.1%} (95 % interval {estimate.lower:.1%} to {estimate.upper:.1%})"
