"""One case of the campaign: a format and a seed.

The slide is damaged, then used as the pipeline uses slides. It must open or be refused with a
`SlideError`, within limits of time and memory.
"""

from __future__ import annotations

import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from pipelines.grid import PatchSpec
from pipelines.index import index_slide
from pipelines.patches import decode_patches, fetch_shards
from pipelines.slides.errors import SlideError
from pipelines.slides.geometry import Point, Size
from pipelines.slides.opening import open_slide
from pipelines.slides.slide import Slide
from tests.fuzz.damage import UNDAMAGED, damaged
from tests.fuzz.specimens import FUZZED, specimen

MAX_SECONDS = 5.0
"""CPU seconds that a case may take."""
MAX_MEMORY = 2**30
"""Bytes that a case may use in addition to what the process had before."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a case.

    Attributes:
        format, seed: the case.
        result: `opened`, the class of the `SlideError`, or `BUG ...`.
        detail: the error's text, or the traceback of a bug.
        seconds: of CPU.
        megabytes: used in addition to what the process had before.
    """

    result: str
    format: str = ""
    seed: int = 0
    detail: str = ""
    seconds: float = 0.0
    megabytes: float = 0.0

    @property
    def is_bug(self) -> bool:
        """Neither read nor refused, or beyond a limit."""
        undamaged = bool(self.format) and self.seed == UNDAMAGED
        return (
            self.result.startswith("BUG")
            or (undamaged and self.result != "opened")
            or self.seconds > MAX_SECONDS
            or self.megabytes > MAX_MEMORY / 2**20
        )


def run_case(name: str, seed: int) -> Outcome:
    """Damage a slide (not with `UNDAMAGED`) and use it as the pipeline does; never raises."""
    rng = np.random.default_rng([FUZZED.index(name), seed])
    slide = specimen(name)
    files = slide.files if seed == UNDAMAGED else damaged(slide, rng)
    with tempfile.TemporaryDirectory() as folder:
        for path, content in files.items():
            (Path(folder) / path).parent.mkdir(exist_ok=True)
            (Path(folder) / path).write_bytes(content)
        return replace(observed(str(Path(folder) / slide.opened)), format=name, seed=seed)


def observed(uri: str) -> Outcome:
    """What becomes of a slide that is used as the pipeline does; never raises."""
    before, begin = _memory(reset=True), time.process_time()
    try:
        result, detail = use(uri)
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is the finding
        result, detail = f"BUG {type(error).__name__}", traceback.format_exc(limit=-12)
    took, more = time.process_time() - begin, _memory(reset=False) - before
    return Outcome(result=result, detail=detail, seconds=took, megabytes=more / 2**20)


def use(uri: str) -> tuple[str, str]:
    """Open, thumbnail, regions of every level, and patches; each is tried even if others fail.

    Returns:
        `opened`, or the class of the first error with its text.
    """
    refusals: list[SlideError] = []
    slide = _attempt(refusals, lambda: open_slide(uri))
    if slide is not None and _attempt(refusals, lambda: slide.mpp) is None:
        slide.close()
        slide = _attempt(refusals, lambda: open_slide(uri, mpp=0.5))
    if slide is not None:
        with slide:
            _attempt(refusals, lambda: slide.thumbnail(256))
            for level in range(len(slide.levels)):
                _attempt(refusals, lambda level=level: _read(slide, level))  # type: ignore[misc]
            _attempt(refusals, lambda: _stream(slide))
    for error in refusals:
        if not (error.slide and error.cause and error.remedy):
            raise AssertionError(f"an error that says too little: {error!r}")
    return (type(refusals[0]).__name__, str(refusals[0])) if refusals else ("opened", "")


def _attempt(refusals: list[SlideError], act: Callable[[], T]) -> T | None:
    try:
        return act()
    except SlideError as error:
        refusals.append(error)
        return None


def _read(slide: Slide, level: int) -> None:
    found = slide.levels[level]
    corners = [
        (0, 0),
        (found.size.width // 2, found.size.height // 2),
        (found.size.width - 100, found.size.height - 100),
    ]
    for x, y in corners:
        origin = Point(round(x * found.downsample), round(y * found.downsample))
        region = slide.read_region(origin, level, Size(200, 200))
        assert region.shape == (200, 200, 3)
    scale = slide.scales(level)[0]
    slide.read_region(Point(0, 0), level, Size(25, 25), scale=scale)


def _stream(slide: Slide) -> None:
    shards = index_slide(
        slide,
        PatchSpec(size=64, mpp=2 * slide.mpp, min_tissue=0.1),
        organisation="fuzz",
        shard_side=4,
    ).shards
    decode_patches(fetch_shards(shards.slice(0, 2)))


def _memory(*, reset: bool) -> int:
    """Resident bytes now, with which the count of the peak restarts; or the peak since then."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    wanted = "VmRSS" if reset else "VmHWM"
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[wanted].split()[0]) * 1024
