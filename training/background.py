"""An iterator that runs ahead of its consumer in a thread: patches are decoded while a model
computes.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True)
class _Failure:
    error: BaseException


class Background(Generic[Item]):
    """Runs an iterator in a thread, at most `ahead` items before its consumer; its errors surface
    in the consumer.
    """

    def __init__(self, items: Iterator[Item], *, ahead: int) -> None:
        self._items = items
        self._ready: queue.Queue[Item | _Failure | None] = queue.Queue(maxsize=ahead)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="patches", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            for item in self._items:
                if not self._put(item):
                    return
            self._put(None)
        except BaseException as error:  # noqa: BLE001 - handed to the consumer, who raises it
            self._put(_Failure(error))

    def _put(self, item: Item | _Failure | None) -> bool:
        while not self._stopped.is_set():
            try:
                self._ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def __iter__(self) -> Iterator[Item]:
        """Items in order; ends the thread when the consumer leaves."""
        try:
            while (item := self._ready.get()) is not None:
                if isinstance(item, _Failure):
                    raise item.error
                yield item
        finally:
            self._stopped.set()
            self._thread.join(timeout=10.0)
