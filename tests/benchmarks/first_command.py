"""How soon a first command answers: seconds of whole processes, by the wall clock.

    python -m tests.benchmarks.first_command [--json FILE] [--quick]

`help` is `acinus --help` compared with half a second, `help-vs-python` with `python -c pass`: what
starting Python takes in any case. `prepare-one-slide` is `acinus prepare` of one generated slide on
this machine compared with the same command on Ray (`--ray`), `prepare-one-slide-vs-python` with
`python -c pass`. A process's first start after an installation is slower, by reading from disk:
one start of each comes before the measurements.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from pathlib import Path

from pipelines.synthetic.synthesise import SynthConfig, synthesise
from tests.benchmarks import harness

ACINUS = [sys.executable, "-m", "app.cli"]
PYTHON = [sys.executable, "-c", "pass"]
HALF_A_SECOND = 0.5
LIMITS = {
    "help": "Python's own start and the import of the command line's library",
    "prepare-one-slide": "the import of NumPy, SciPy and PyArrow, then decoding the patches",
}


class CommandError(Exception):
    """A measured command failed; holds what it printed."""


def seconds(command: Sequence[str]) -> float:
    """Wall-clock seconds of a process, without a cluster in its environment.

    Raises:
        CommandError: it did not exit with 0.
    """
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    start = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    taken = time.perf_counter() - start
    if done.returncode:
        raise CommandError(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")
    return taken


def preparation(slide: Path, folder: Path, *options: str) -> Callable[[], float]:
    """Seconds of `acinus prepare`, each time into a folder of its own: nothing is resumed."""
    numbers = count()

    def measure() -> float:
        out = folder / f"out{''.join(options)}-{next(numbers)}"
        return seconds([*ACINUS, "prepare", str(slide), "--out", str(out), *options])

    return measure


def rows_of(slide: Path, folder: Path, *, pairs: int) -> list[harness.Row]:
    """All rows; lower is better in each."""
    row = partial(harness.compare, pairs=pairs, unit="s", better="lower")
    show_help, python = partial(seconds, [*ACINUS, "--help"]), partial(seconds, PYTHON)
    prepare = preparation(slide, folder)
    on_ray = preparation(slide, folder, "--ray")
    return [
        row("help", show_help, lambda: HALF_A_SECOND, reference="half a second", goal=1.0),
        row("help-vs-python", show_help, python, reference="python -c pass"),
        row("prepare-one-slide", prepare, on_ray, reference="the same on Ray", goal=0.5),
        row("prepare-one-slide-vs-python", prepare, python, reference="python -c pass"),
    ]


def main() -> None:
    given = harness.arguments(__doc__ or "")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        synthesise(SynthConfig(out=name, slides=1, test_slides=0, cores=1, core_length=4))
        (slide,) = folder.glob("*.svs")
        rows = rows_of(slide, folder, pairs=3 if given.quick else 9)
    harness.report("first_command", rows, given, packages=["typer", "ray", "numpy"], limits=LIMITS)


if __name__ == "__main__":
    main()
