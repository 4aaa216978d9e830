"""The demo's page: one HTML file with the pictures of each stage, in the folder of the pictures."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

STYLE: Final = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 68rem; padding: 0 1rem;
  color: #1c2330; }
h1 { margin-bottom: 0; } .notice { color: #8a1c1c; font-weight: 600; }
section { margin: 2.5rem 0; border-top: 1px solid #d5dae2; }
td, th { text-align: left; padding: 0.15rem 1rem 0.15rem 0; }
figure { display: inline-block; margin: 0 1rem 1rem 0; vertical-align: top; }
figcaption { color: #56606f; font-size: 14px; }
img { max-width: 100%; max-height: 34rem; border: 1px solid #d5dae2; }
"""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture of the page: a file in the output folder, and what it shows."""

    file: str
    caption: str


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of the journey.

    Attributes:
        title: heading.
        text: what happened, one or two sentences.
        pictures: what it made.
        links: further files in the output folder.
        seconds: how long it took.
    """

    title: str
    text: str
    seconds: float
    pictures: Sequence[Picture] = ()
    links: Sequence[str] = ()


def write_page(folder: Path, stages: Sequence[Stage], *, notices: Sequence[str]) -> Path:
    """Write `index.html` and return its path."""
    sections = "\n".join(_section(number, stage) for number, stage in enumerate(stages, start=1))
    times = "".join(
        f"<tr><td>{html.escape(stage.title)}</td><td>{stage.seconds:.0f} s</td></tr>"
        for stage in stages
    )
    notice = "<br>".join(html.escape(text) for text in notices)
    page = folder / "index.html"
    page.write_text(
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Acinus demo</title>'
        f"<style>{STYLE}</style></head><body><h1>Acinus: from a slide to a report</h1>"
        f'<p class="notice">{notice}</p><table>{times}</table>{sections}</body></html>',
        encoding="utf-8",
    )
    return page


def _section(number: int, stage: Stage) -> str:
    pictures = "".join(_figure(picture) for picture in stage.pictures)
    links = "".join(
        f'<p><a href="{html.escape(link)}">{html.escape(link)}</a></p>' for link in stage.links
    )
    title, text = html.escape(stage.title), html.escape(stage.text)
    return f"<section><h2>{number}. {title}</h2><p>{text}</p>{pictures}{links}</section>"


def _figure(picture: Picture) -> str:
    file, caption = html.escape(picture.file), html.escape(picture.caption)
    return (
        f'<figure><a href="{file}"><img src="{file}" alt="{caption}"></a>'
        f"<figcaption>{caption}</figcaption></figure>"
    )
