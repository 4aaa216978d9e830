"""All benchmarks on one HTML page: a plot and a table of each, from the JSON files that they wrote.

python -m tests.benchmarks.page FOLDER        # reads FOLDER/*.json, writes FOLDER/index.html
"""

from __future__ import annotations

import argparse
import html
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tests.benchmarks.harness import number

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1c2330; }
body { margin: 2rem auto; max-width: 72rem; padding: 0 1rem; }
section { margin: 2rem 0; border-top: 1px solid #d5dae2; }
td, th { text-align: left; padding: 0.1rem 1rem 0.1rem 0; }
table { font-size: 14px; } .missed { color: #a3281f; font-weight: 600; }
svg { max-width: 100%; height: auto; } p { color: #56606f; }
"""
COLOURS = {True: "#1f7a4d", False: "#a3281f", None: "#3b5b92"}
"""Of a row whose goal is met, missed, or not set."""
TICKS = (0.01, 0.03, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Acinus benchmarks</title>
<style>{style}</style></head>
<body><h1>Acinus benchmarks</h1>{sections}</body></html>
"""
COLUMNS = ("case", "ours", "reference", "value", "unit", "ratio", "quartiles", "goal", "machine")

Benchmark = Mapping[str, Any]
"""One benchmark's JSON (`harness.report`)."""


def plot(found: Benchmark) -> Figure:
    """A line a row: median ratio with its quartiles on a logarithmic axis, the goal as a tick.

    The axis names the processor, so that a plot on its own (in the README) still does.
    """
    rows = [row for row in found["rows"] if row["ratio"] > 0]
    figure = Figure(figsize=(9.5, 0.8 + 0.27 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.axvline(1, color="#c3c9d4", linewidth=1)
    for y, row in enumerate(rows):
        colour = COLOURS[row["met"]]
        axes.plot(
            row["spread"], (y, y), color=colour, linewidth=3, alpha=0.4, solid_capstyle="round"
        )
        axes.plot(row["ratio"], y, "o", color=colour, markersize=5)
        if row["goal"]:
            axes.plot(row["goal"], y, "|", color="#1c2330", markersize=13, markeredgewidth=1.6)
        axes.annotate(
            f"{row['ratio']:.2f}",
            (1.01, y),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=8,
            color=colour,
        )
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    ticks = [tick for tick in TICKS if low <= tick <= high]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_yticks(
        range(len(rows)), [f"{row['case']}  vs {row['reference']}" for row in rows], fontsize=8
    )
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel(f"ours / reference; tick: goal; on {machine_of(found)}", fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="x", color="#eceff4")
    axes.set_axisbelow(True)
    return figure


def machine_of(found: Benchmark) -> str:
    """Processor and instructions, as the benchmark wrote them next to its ratios."""
    return str(found["rows"][0]["machine"])


def write_page(folder: Path) -> Path:
    """Write `index.html` next to the JSON files, and return its path."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    benchmarks = [
        one for one in found if isinstance(one, dict) and one.get("rows") and "machine" in one
    ]
    page = folder / "index.html"
    sections = "".join(map(_section, benchmarks))
    page.write_text(PAGE.format(style=STYLE, sections=sections), encoding="utf-8")
    return page


def _section(found: Benchmark) -> str:
    drawn = io.StringIO()
    plot(found).savefig(drawn, format="svg")
    svg = drawn.getvalue()
    return (
        f"<section><h2>{html.escape(found['benchmark'])}</h2>"
        f"<p>{html.escape(_conditions(found))}</p>"
        f"{svg[svg.index('<svg') :]}"
        f"{_table(found)}"
        f"{_limits(found)}</section>"
    )


def _conditions(found: Benchmark) -> str:
    """Machine and versions."""
    machine = found["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    return f"{machine_of(found)}; {machine['cores']} cores, {machine['system']}; {versions}"


def _limits(found: Benchmark) -> str:
    return "".join(
        f"<p>{html.escape(case)} is limited by {html.escape(text)}.</p>"
        for case, text in found["limits"].items()
    )


def _table(found: Benchmark) -> str:
    head = "".join(f"<th>{name}</th>" for name in COLUMNS)
    return f"<table><tr>{head}</tr>{''.join(map(_line, found['rows']))}</table>"


def _line(row: Mapping[str, Any]) -> str:
    sign = "≤" if row["better"] == "lower" else "≥"
    values = [
        row["case"],
        number(row["ours"]),
        row["reference"],
        number(row["reference_value"]),
        row["unit"],
        f"{row['ratio']:.3f}",
        f"{row['spread'][0]:.2f} to {row['spread'][1]:.2f}",
        "" if row["goal"] is None else f"{sign} {row['goal']:g}",
        row["machine"],
    ]
    missed = ' class="missed"' if row["met"] is False else ""
    return f"<tr{missed}>" + "".join(f"<td>{html.escape(value)}</td>" for value in values) + "</tr>"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "folder", type=Path, help="folder of JSON files, to which the page is added"
    )
    print(write_page(parser.parse_args().folder))


if __name__ == "__main__":
    main()
