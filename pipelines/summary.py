"""Summaries of what was not used: each reason once, with the first names that it holds for."""

from __future__ import annotations

from collections.abc import Iterable

MAX_NAMED = 3
"""Names that a summary gives for each reason; it counts the others."""


def by_reason(named: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Reasons, most frequent first, each with its first names and the number of the others.

    Args:
        named: (reason, name) of each thing that was not used.
    """
    names: dict[str, list[str]] = {}
    for reason, name in named:
        names.setdefault(reason, []).append(name)
    ordered = sorted(names.items(), key=lambda item: -len(item[1]))
    return [(reason, _first(found)) for reason, found in ordered]


def _first(names: list[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return f"{', '.join(names[:MAX_NAMED])}{more}"
