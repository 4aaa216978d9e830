"""The report as PDF/A, through typst.

The template draws everything as vectors from the report's JSON and the heatmap.

The same report gives the same bytes. Fonts come with the package; nothing is fetched.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Final, Literal

import typst

from app.reports.heatmap import COLOURS, LABELS
from app.reports.schemas import NOTICE, SIMULATED, Report

TEMPLATE: Final = Path(__file__).with_name("report.typ")
FONTS: Final = Path(__file__).with_name("fonts")
STANDARD: Final = "a-2a"


def report_pdf(report: Report, heatmap: bytes) -> bytes:
    """The finished document.

    Args:
        report: what it says.
        heatmap: PNG.
    """
    pages = _compile(report, heatmap, form="pdf")
    return pages[0]


def report_pages(report: Report, heatmap: bytes, *, ppi: float = 110) -> list[bytes]:
    """The same pages as PNG, to be looked at."""
    return _compile(report, heatmap, form="png", ppi=ppi)


def _compile(
    report: Report, heatmap: bytes, *, form: Literal["pdf", "png"], ppi: float | None = None
) -> list[bytes]:
    with tempfile.TemporaryDirectory(prefix="acinus-report-") as name:
        folder = Path(name)
        shutil.copy(TEMPLATE, folder / TEMPLATE.name)
        (folder / "report.json").write_text(report.model_dump_json())
        (folder / "heatmap.png").write_bytes(heatmap)
        compiler = typst.Compiler(
            str(folder / TEMPLATE.name),
            root=str(folder),
            font_paths=[str(FONTS)],
            ignore_system_fonts=True,
        )
        inputs = {"notice": NOTICE, "simulated": SIMULATED}
        inputs |= {
            f"colour-{index}": "#{:02x}{:02x}{:02x}".format(*colour)
            for index, colour in enumerate(COLOURS)
        }
        inputs |= {f"label-{index}": label for index, label in enumerate(LABELS)}
        result = compiler.compile(
            format=form,
            ppi=ppi,
            sys_inputs=inputs,
            pdf_standards=[STANDARD] if form == "pdf" else [],
            timestamp=int(report.created_at.timestamp()),
        )
    assert result is not None  # None only where it was written to a file
    return result if isinstance(result, list) else [result]
