"""The fuzz campaign: slides of every format, damaged at random, open or are refused clearly.

    python -m tests.fuzz --cases 20000 --json fuzz.json

A crash, a hang, an exception that is not a `SlideError`, or too much time or memory is a bug. It is
printed with what repeats it:

    python -m tests.fuzz --format svs-jpeg --seed 17
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.fuzz.cases import MAX_MEMORY, MAX_SECONDS, Outcome, run_case
from tests.fuzz.damage import UNDAMAGED
from tests.fuzz.specimens import FUZZED
from tests.fuzz.worker import Worker


@dataclass(kw_only=True)
class Tally:
    """Outcomes of one format."""

    cases: int = 0
    results: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    most_memory: float = 0.0
    bugs: list[Outcome] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        """Count an outcome."""
        self.cases += 1
        self.results[outcome.result] += 1
        self.slowest, self.most_memory = (
            max(self.slowest, outcome.seconds),
            max(self.most_memory, outcome.megabytes),
        )
        if outcome.is_bug:
            self.bugs.append(outcome)


def campaign(
    formats: Sequence[str], cases: int, first: int, report: Path | None
) -> dict[str, Tally]:
    """Run `cases` cases of each format, seeds from `first` on; each format updates the report."""
    tallies: dict[str, Tally] = {}
    worker = Worker()
    for name in formats:
        tallies[name] = Tally()
        for seed in (UNDAMAGED, *range(first, first + cases - 1)):
            outcome = worker.run(name, seed)
            tallies[name].add(outcome)
            if outcome.is_bug:
                cost = f"{outcome.seconds:.1f} s {outcome.megabytes:.0f} MB"
                print(f"{name} --seed {seed}: {outcome.result} {cost}", flush=True)
        print(_row(name, tallies[name]), flush=True)
        if report is not None:
            report.write_text(_as_json(tallies))
    worker.close()
    return tallies


def _row(name: str, tally: Tally) -> str:
    counts = ", ".join(
        f"{count} {result}" for result, count in tally.results.most_common() if result != "opened"
    )
    head = f"{name:16} {tally.cases:6} cases {tally.results['opened']:6} opened"
    limits = f"max {tally.slowest:4.1f} s  max {tally.most_memory:4.0f} MB"
    return f"{head}  {limits}  bugs {len(tally.bugs)}  {counts}"


def _as_json(tallies: Mapping[str, Tally]) -> str:
    rows = {
        name: {
            "cases": tally.cases,
            "results": dict(tally.results),
            "slowest_cpu_s": round(tally.slowest, 2),
            "most_memory_mb": round(tally.most_memory, 1),
            "bugs": [asdict(bug) for bug in tally.bugs],
        }
        for name, tally in tallies.items()
    }
    total = {
        "cases": sum(tally.cases for tally in tallies.values()),
        "bugs": sum(len(tally.bugs) for tally in tallies.values()),
    }
    limits = {"cpu_s": MAX_SECONDS, "memory_mb": MAX_MEMORY / 2**20}
    return json.dumps({"campaign": "fuzz", "limits": limits, **total, "formats": rows}, indent=1)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cases", type=int, default=1000 * len(FUZZED), help="total, shared evenly by the formats"
    )
    parser.add_argument("--format", action="append", choices=FUZZED, help="only these")
    parser.add_argument(
        "--seed",
        type=int,
        help="run this one case of each format in this process, and print its outcome",
    )
    parser.add_argument("--first", type=int, default=1, help="first seed")
    parser.add_argument("--json", type=Path, help="write the counts to this file")
    options = parser.parse_args()
    formats = options.format or FUZZED
    if options.seed is not None:
        for name in formats:
            print(json.dumps(asdict(run_case(name, options.seed)), indent=1).replace("\\n", "\n"))
    else:
        tallies = campaign(formats, -(-options.cases // len(formats)), options.first, options.json)
        bugs = sum(len(tally.bugs) for tally in tallies.values())
        print(f"{sum(tally.cases for tally in tallies.values())} cases, {bugs} bugs")
        sys.exit(1 if bugs else 0)


if __name__ == "__main__":
    main()
