"""TIAToolbox: `read_rect` at level 0, the call of its `SlidingWindowPatchExtractor`.

By `TIFFWSIReader`, which reads SVS as well: `WSIReader.open` gives an SVS to OpenSlide, at half the
rate (measured: 1,100 aligned and 900 unaligned against 470). Baseline mpp and power are given, or
it looks for them.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tiatoolbox.wsicore.wsireader import TIFFWSIReader

from tests.benchmarks.peer_readers import protocol


def open_slide(
    path: Path, corners: NDArray[np.int64], size: int, _options: list[str]
) -> protocol.Read:
    slide = TIFFWSIReader(path, mpp=(0.25, 0.25), power=40)

    def read(out: NDArray[np.uint8]) -> None:
        for k, corner in enumerate(corners.tolist()):
            out[k] = slide.read_rect(tuple(corner), (size, size), resolution=0, units="level")

    return read


if __name__ == "__main__":
    logging.getLogger().setLevel(logging.ERROR)
    protocol.serve(open_slide)
