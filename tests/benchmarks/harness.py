"""How benchmarks measure and report: pairs interleaved in one process, the median ratio and spread.

A report is a table and JSON. Both name the processor and its instructions (`machine`).
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.benchmarks.machine import this_machine


@dataclass(frozen=True, kw_only=True)
class Row:
    """One case of a benchmark.

    Attributes:
        case: name others rely on.
        ours, reference_value: medians, in `unit`.
        reference: what ours is compared with.
        ratio: median of the pairs' ratios, ours / reference.
        spread: lower and upper quartile of the pairs' ratios.
        goal: minimum ratio that we want (maximum where lower is better), None where none is set.
        better: `higher` or `lower`.
    """

    case: str
    ours: float
    reference: str
    reference_value: float
    unit: str
    ratio: float
    spread: tuple[float, float]
    goal: float | None = None
    better: str = "higher"

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; None without one."""
        if self.goal is None:
            return None
        return self.ratio >= self.goal if self.better == "higher" else self.ratio <= self.goal


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """The options of every benchmark."""

    json: Path | None
    quick: bool


def arguments(description: str) -> Arguments:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    given = parser.parse_args()
    return Arguments(json=given.json, quick=given.quick)


def cpu_rate(work: Callable[[], int]) -> float:
    """Units of work per second of CPU time, all threads counted: the store reads in its own."""
    start = time.process_time()
    done = work()
    return done / (time.process_time() - start)


def compare(
    case: str, ours: Callable[[], float], peer: Callable[[], float], *, pairs: int, **named: object
) -> Row:
    """Measure pairs, alternating which goes first, after one warm-up of each."""
    ours(), peer()
    found = []
    for k in range(pairs):
        if k % 2:
            theirs = peer()
            found.append((ours(), theirs))
        else:
            found.append((ours(), peer()))
    return pairs_row(case, [a for a, _ in found], [b for _, b in found], **named)


def pairs_row(case: str, ours: Sequence[float], peer: Sequence[float], **named: object) -> Row:
    """The row of values that were measured pair by pair."""
    ratios = sorted(a / b for a, b in zip(ours, peer, strict=True))
    quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
    return Row(
        case=case,
        ours=statistics.median(ours),
        reference_value=statistics.median(peer),
        ratio=statistics.median(ratios),
        spread=(quartiles[0], quartiles[2]),
        **named,  # type: ignore[arg-type]
    )


def report(
    benchmark: str,
    rows: Sequence[Row],
    given: Arguments,
    *,
    packages: Sequence[str],
    limits: Mapping[str, str] | None = None,
    extra: Mapping[str, object] | None = None,
) -> None:
    """Print the table and what limits each case, and write the JSON.

    Args:
        benchmark: its name.
        rows: its cases.
        given: the command line; `json` is where the JSON goes.
        packages: whose versions are recorded.
        limits: what limits a case, by its name or the beginning of its name.
        extra: further keys of the JSON.
    """
    machine = this_machine()
    print_rows(benchmark, rows, machine=machine.name)
    for case, limit in (limits or {}).items():
        print(f"{case} is limited by {limit}")
    if given.json:
        content = {
            "benchmark": benchmark,
            "machine": asdict(machine),
            "versions": {name: version(name) for name in packages}
            | {"python": platform.python_version()},
            "rows": [{**asdict(row), "met": row.met, "machine": machine.name} for row in rows],
            "limits": dict(limits or {}),
            **(extra or {}),
        }
        given.json.write_text(json.dumps(content, indent=1))


COLUMNS = ("case", "ours", "reference", "value", "unit", "ratio", "quartiles", "goal", "met")


def print_rows(benchmark: str, rows: Sequence[Row], *, machine: str) -> None:
    """Print the table; the machine is its caption."""
    table = Table(*COLUMNS, title=benchmark, caption=f"on {machine}")
    for row in rows:
        table.add_row(
            row.case,
            number(row.ours),
            row.reference,
            number(row.reference_value),
            row.unit,
            f"{row.ratio:.2f}",
            f"{row.spread[0]:.2f} - {row.spread[1]:.2f}",
            "" if row.goal is None else f"{row.goal:g}",
            {None: "", True: "yes", False: "NO"}[row.met],
        )
    Console(width=140).print(table)


def number(value: float) -> str:
    """A value with at least three digits, and separators of thousands."""
    return f"{value:,.3g}" if abs(value) < 100 else f"{value:,.0f}"
