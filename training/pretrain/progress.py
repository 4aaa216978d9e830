"""The metrics of a running Ray Train job on the process that started it.

Ray Train's controller lives in a process of its own and hands metrics to callbacks there. A small
actor carries them over.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.train import UserCallback


@dataclass(frozen=True, kw_only=True)
class ProgressReport:
    """Where a run stands: steps done of all steps, and the mean loss since the last report."""

    step: int
    steps: int
    loss: float


class Mailbox:
    """Holds the newest report (a Ray actor)."""

    def __init__(self) -> None:
        self._newest: ProgressReport | None = None

    def put(self, report: ProgressReport) -> None:
        """Replace the newest report."""
        self._newest = report

    def get(self) -> ProgressReport | None:
        """The newest report."""
        return self._newest


class Reporter(UserCallback):  # type: ignore[misc, unused-ignore]
    """Puts each report of the workers into the mailbox."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox

    def after_report(
        self, run_context: object, metrics: list[dict[str, Any]], checkpoint: object
    ) -> None:
        """Called by Ray Train in its controller."""
        del run_context, checkpoint
        first = metrics[0]
        self._mailbox.put.remote(
            ProgressReport(step=first["step"], steps=first["steps"], loss=first["loss"])
        )


@contextmanager
def watched(
    on_progress: Callable[[ProgressReport], None] | None, *, every: float = 0.5
) -> Iterator[list[Reporter]]:
    """Callbacks for a trainer; while the context lasts, `on_progress` is called from a thread with
    each new report.
    """
    if on_progress is None:
        yield []
        return
    mailbox = ray.remote(num_cpus=0)(Mailbox).remote()
    ended = threading.Event()

    def watch() -> None:
        seen: ProgressReport | None = None
        while not (last := ended.wait(every)) or last:
            newest = ray.get(mailbox.get.remote())
            if newest is not None and newest != seen:
                seen = newest
                on_progress(newest)
            if last:
                return

    thread = threading.Thread(target=watch, name="progress", daemon=True)
    thread.start()
    try:
        yield [Reporter(mailbox)]
    finally:
        ended.set()
        thread.join(timeout=5.0)
        ray.kill(mailbox)
