"""A process that runs cases, so that a crash or a hang ends the case and not the campaign.

`python -m tests.fuzz.worker` reads cases as lines from standard input and answers each with a line
of JSON.
"""

from __future__ import annotations

import json
import os
import resource
import selectors
import subprocess
import sys
import warnings
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tests.fuzz.cases import MAX_MEMORY, Outcome, observed, run_case
from tests.fuzz.specimens import FUZZED

ROOT = Path(__file__).parents[2]
HANG_SECONDS = 30.0
"""Wall-clock seconds after which a worker is killed; the machine may be shared, so this is more
than `MAX_SECONDS` of CPU."""


def work() -> None:
    """Read cases as lines, write outcomes as lines."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is not an answer
    warnings.simplefilter("ignore")
    run_case(FUZZED[0], 0)  # loads the libraries before memory is limited
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(
        resource.RLIMIT_AS, (pages * resource.getpagesize() + MAX_MEMORY, resource.RLIM_INFINITY)
    )
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin:
        kind, rest = line.rstrip("\n").split(" ", 1)
        outcome = observed(rest) if kind == "uri" else run_case(kind, int(rest))
        answers.write(json.dumps(asdict(outcome)) + "\n")


@dataclass(kw_only=True)
class Worker:
    """A process that runs cases, and is started again when one kills it."""

    process: subprocess.Popen[bytes] | None = None

    def run(self, name: str, seed: int) -> Outcome:
        """Run a case there."""
        return replace(self._ask(f"{name} {seed}"), format=name, seed=seed)

    def use(self, uri: str) -> Outcome:
        """Use a slide there."""
        return self._ask(f"uri {uri}")

    def _ask(self, line: str) -> Outcome:
        patience = HANG_SECONDS
        if self.process is None:
            command = [sys.executable, "-m", "tests.fuzz.worker"]
            pipe = subprocess.PIPE
            self.process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, cwd=ROOT
            )
            patience *= 4  # it loads its libraries first
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{line}\n".encode())
        self.process.stdin.flush()
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            answered = bool(selector.select(patience))
        answer = self.process.stdout.readline() if answered else b""
        if answer:
            return Outcome(**json.loads(answer))
        self.close()
        return Outcome(result="BUG crash" if answered else "BUG hang")

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


if __name__ == "__main__":
    work()
