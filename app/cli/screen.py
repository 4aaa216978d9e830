"""What commands print: progress while they work, and what they made."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from app.cli.remedies import remedy
from pipelines import addresses
from pipelines.discovery import passed_over_summary
from pipelines.grid import PatchSpec

if TYPE_CHECKING:  # what one command prints must not load the libraries of the others
    from app.inference.stages import AnalysisResult
    from pipelines.prepare import PrepareReport
    from training.encoder.catalogue import Entry
    from training.evaluation.probe import ProbeReport
    from training.registry.registry import Entry as VersionEntry
    from training.registry.reproducibility import Reproducibility
    from training.risk.cross_validation import CrossValidatedScore
    from training.risk.fit_risk import FitRiskReport
    from training.risk.prediction import Interval
    from training.risk.simulated_patients import SimulatedScore
    from training.slide.fit_slide import FitSlideReport

FAILURES_SHOWN = 5
"""Failed slides that `prepare` prints in full; all are in its report."""
REMARKS_SHOWN = 5
"""Different remarks that `prepare` prints; all are in its report."""


class Show(Protocol):
    """Moves a progress bar."""

    def __call__(self, done: int, total: int | None = None, what: str | None = None, /) -> None: ...


@contextmanager
def progress(what: str, *, total: int | None = None) -> Iterator[Show]:
    """A progress bar for the block; yields the function that moves it."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console()) as bar:
        task = bar.add_task(what, total=total)

        def show(done: int, total: int | None = None, what: str | None = None, /) -> None:
            bar.update(task, completed=done, total=total, description=what)

        yield show


def print_facts(title: str, rows: Mapping[str, object]) -> None:
    """Print what a command has made, as a table of names and values."""
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")  # paths are for copying: never shortened
    for name, value in rows.items():
        table.add_row(name, escape(str(value)))  # a folder may be named `[red]`
    Console().print(table)


def print_terms(terms: str | None) -> None:
    """Print what an encoder's licence allows, before it is loaded; nothing if none is named."""
    if terms:
        Console().print(escape(terms), highlight=False, soft_wrap=True)


def print_encoders(entries: Sequence[Entry]) -> None:
    """The table of encoders by name."""
    table = Table(title="Encoders", title_justify="left")
    for name in ("name", "um/px", "px", "width", "licence", "commercial use", "weights"):
        table.add_column(name, overflow="fold")
    for each in entries:
        table.add_row(
            each.name,
            f"{each.spec.mpp:.3g}",
            str(each.spec.size),
            str(each.dimension),
            each.licence,
            "yes" if each.commercial else "no",
            each.weights,
        )
    Console().print(table)


def print_cohort(report: PrepareReport) -> None:
    """What was prepared, and where it is."""
    kept = f", {report.kept} of them kept from an earlier run" if report.kept else ""
    splits = ", ".join(f"{name} {count}" for name, count in report.splits.items() if name)
    rows: dict[str, object] = {
        "prepared": f"{len(report.prepared)} slides{kept}",
        "patches": report.n_patches,
        "slides by split": splits or "none",
        "read": report.reading,
    }
    if report.staged:
        counted = "1 slide was" if report.staged == 1 else f"{report.staged} slides were"
        rows["staged"] = f"{counted} copied whole: the format can't be read in place"
    rows["failed"] = f"{len(report.failed)} slides"
    if report.passed_over:
        rows["skipped"] = passed_over_summary(report.passed_over)
    rows["report"] = f"{report.out}/report.json"
    if report.prepared:
        rows["pictures"] = f"overview.png of each slide, the first: {_first_picture(report)}"
    print_facts("Prepared cohort", rows)
    _print_remarks(report)


def _print_remarks(report: PrepareReport) -> None:
    """What of the slides' files was not read: each remark once, with its first slide's name."""
    slides: dict[str, list[str]] = {}
    for slide, remarks in report.remarks:
        for remark in remarks:
            slides.setdefault(remark, []).append(slide)
    for remark, names in list(slides.items())[:REMARKS_SHOWN]:
        more = f" (and {len(names) - 1} more slides)" if len(names) > 1 else ""
        _print_text(Console(), f"Slide {names[0]} {remark}{more}")
    if (left := len(slides) - REMARKS_SHOWN) > 0:
        _print_text(Console(), f"and {left} more remarks, all in the report")


def _first_picture(report: PrepareReport) -> str:
    row = next(outcome.row for outcome in report.prepared if outcome.row)
    spec = PatchSpec.from_dict(json.loads(row.spec))
    return f"{report.out}/{addresses.overview(row.organisation_id, row.slide_id, spec.hash)}"


