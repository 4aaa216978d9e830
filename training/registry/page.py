"""A version's card as one HTML file that needs nothing else: what it is, what it was made of, how
well it does, and what was done with it. All text is escaped: cards come from other people.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from pipelines import storage
from training.registry.registry import MIN_ICC, Entry
from training.registry.version import MODELS, SHORT, require_digest

NOTICE: Final = "Research use only; not a diagnosis"
SIMULATED: Final = "Simulated outcomes: nothing that the risk model says is about patients"
STYLE: Final = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem;
  color: #1c2330; }
.caveat { color: #8a1c1c; font-weight: 600; }
table { border-collapse: collapse; }
td, th { text-align: left; vertical-align: top; padding: 0.2rem 1rem 0.2rem 0;
  border-bottom: 1px solid #d5dae2; font-weight: 400; }
thead th { color: #56606f; }
td table td, td table th { border: none; padding-top: 0; }
code { font-size: 0.85em; overflow-wrap: anywhere; }
img { max-width: 100%; } figure { margin: 1rem 0; }
"""


def write_page(entry: Entry, folder: str) -> str:
    """The page of a version.

    Args:
        entry: of `Registry.entry`.
        folder: of `Registry.folder`: its pictures are put into the page.

    Raises:
        BrokenModel: a picture is another than the version's.
        StorageError: one cannot be read.
    """
    facts = entry.version.facts
    short = entry.version.hash[:SHORT]
    caveats = [NOTICE, *([SIMULATED] if facts["simulated_outcomes"] else [])]
    sections = {
        "Version": _table(_version_rows(entry)),
        "Models": _models(facts),
        "Metrics": _by_model(facts["metrics"]),
        "Figures": _figures(entry, folder),
        "Reproducibility": _reproducibility(entry.reproducibility),
        "Data": _by_model(facts["data"]),
        "Software": _by_model(facts["versions"]),
        "History": _table(
            [(one.when[:16].replace("T", " "), one.action, one.by) for one in entry.changes],
            head=("when (UTC)", "what", "by whom"),
        ),
        "Files": _table(
            [(path, _code(digest)) for path, digest in entry.version.files.items()],
            head=("file", "SHA-256"),
        ),
    }
    body = "".join(f"<h2>{title}</h2>{content}" for title, content in sections.items() if content)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Version {short}</title>'
        f"<style>{STYLE}</style></head><body><h1>Model version {short}</h1>"
        f'<p class="caveat">{". ".join(caveats)}.</p>{body}</body></html>'
    )


class Html(str):
    """Text that is HTML already; any other is escaped."""

    __slots__ = ()


def _version_rows(entry: Entry) -> list[tuple[str, object]]:
    facts = entry.version.facts
    return [
        ("name", _code(entry.version.hash)),
        ("stage", entry.stage),
        ("patches", _value({**facts["spec"], "hash": facts["spec_hash"]})),
        ("preprocessing", _value(facts["preprocessing"])),
        ("precision", _value(facts["precision"])),
    ]


def _models(facts: Mapping[str, Any]) -> Html:
    rows = [
        (
            _words(model),
            facts["models"][model]["name"],
            _code(facts["models"][model]["hash"]),
            facts["licence"].get(model, "not stated"),
            _allowed(facts["commercial_use"].get(model)),
            Html("<br>".join(_code(str(parent)) for parent in facts["parents"][model])),
        )
        for model in MODELS
    ]
    return _table(rows, head=("", "name", "hash", "licence", "commercial use", "made of"))


def _allowed(commercial_use: bool | None) -> str:
    return {None: "not stated", True: "allowed", False: "not allowed"}[commercial_use]


def _by_model(facts: Mapping[str, Any]) -> str:
    return "".join(
        f"<h3>{html.escape(_words(model)).capitalize()}</h3>{_value(value)}"
        for model in MODELS
        if (value := facts.get(model)) is not None
    )


def _figures(entry: Entry, folder: str) -> str:
    found = []
    for path, digest in entry.version.files.items():
        if not path.endswith(".png"):
            continue
        picture = storage.read_bytes(storage.join(folder, *path.split("/")))
        require_digest(f"{path} of version {entry.version.hash[:SHORT]}", picture, digest)
        title = html.escape(_words(path.removesuffix(".png").replace("/", ": ")))
        source = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
        found.append(
            f'<figure><img alt="{title}" src="{source}"><figcaption>{title}</figcaption></figure>'
        )
    return "".join(found)


def _reproducibility(record: Mapping[str, Any] | None) -> str:
    if record is None:
        return "<p>Not measured: the version can't go into production.</p>"
    about = (
        f"{record['slides']} slides. Intraclass correlation over all conditions, of which "
        f"{MIN_ICC} is needed for production, and of the slides as they are and under each:"
    )
    columns = {"all conditions": record["icc"], **record.get("pairs", {})}
    rows = [
        (
            measure,
            *(
                "alike" if icc[measure] is None else f"{icc[measure]:.3f}"
                for icc in columns.values()
            ),
        )
        for measure in record["icc"]
    ]
    return f"<p>{html.escape(about)}</p>{_table(rows, head=('', *columns))}"


def _value(value: Any) -> Html:
    """Any value of a card: tables of mappings and of lists, numbers with four digits."""
    if isinstance(value, Mapping):
        return _table([(_words(name), _value(one)) for name, one in value.items()])
    if isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
        names = list(dict.fromkeys(name for one in value for name in one))
        rows = [[_value(one.get(name)) for name in names] for one in value]
        return _table(rows, head=[_words(name) for name in names])
    if isinstance(value, list) and value and all(isinstance(one, list) for one in value):
        return _table([[_value(cell) for cell in row] for row in value])
    if isinstance(value, list):
        return Html(", ".join(_value(one) for one in value) or "none")
    return Html(html.escape(_plain(value)))


def _plain(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    return f"{value:.4g}" if isinstance(value, float) else str(value) or "none"


def _table(rows: Iterable[Sequence[object]], *, head: Sequence[str] = ()) -> Html:
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{_cell(one)}</td>' for one in row)}</tr>" for row in rows)
    return Html(f"<table>{f'<thead><tr>{top}</tr></thead>' if head else ''}{body}</table>")


def _cell(value: object) -> str:
    return value if isinstance(value, Html) else html.escape(str(value))


def _code(text: str) -> Html:
    return Html(f"<code>{html.escape(text)}</code>")


def _words(name: str) -> str:
    return name.replace("_", " ")
