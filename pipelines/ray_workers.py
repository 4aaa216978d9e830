"""Slides prepared as Ray tasks, on all machines of a cluster."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from itertools import islice

import ray
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError, WorkerCrashedError

from pipelines.manifest import ManifestRow
from pipelines.preparation import ATTEMPTS, OutputError, PrepareConfig, SlideOutcome
from pipelines.prepare_slide import prepare_slide
from pipelines.ray_session import ensure_ray


def run_slides(
    rows: Sequence[ManifestRow], config: PrepareConfig
) -> Generator[tuple[int, SlideOutcome]]:
    """Attempt every row; at most twice as many at a time as there are CPUs: a long manifest would
    fill the scheduler.

    Yields:
        Index of the row and its outcome, as slides finish.

    Raises:
        OutputError: `config.out` can't be written. Slides under way are finished first.
    """
    ensure_ray()
    task = ray.remote(num_cpus=1, max_retries=ATTEMPTS - 1)(prepare_slide)
    limit = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting = iter(enumerate(rows))
    running: dict[ray.ObjectRef, int] = {}
    while True:
        for k, row in islice(waiting, limit - len(running)):
            running[task.remote(row, config)] = k
        if not running:
            return
        done, _ = ray.wait(list(running))
        k = running.pop(done[0])
        try:
            outcome = outcome_of(done[0], rows[k])
        except OutputError:
            if running:  # they may still find room, and nobody writes there when this run has ended
                ray.wait(list(running), num_returns=len(running))
            raise
        yield k, outcome


def outcome_of(task: ray.ObjectRef, row: ManifestRow, *, attempts: int = ATTEMPTS) -> SlideOutcome:
    """The outcome of a task that has ended, one way or another.

    Args:
        task: that prepares the slide.
        row: of the slide.
        attempts: how often Ray runs it if its process dies.

    Raises:
        OutputError: the task's.
    """
    try:
        outcome: SlideOutcome = ray.get(task)
    except RayTaskError as error:
        raise error.cause from None
    except (OutOfMemoryError, WorkerCrashedError) as error:
        return SlideOutcome.crashed(row, type(error).__name__, attempts=attempts)
    except RayError as error:
        return SlideOutcome.not_run(row, type(error).__name__)
    return outcome
