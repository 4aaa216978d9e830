"""A probe as one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from training.evaluation.probe import ProbeReport, ProbeRow

STYLE: Final = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem;
  color: #1c2330; }
.caveat { color: #8a1c1c; font-weight: 600; }
table { border-collapse: collapse; } .baseline { color: #56606f; }
td, th { text-align: left; padding: 0.2rem 1rem 0.2rem 0; border-bottom: 1px solid #d5dae2; }
img { max-width: 100%; }
"""


def write_page(report: ProbeReport, figures: Mapping[str, bytes]) -> str:
    """The page: caveat, table, figures (PNG, by their titles)."""
    rows = "".join(_row(row) for row in report.rows)
    pictures = "".join(
        f"<h2>{html.escape(title)}</h2>"
        f'<img alt="{html.escape(title)}" src="data:image/png;base64,'
        f'{base64.b64encode(picture).decode()}">'
        for title, picture in figures.items()
    )
    columns = ("", "linear probe", "kNN", *report.rows[0].shifts, "")
    head = f"<tr>{''.join(f'<th>{html.escape(name)}</th>' for name in columns)}</tr>"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Encoders</title>'
        f"<style>{STYLE}</style></head><body><h1>Encoders on labelled tiles</h1>"
        f'<p class="caveat">{html.escape(report.caveat)}</p>'
        f"<p>{sum(report.tiles)} tiles of {len(report.classes)} classes; balanced accuracy with its"
        f" 95 % interval; chance is {report.chance:.2f}. Research use only; not a diagnosis.</p>"
        f"<table>{head}{rows}</table>{_stains(report)}{pictures}</body></html>"
    )


def _stains(report: ProbeReport) -> str:
    """Each encoder's scores with and without stain normalisation, and the choice."""
    choices = [(row.name, row.stain) for row in report.rows if row.stain is not None]
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(method)}</td><td>{scores.clean}</td>"
        f"<td>{scores.shifted}</td><td>{'chosen' if method == choice.chosen else ''}</td></tr>"
        for name, choice in choices
        for method, scores in choice.scores.items()
    )
    if not rows:
        return ""
    sentences = "".join(f"<p>{html.escape(choice.sentence(name))}</p>" for name, choice in choices)
    return (
        f"<h2>Stain normalisation</h2>{sentences}<p>Here each tile is normalised by a fit to it "
        "alone; acinus prepare fits once a slide.</p><table><tr><th></th><th>normalised by</th>"
        "<th>as scanned</th><th>under other stains</th><th></th></tr>"
        f"{rows}</table>"
    )


def _row(row: ProbeRow) -> str:
    shifts = [f"{shift.accuracy:.2f} (cosine {shift.cosine:.2f})" for shift in row.shifts.values()]
    scores = (str(row.linear), str(row.knn), *shifts)
    cells = (
        row.name,
        *(score.replace(" ", "\N{NO-BREAK SPACE}") for score in scores),
        verdict(row),
    )
    kind = ' class="baseline"' if row.encoder is None else ""
    return f"<tr{kind}>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>"


def verdict(row: ProbeRow) -> str:
    """What a row's scores say next to the baselines."""
    if row.encoder is None:
        return "baseline"
    if row.not_better_than:
        return f"does not beat {' or '.join(row.not_better_than)}"
    return "beats every baseline"
