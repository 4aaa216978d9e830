"""Slides prepared in processes of this machine, without Ray: the default of `prepare`.

Each slide under way has a process of its own, so that a slide that ends its process ends no other.
A process starts in the time in which Python imports the readers, about a second; a Ray of this
machine needs ten. Processes are started by name (`python -m pipelines.slide_worker`), not by
multiprocessing, which would run the caller's own script again in each of them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter, deque
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Self

from pipelines.manifest import ManifestRow
from pipelines.preparation import (
    ATTEMPTS,
    OutputError,
    PreparationError,
    PrepareConfig,
    SlideOutcome,
)

WORKER = "pipelines.slide_worker"
"""Module that a process runs."""
CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
"""A container's quota and period of CPU time in microseconds, as cgroups v2 have it."""
MAX_TRACE = 4000
"""Bytes of what a worker printed last that the outcome of its slide keeps."""


class WorkerFailure(PreparationError):  # noqa: N818 - what happened, in words
    """A process of ours can't be started; a fault of the installation, not of a slide."""


@dataclass(frozen=True, kw_only=True)
class WorkerExit:
    """A worker ended without an answer.

    Attributes:
        reason: its signal or exit code.
        trace: what it printed last.
    """

    reason: str
    trace: str


def run_slides(
    rows: Sequence[ManifestRow], config: PrepareConfig
) -> Generator[tuple[int, SlideOutcome]]:
    """Attempt every row, one on each CPU that this process may use.

    Yields:
        Index of the row and its outcome, as slides finish.

    Raises:
        OutputError: `config.out` can't be written. Slides under way are finished first.
        WorkerFailure: a process can't be started.
    """
    waiting = deque(range(len(rows)))
    exits: Counter[int] = Counter()
    refused: OutputError | None = None
    with _Workers(min(_usable_cpus(), len(rows))) as workers:
        while waiting or workers.busy:
            while waiting and workers.idle:
                k = waiting.popleft()
                workers.start(k, rows[k], config)
            for k, result in workers.finished():
                if isinstance(result, SlideOutcome):
                    yield k, result
                elif isinstance(result, OutputError):
                    refused = result
                elif exits[k] + 1 < ATTEMPTS:
                    exits[k] += 1
                    waiting.appendleft(k)
                else:
                    yield k, SlideOutcome.crashed(rows[k], result.reason, trace=result.trace)
            if refused is not None:
                waiting.clear()
    if refused is not None:
        raise refused


def _usable_cpus() -> int:
    """CPUs that this process may run on, or fewer if its container may use less time of them."""
    on = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = CPU_MAX.read_text().split()
        return max(1, min(on, int(quota) // int(period)))
    except (OSError, ValueError):  # no cgroups v2; or the quota is "max", which is none
        return on


class _Workers:
    """Processes, each with at most one slide. All of them are gone when the block ends."""

    def __init__(self, count: int) -> None:
        self.idle = [_Worker() for _ in range(count)]
        self.busy: dict[Connection, tuple[_Worker, int]] = {}

    def start(self, k: int, row: ManifestRow, config: PrepareConfig) -> None:
        """Give row number `k` to an idle worker."""
        worker = self.idle.pop()
        self.busy[worker.start(row, config)] = worker, k

    def finished(self) -> list[tuple[int, SlideOutcome | OutputError | WorkerExit]]:
        """Wait for a message; returns the new results and the numbers of their rows."""
        found = []
        for connection in wait(list(self.busy)):
            worker, k = self.busy[connection]  # type: ignore[index]
            result = worker.result()
            if result is not None:
                found.append((k, result))
                del self.busy[connection]  # type: ignore[arg-type]
                self.idle.append(worker)
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for worker in [*self.idle, *(worker for worker, _ in self.busy.values())]:
            worker.kill()


class _Worker:
    """A process that prepares one slide at a time; started when it is needed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, row: ManifestRow, config: PrepareConfig) -> Connection:
        """Send a slide; the connection is ready to read when there is a result."""
        if self._process is None:
            self._launch()
        with suppress(OSError):  # it died while it was idle; `result` says so
            self._connection.send((row, config))
        return self._connection

    def _launch(self) -> None:
        self._connection, theirs = Pipe()
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `kill`
        # One thread of linear algebra, as a Ray task with one CPU has: the same last bits.
        settings = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", WORKER, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._printed,
                stderr=self._printed,
                env={**os.environ, **settings},
                start_new_session=True,  # Ctrl-C is for the process that hands out slides
            )
        self._ready = False

    def result(self) -> SlideOutcome | OutputError | WorkerExit | None:
        """What the process sends: an answer, or None if it has just started. Or that it is dead.

        Raises:
            WorkerFailure: it ended before it could do anything.
        """
        try:
            answer: SlideOutcome | OutputError | None = self._connection.recv()
        except (EOFError, OSError):
            return self._collect_exit()
        self._ready = True
        return answer

    def _collect_exit(self) -> WorkerExit:
        assert self._process is not None
        code = self._process.wait()
        self._printed.seek(max(0, self._printed.seek(0, os.SEEK_END) - MAX_TRACE))
        trace = self._printed.read().decode(errors="replace").strip()
        ready = self._ready
        self.kill()
        if not ready and code >= 0:
            last = trace.rpartition("\n")[2] or f"exit code {code}"
            raise WorkerFailure(
                f"a process that prepares slides can't be started: {last}; "
                "install acinus again with all that it depends on, or free memory"
            )
        reason = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return WorkerExit(reason=reason, trace=trace)

    def kill(self) -> None:
        """End the process; what it writes is whole or not there."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._connection.close()
            self._printed.close()
            self._process = None