def print_failed_slides(report: PrepareReport) -> None:
    """Failures by class, the first few in full, and what to do about them."""
    console = Console(stderr=True)
    table = Table(title="Failed slides", title_justify="left")
    table.add_column("error")
    table.add_column("slides", justify="right")
    for kind, count in report.errors.items():
        table.add_row(kind, str(count))
    console.print(table)
    for outcome in report.failed[:FAILURES_SHOWN]:
        line = f"line {outcome.line}: " if outcome.line else ""
        _print_text(console, f"{line}{outcome.error}", style="red")
    if (more := len(report.failed) - FAILURES_SHOWN) > 0:
        _print_text(console, f"and {more} more; the report has all, with their causes")
    for code in dict.fromkeys(outcome.code for outcome in report.failed):
        if (what_to_do := remedy(code, "prepare")) is not None:
            _print_text(console, f"{code}: {what_to_do}")
    _print_text(console, "Fix them and run again with --resume: only these slides are done again.")


def print_probe(report: ProbeReport) -> None:
    """Encoders and baselines, best first."""
    from training.evaluation.page import verdict

    console = Console()
    title = "Balanced accuracy (95 % interval), best first"
    table = Table(title=title, title_justify="left")
    shifts = list(report.rows[0].shifts)
    for column in ("", "linear probe", "kNN", *shifts, ""):
        table.add_column(column)
    for row in report.rows:
        shifted = [f"{row.shifts[name].accuracy:.3f}" for name in shifts]
        table.add_row(
            escape(row.name), str(row.linear), str(row.knn), *shifted, escape(verdict(row))
        )
    console.print(table)
    _print_text(console, f"chance: {report.chance:.3f}")
    for row in report.rows:
        if row.stain is not None:
            _print_text(console, row.stain.sentence(row.name))
    _print_text(console, report.caveat)
    _print_text(console, f"page: {report.page}")
    ignored = [f"{name} is a hidden file and not scored" for name in report.ignored]
    print_notes(ignored, report.failed)


def print_versions(entries: Sequence[VersionEntry]) -> None:
    """Versions of a registry, in the order in which they were added."""
    from training.registry.version import SHORT

    table = Table(title="Versions", title_justify="left")
    for column in ("version", "stage", "encoder", "lowest ICC", "added by", "when"):
        table.add_column(column)
    for entry in entries:
        record, added = entry.reproducibility, entry.changes[0]
        icc = _icc(record)
        encoder = entry.version.facts["models"]["encoder"]["name"]
        table.add_row(
            entry.version.hash[:SHORT],
            entry.stage,
            escape(str(encoder)),
            icc,
            escape(added.by),
            added.when[:16],
        )
    Console().print(table)


def _icc(record: Mapping[str, Any] | None) -> str:
    """The lowest intraclass correlation of a version's record."""
    if record is None:
        return "not measured"
    if record["lowest_icc"] is None:
        return "alike on all slides"
    return f"{record['lowest_icc']:.3f} ({record['lowest_of']})"


def print_version(entry: VersionEntry, folder: str) -> None:
    """A version's facts and history."""
    facts = entry.version.facts
    rows: dict[str, object] = {
        "version": entry.version.hash,
        "stage": entry.stage,
        "folder": folder,
        **{name: f"{one['name']} {one['hash'][:12]}" for name, one in facts["models"].items()},
        "licence": ", ".join(f"{name}: {one}" for name, one in facts["licence"].items()),
        "patches": f"{facts['spec']['size']} px at {facts['spec']['mpp']:g} um",
        "simulated outcomes": facts["simulated_outcomes"],
    }
    record = entry.reproducibility
    rows["lowest ICC"] = _icc(record)
    rows["history"] = "\n".join(
        f"{one.when[:16]} {one.action} by {one.by}" for one in entry.changes
    )
    print_facts("Research use only; not a diagnosis", rows)


def print_reproducibility(found: Reproducibility) -> None:
    """Intraclass correlations by measure."""
    columns = {"all": found.icc, **found.pairs}
    table = Table(
        title=f"Intraclass correlations on {found.slides} slides, with each condition",
        title_justify="left",
    )
    table.add_column("")
    for measure in found.icc:
        table.add_column(measure)
    for name, icc in columns.items():
        cells = ("alike" if value is None else f"{value:.3f}" for value in icc.values())
        table.add_row(name, *cells)
    Console().print(table)


