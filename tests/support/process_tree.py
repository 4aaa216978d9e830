"""Kill processes that a test has started, and only those: found below a process of its own, by what
Ray calls them."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def descendants(root: int) -> dict[int, str]:
    """Process ids and titles of all processes below one, those that have ended and wait for their
    parent excepted."""
    parents: dict[int, int] = {}
    titles: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError, IndexError):
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                if state != "Z":
                    parents[int(entry.name)] = int(parent)
                    titles[int(entry.name)] = (
                        (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
                    )
    found: dict[int, str] = {}
    for process, title in titles.items():
        ancestor = parents[process]
        while ancestor in parents and ancestor != root:
            ancestor = parents[ancestor]
        if ancestor == root:
            found[process] = title
    return found


def alive(processes: dict[int, str]) -> dict[int, str]:
    """Those that have not ended."""
    found = {}
    for process, title in processes.items():
        with suppress(OSError):
            if (Path("/proc") / str(process) / "stat").read_text().rpartition(")")[2].split()[
                0
            ] != "Z":
                found[process] = title
    return found


def kill(process: int) -> bool:
    """SIGKILL; whether it was still there."""
    try:
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


@contextmanager
def killing(
    *titles: str, below: int, seed: int, pause: tuple[float, float], max_kills: int
) -> Iterator[dict[int, str]]:
    """While the block runs, kill random processes below one, of any of the titles, at random
    moments.

    Args:
        titles: how titles begin.
        below: process above them.
        seed: of the choice.
        pause: seconds between two kills, minimum and maximum.
        max_kills: kills after which it stops.

    Yields:
        Ids and titles of the processes killed so far.
    """
    chance = random.Random(seed)
    ended = threading.Event()
    killed: dict[int, str] = {}

    def run() -> None:
        while len(killed) < max_kills and not ended.wait(chance.uniform(*pause)):
            found = {
                process: name
                for process, name in descendants(below).items()
                if name.startswith(titles)
            }
            if found and kill(victim := chance.choice(sorted(found))):
                killed[victim] = found[victim]

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield killed
    finally:
        ended.set()
        thread.join()
