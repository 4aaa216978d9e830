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

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: #1c2330; }
section { margin: 2rem 0; border-top: 1px solid #d5dae2; } td, th { text-align: left; padding: 0.1rem 1rem 0.1rem 0; }
table { font-size: 14px; } .missed { color: #a3281f; font-weight: 600; }
svg { max-width: 100%; height: auto; } p { color: #56606f; }
"""
COLOURS = {True: "#1f7a4d", False: "#a3281f", None: "#3b5b92"}
"""Of a row whose goal is met, missed, or not set."""
COLUMNS = ("case", "ours", "reference", "value", "unit", "ratio", "quartiles", "goal")

Benchmark = Mapping[str, Any]
"""One benchmark's JSON (`harness.report`)."""


def plot(found: Benchmark) -> Figure:
    """A line a row: the median ratio with its quartiles on a logarithmic axis, and the goal as a tick."""
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
    ticks = [
        at for at in (0.01, 0.03, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if low <= at <= high
    ]
    axes.set_xticks(ticks, [f"{at:g}" for at in ticks])
    axes.minorticks_off()
    axes.set_yticks(
        range(len(rows)), [f"{row['case']}  vs {row['reference']}" for row in rows], fontsize=8
    )
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel("ours / reference; tick: goal", fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="x", color="#eceff4")
    axes.set_axisbelow(True)
    return figure


def write_page(folder: Path) -> Path:
    """Write `index.html` beside the JSON files, and return its path."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    benchmarks = [
        one for one in found if isinstance(one, dict) and one.get("rows") and "machine" in one
    ]
    page = folder / "index.html"
    page.write_text(
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Acinus benchmarks</title>'
        f"<style>{STYLE}</style></head><body><h1>Acinus benchmarks</h1>{''.join(map(_section, benchmarks))}</body></html>",
        encoding="utf-8",
    )
    return page


def _section(found: Benchmark) -> str:
    drawn = io.StringIO()
    plot(found).savefig(drawn, format="svg")
    machine, versions = found["machine"], found["versions"]
    on = f"{machine['cores']} cores, {machine['system']}; " + ", ".join(
        f"{name} {number}" for name, number in versions.items()
    )
    head = "".join(f"<th>{name}</th>" for name in COLUMNS)
    body = "".join(_line(row) for row in found["rows"])
    limits = "".join(
        f"<p>{html.escape(case)} is limited by {html.escape(text)}.</p>"
        for case, text in found["limits"].items()
    )
    svg = drawn.getvalue()
    return (
        f"<section><h2>{html.escape(found['benchmark'])}</h2><p>{html.escape(on)}</p>{svg[svg.index('<svg') :]}"
        f"<table><tr>{head}</tr>{body}</table>{limits}</section>"
    )


def _line(row: Mapping[str, Any]) -> str:
    sign = "≤" if row["better"] == "lower" else "≥"
    goal = "" if row["goal"] is None else f"{sign} {row['goal']:g}"
    values = (
        *(
            row["case"],
            f"{row['ours']:,.3g}" if row["ours"] < 100 else f"{row['ours']:,.0f}",
            row["reference"],
        ),
        *(
            f"{row['reference_value']:,.3g}"
            if row["reference_value"] < 100
            else f"{row['reference_value']:,.0f}",
            row["unit"],
        ),
        *(f"{row['ratio']:.3f}", f"{row['spread'][0]:.2f} to {row['spread'][1]:.2f}", goal),
    )
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