def print_slide_model(report: FitSlideReport) -> None:
    """A slide model, its scores on held-out slides, and what was not used."""
    rows: dict[str, object] = {
        "slide model": report.model,
        "hash": report.model_hash,
        "slides": report.slides,
        "patches": report.patches,
    }
    if (patches := report.patch_score) is not None:
        rows["patches, balanced accuracy"] = (
            f"{patches.balanced_accuracy:.3f} (chance {patches.chance:.3f}), held out by case"
        )
    slides = report.slide_score
    if slides is not None and slides.attention_kappa is not None:
        rows["slides, quadratic kappa"] = f"{slides.attention_kappa:.3f} on {slides.slides} slides"
    if (areas := report.area_score) is not None:
        text = f"tumour extent {areas.tumour_extent:.1%} of the tissue"
        if areas.percent_pattern_4 is not None:
            text += f", pattern 4 {areas.percent_pattern_4:.0f} % of the tumour"
        rows["areas, mean absolute error"] = text
    if (reading := report.reading_score) is not None:
        text = f"{reading.read} of {reading.slides} slides"
        if reading.exact is not None:
            text += f", {reading.exact:.0%} of these as their label"
        rows["with a grade to read"] = text
    for name, found in (
        ("patches", report.patch_calibration),
        ("grade groups", report.group_calibration),
    ):
        if found is not None:
            rows[f"{name}, calibration error"] = (
                f"{found.error_before:.3f}, calibrated {found.error_after:.3f} "
                f"(temperature {found.temperature:.2f})"
            )
    if report.false_alarms is not None:
        rows["slides like these taken for others"] = f"{report.false_alarms:.0%} expected"
    rows["pictures"] = "\n".join(report.figures)
    print_facts("Slide model", rows)
    partly_used = [str(use) for use in report.annotations if not use.complete]
    print_notes([*report.remarks, *partly_used], [str(slide) for slide in report.failed])


def print_risk_model(report: FitRiskReport) -> None:
    """A risk model, how good it is on patients that it was not fitted on, and what was not used."""
    events = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in report.events.items())
    images = f", on {report.slides} slides or cases" if report.slides else ", without slides"
    rows: dict[str, object] = {
        "risk model": report.model,
        "hash": report.model_hash,
        "outcomes": "SIMULATED" if report.simulated_outcomes else "of the table",
        "patients": f"{report.patients} ({events}){images}",
    }
    if report.missing:
        rows["missing"] = ", ".join(f"{name} {share:.0%}" for name, share in report.missing.items())
    rows |= _risk_score(report.score)
    if report.interaction_p_value is not None:
        found = "depends" if report.interaction_p_value < 0.05 else "is not shown to depend"
        what = "the image" if report.slides else "the clinical variables"
        rows["treatment"] = f"its effect {found} on {what} (p {report.interaction_p_value:.2g})"
    rows["pictures"] = "\n".join(report.figures)
    print_facts("Risk model. Research use only; not a diagnosis", rows)
    print_notes(report.remarks, [str(slide) for slide in report.failed])


def _risk_score(score: SimulatedScore | CrossValidatedScore) -> dict[str, object]:
    """Simulated: one concordance beside the truth's. Real: with intervals, beside the clinical."""
    rows: dict[str, object] = {}
    if isinstance(score.concordance, float):
        truth = getattr(score, "concordance_of_truth", None)
        rows["concordance, held out"] = f"{score.concordance:.3f} (true hazards: {truth:.3f})"
    elif score.concordance is not None:
        rows["concordance, cross-validated"] = _with_interval(score.concordance)
    if (without := score.concordance_without_image) is not None:
        text = f"{without:.3f}" if isinstance(without, float) else _with_interval(without)
        rows["the same without the image"] = text
    if score.calibration_slope is not None:
        rows["calibration slope"] = f"{score.calibration_slope:.2f}"
    if (brier := getattr(score, "brier", None)) is not None:
        average = getattr(score, "brier_of_average", None)
        rows["Brier score at 5 years"] = f"{brier:.4f} (the average for all: {average:.4f})"
    return rows


def _with_interval(value: Interval) -> str:
    return f"{value.estimate:.3f} ({value.lower:.3f} to {value.upper:.3f})"


def print_clinical_risk(table: Table) -> None:
    """A risk without a slide."""
    Console().print(table)


def print_analysis(result: AnalysisResult, table: Table) -> None:
    """One analysis: grade and risk as a table, and the files that were written."""
    Console().print(table)
    print_facts(
        "Written",
        {"report": result.report_json, "heatmap": result.heatmap, "PDF": result.report_pdf},
    )


def print_address(address: str) -> None:
    """Where the service can be reached; printed when it answers."""
    _print_text(Console(), f"Acinus answers at {address} (API: {address}/docs)")


def print_notes(remarks: Sequence[str], failed: Sequence[str]) -> None:
    """Remarks on standard output, failures on standard error."""
    for remark in remarks:
        _print_text(Console(), remark)
    for sentence in failed:
        _print_text(Console(stderr=True), sentence, style="red")


def _print_text(console: Console, text: str, *, style: str | None = None) -> None:
    """One line as it is: no markup, no colours by content, not broken at the screen's width."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)
