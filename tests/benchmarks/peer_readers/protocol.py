"""What the benchmark and a reader's process say to each other; needs NumPy only, so that every
environment runs it.

    PYTHON -m tests.benchmarks.peer_readers.NAME SLIDE CORNERS EXPECTED [OPTION ...]

SLIDE is a path. CORNERS is int64 [M, 2]: x, y of the patches' top-left corners in level-0 pixels,
in reading order. EXPECTED is uint8 [N, size, size, 3]: OpenSlide's pixels of the first N corners;
the M corners are these N, once or several times over.

The process reads everything once, to warm up, and answers with the pixels' differences. Then each
line on its standard input asks for one measurement and is answered by one line of JSON. A slide is
opened anew for each measurement, before the clock starts: what a reader caches is never left from
the measurement before.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """How patches differ from OpenSlide's.

    Attributes:
        greatest: greatest absolute difference of a channel, in levels of 255.
        share: share of pixels of which any channel differs, 0 to 1.
    """

    greatest: int
    share: float


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One measurement.

    Attributes:
        patches: how many were read.
        wall, cpu: seconds; `cpu` of all threads of the reader's own process, not of processes that
            it starts.
    """

    patches: int
    wall: float
    cpu: float


Read = Callable[[NDArray[np.uint8]], None]
"""Read all M corners; the first N go to `out`, uint8 [N, size, size, 3]."""


def keep(batch: NDArray[np.uint8], start: int, out: NDArray[np.uint8]) -> None:
    """Copy what of a batch [B, size, size, 3] is among the first N patches; `start` is the number
    of its first.

    For readers that assemble batches of their own, whose consumer need not copy: most of what they
    read several times over isn't.
    """
    count = max(0, min(len(batch), len(out) - start))
    out[start : start + count] = batch[:count]


Open = Callable[[Path, NDArray[np.int64], int, list[str]], Read]
"""Open the slide for reading these corners [M, 2] in patches of `size` pixels, with the options of
the command line."""


def serve(open_slide: Open) -> None:
    """Answer until standard input ends. What libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    slide, corners, expected = (
        Path(sys.argv[1]),
        np.load(sys.argv[2]),
        np.load(sys.argv[3], mmap_mode="r"),
    )
    out = np.zeros(expected.shape, np.uint8)

    def opened() -> Read:
        return open_slide(slide, corners, expected.shape[1], sys.argv[4:])

    opened()(out)
    print(json.dumps(asdict(compare(out, expected))), file=answers)
    for _ in sys.stdin:
        read = opened()
        wall, cpu = time.perf_counter(), time.process_time()
        read(out)
        found = Measurement(
            patches=len(corners), wall=time.perf_counter() - wall, cpu=time.process_time() - cpu
        )
        print(json.dumps(asdict(found)), file=answers)


def compare(patches: NDArray[np.uint8], expected: NDArray[np.uint8]) -> Pixels:
    """Compare patches [N, size, size, 3] with OpenSlide's."""
    greatest, differing = 0, 0
    for patch, wanted in zip(patches, expected, strict=True):
        difference = np.abs(patch.astype(np.int16) - wanted).max(axis=-1)
        greatest = max(greatest, int(difference.max()))
        differing += int(np.count_nonzero(difference))
    return Pixels(greatest=greatest, share=differing / (patches.size / 3))
