"""The fuzz campaign: slides of every format, damaged at random where it hurts, must open or be refused with one typed error.

    python -m tests.fuzz --cases 20000 --json fuzz.json

A case is a format and a seed: structures (headers, directories, tag values, XML, offset tables, DICOM elements, heads of tiles)
are hit more often than tile data. Each case runs in a worker process and may take `SECONDS` of CPU and `MEMORY` more than the
worker had: a crash, a hang or any other exception than a `SlideError` is a bug, and is printed with what repeats it:

    python -m tests.fuzz --format svs-jpeg --seed 17
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import selectors
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np
import pydicom
import tifffile

from pipelines.grid import PatchSpec
from pipelines.index import index_slide
from pipelines.patches import decode_patches, fetch_shards
from pipelines.slides.errors import SlideError
from pipelines.slides.geometry import Point, Size
from pipelines.slides.opening import open_slide
from pipelines.slides.slide import Slide
from tests.support.formats import picture, write_slide

ROOT = Path(__file__).parents[1]
SECONDS = 5.0
"""CPU seconds that a case may take."""
MEMORY = 2**30
"""Bytes that a case may take beyond what the worker had before."""
HANG = 30.0
"""Wall seconds after which a worker is killed: more than `SECONDS`, since the machine may be shared."""

FUZZED = (
    *(
        "svs-jpeg",
        "svs-33003",
        "svs-33005",
        "bigtiff-jpeg",
        "tiff-deflate",
        "tiff-lzw",
        "tiff-raw",
        "tiff-rgba",
        "ome-tiff",
    ),
    *("philips", "dicom-jpeg", "dicom-jpeg2000", "dicom-jpegls", "dicom-raw", "dicom-sparse"),
    *("ndpi", "mirax", "scn", "bif", "trestle"),
)
"""Formats of the campaign."""

T = TypeVar("T")
Rng = np.random.Generator
Place = tuple[int, int]
"""Where a structure lies in a file: offset and length."""


# ---- a slide and where its structures are ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Specimen:
    """A sound slide.

    Attributes:
        files: content by path below the slide's folder.
        opened: path that `open_slide` is given.
        places: structures of each file.
    """

    files: dict[str, bytes]
    opened: str
    places: dict[str, list[Place]]


@lru_cache(maxsize=1)
def specimen(name: str) -> Specimen:
    """The sound slide of a format."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_slide(name, Path(folder), picture(540, 520))
        files = {
            at.relative_to(folder).as_posix(): at.read_bytes()
            for at in sorted(Path(folder).rglob("*"))
            if at.is_file()
        }
        opened = path.relative_to(folder).as_posix()
    return Specimen(
        files=files,
        opened=opened,
        places={at: list(_places(at, content)) for at, content in files.items()},
    )


def _places(path: str, content: bytes) -> Iterator[Place]:
    if content[:2] in (b"II", b"MM"):
        return _tiff_places(path, content)
    if content[128:132] == b"DICM":
        return _dicom_places(content)
    return iter([(at, min(16, len(content) - at)) for at in range(0, min(len(content), 4000), 16)])


def _tiff_places(path: str, content: bytes) -> Iterator[Place]:
    yield 0, 16
    with tifffile.TiffFile(io.BytesIO(content), name=path) as tiff:
        for page in [sub for main in tiff.pages for sub in (main, *(main.pages or ()))]:
            yield page.offset, 8
            for tag in page.tags:
                yield tag.offset, tiff.tiff.tagsize
                yield tag.valueoffset, min(tag.valuebytecount, 64)
            yield from ((at, 40) for at in page.dataoffsets if at)


def _dicom_places(content: bytes) -> Iterator[Place]:
    stream = io.BytesIO(content)
    dataset = pydicom.dcmread(stream, stop_before_pixels=True)
    pixels = stream.tell()
    for element in (*dataset.file_meta, *dataset.iterall()):
        if element.file_tell is not None and element.file_tell < pixels:
            yield max(0, element.file_tell - 12), 12 + min(32, len(str(element.value)))
    yield pixels, 40
    at = pixels + 12
    while content[at : at + 4] == b"\xfe\xff\x00\xe0":
        yield at, 48
        at += 8 + int.from_bytes(content[at + 4 : at + 8], "little")


# ---- damage ----------------------------------------------------------------------------------------------------------------


SOUND = 0
"""The seed with which a slide is left as it is: it must open, or cases would be refused for another reason than their damage."""


def damaged(sound: Specimen, rng: Rng) -> dict[str, bytes]:
    """The slide's files with one to four mutations."""
    files = {name: bytearray(content) for name, content in sound.files.items()}
    for _ in range(int(rng.choice([1, 1, 1, 2, 4]))):
        name = str(rng.choice([at for at in files if files[at]] or list(files)))
        if not files[name]:
            continue
        mutate = _MUTATIONS[int(rng.choice(len(_MUTATIONS), p=_WEIGHTS))]
        mutate(files[name], sound.places[name], rng)
    return {name: bytes(content) for name, content in files.items()}


def _structure(content: bytearray, places: Sequence[Place], rng: Rng) -> Place:
    """A structure that the file still has."""
    offset, length = places[int(rng.integers(len(places)))] if places else (0, 16)
    offset = min(offset, len(content) - 1)
    return offset, max(1, min(length, len(content) - offset))


def _flip(content: bytearray, places: Sequence[Place], rng: Rng) -> None:
    offset, length = _structure(content, places, rng)
    content[offset + int(rng.integers(length))] ^= 1 << int(rng.integers(8))


def _number(content: bytearray, places: Sequence[Place], rng: Rng) -> None:
    """Write a number that is dangerous: an end, a sign, a size."""
    offset, length = _structure(content, places, rng)
    width = int(rng.choice([1, 2, 4, 8]))
    at = offset + int(rng.integers(max(1, length - width + 1))) // width * width
    size = len(content)
    values = (
        0,
        1,
        2,
        3,
        7,
        255,
        256,
        4097,
        65535,
        2**16,
        2**24,
        2**31 - 1,
        2**31,
        2**32 - 1,
        2**40,
        2**63,
        2**64 - 1,
    )
    value = int(
        (*values, size, size - 1, size - 8, offset, size // 2)[int(rng.integers(len(values) + 5))]
    ) % 2 ** (8 * width)
    order = "big" if content[:2] == b"MM" else "little"
    content[at : at + width] = value.to_bytes(width, order)[: max(0, size - at)]


def _swap(content: bytearray, places: Sequence[Place], rng: Rng) -> None:
    """Exchange two structures' bytes."""
    (a, n), (b, m) = (_structure(content, places, rng) for _ in range(2))
    length = min(n, m)
    content[a : a + length], content[b : b + length] = (
        content[b : b + length],
        content[a : a + length],
    )


def _text(content: bytearray, places: Sequence[Place], rng: Rng) -> None:
    """Change the digits of a text that stands somewhere in the headers."""
    digits = [at for at in range(min(len(content), 2**16)) if 48 <= content[at] <= 57]
    tail = [
        at for at in range(max(0, len(content) - 2**14), len(content)) if 48 <= content[at] <= 57
    ]
    here = digits + tail
    if here:
        at = here[int(rng.integers(len(here)))]
        new = (b"9", b"-", b"0", b".", b"e", b"<", b"\0", b" ", b"\xff", b"N")[
            int(rng.integers(10))
        ]
        content[at : at + 1] = new


def _zero(content: bytearray, places: Sequence[Place], rng: Rng) -> None:
    offset, length = _structure(content, places, rng)
    content[offset : offset + length] = bytes(length)


def _noise(content: bytearray, places: Sequence[Place], rng: Rng) -> None:
    offset, length = _structure(content, places, rng)
    content[offset : offset + length] = rng.bytes(length)


def _truncate(content: bytearray, places: Sequence[Place], rng: Rng) -> None:
    del content[int(rng.integers(len(content))) :]


def _cut(content: bytearray, places: Sequence[Place], rng: Rng) -> None:
    """Take bytes out, so that all behind them moves."""
    offset, _ = _structure(content, places, rng)
    del content[offset : offset + int(rng.integers(1, 64))]


def _insert(content: bytearray, places: Sequence[Place], rng: Rng) -> None:
    offset, length = _structure(content, places, rng)
    content[offset:offset] = (
        content[offset : offset + length] if rng.random() < 0.5 else rng.bytes(length)
    )


def _splice(content: bytearray, places: Sequence[Place], rng: Rng) -> None:
    """Copy a stretch over another."""
    a, b = (int(at) for at in rng.integers(len(content), size=2))
    length = min(int(rng.integers(1, 4096)), len(content) - max(a, b))
    content[b : b + length] = content[a : a + length]


def _payload(content: bytearray, places: Sequence[Place], rng: Rng) -> None:
    for at in rng.integers(len(content), size=int(rng.integers(1, 20))):
        content[int(at)] = int(rng.integers(256))


Mutation = Callable[[bytearray, Sequence[Place], Rng], None]
_WEIGHTED: dict[Mutation, int] = {
    _flip: 4,
    _number: 6,
    _text: 3,
    _swap: 2,
    _zero: 2,
    _noise: 2,
    _truncate: 2,
    _cut: 1,
    _insert: 1,
    _splice: 1,
    _payload: 2,
}
_MUTATIONS = list(_WEIGHTED)
_WEIGHTS = np.array(list(_WEIGHTED.values())) / sum(_WEIGHTED.values())


# ---- one case --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a case.

    Attributes:
        format, seed: the case.
        result: `opened`, the class of the `SlideError`, or `BUG ...`.
        detail: the error's text, or the traceback of a bug.
        seconds: of CPU.
        megabytes: beyond what the worker had.
    """

    result: str
    format: str = ""
    seed: int = 0
    detail: str = ""
    seconds: float = 0.0
    megabytes: float = 0.0

    @property
    def is_bug(self) -> bool:
        """Neither read nor refused, or not within bounds."""
        sound = bool(self.format) and self.seed == SOUND
        return (
            self.result.startswith("BUG")
            or (sound and self.result != "opened")
            or self.seconds > SECONDS
            or self.megabytes > MEMORY / 2**20
        )


def run_case(name: str, seed: int) -> Outcome:
    """Damage the slide, unless the seed is `SOUND`, and use it as the pipeline does; never raises."""
    rng = np.random.default_rng([FUZZED.index(name), seed])
    sound = specimen(name)
    with tempfile.TemporaryDirectory() as folder:
        for path, content in (damaged(sound, rng) if seed != SOUND else sound.files).items():
            (Path(folder) / path).parent.mkdir(exist_ok=True)
            (Path(folder) / path).write_bytes(content)
        return replace(observed(str(Path(folder) / sound.opened)), format=name, seed=seed)


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
    """Open, thumbnail, regions of every level, and all patches; each is tried whatever became of the others.

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
    at = slide.levels[level]
    corners = [
        (0, 0),
        (at.size.width // 2, at.size.height // 2),
        (at.size.width - 100, at.size.height - 100),
    ]
    for x, y in corners:
        origin = Point(round(x * at.downsample), round(y * at.downsample))
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
    """Bytes: those resident now, from which peaks are counted anew; or the peak since."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    wanted = "VmRSS" if reset else "VmHWM"
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[wanted].split()[0]) * 1024


# ---- the campaign ----------------------------------------------------------------------------------------------------------


def _work() -> None:
    """A worker: cases come in as lines, outcomes go out as lines."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    warnings.simplefilter("ignore")
    run_case(FUZZED[0], 0)  # libraries are loaded before memory is limited
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(
        resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, resource.RLIM_INFINITY)
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
        patience = HANG
        if self.process is None:
            command = [sys.executable, "-m", "tests.fuzz", "--worker"]
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


@dataclass(kw_only=True)
class Tally:
    """Outcomes of one format."""

    cases: int = 0
    results: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    most_memory: float = 0.0
    bugs: list[Outcome] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        """Count an outcome."""
        self.cases += 1
        self.results[outcome.result] += 1
        self.slowest, self.most_memory = (
            max(self.slowest, outcome.seconds),
            max(self.most_memory, outcome.megabytes),
        )
        if outcome.is_bug:
            self.bugs.append(outcome)


def campaign(
    formats: Sequence[str], cases: int, first: int, report: Path | None
) -> dict[str, Tally]:
    """Run `cases` cases of each format, seeds from `first` on; the report is written anew after each format."""
    tallies: dict[str, Tally] = {}
    worker = Worker()
    for name in formats:
        tallies[name] = Tally()
        for seed in (SOUND, *range(first, first + cases - 1)):
            outcome = worker.run(name, seed)
            tallies[name].add(outcome)
            if outcome.is_bug:
                print(
                    f"{name} --seed {seed}: {outcome.result} {outcome.seconds:.1f} s {outcome.megabytes:.0f} MB",
                    flush=True,
                )
        print(_row(name, tallies[name]), flush=True)
        if report is not None:
            report.write_text(_as_json(tallies))
    worker.close()
    return tallies


def _row(name: str, tally: Tally) -> str:
    counts = ", ".join(
        f"{count} {result}" for result, count in tally.results.most_common() if result != "opened"
    )
    head = f"{name:16} {tally.cases:6} cases {tally.results['opened']:6} opened"
    return f"{head}  slowest {tally.slowest:4.1f} s  most {tally.most_memory:4.0f} MB  bugs {len(tally.bugs)}  {counts}"


def _as_json(tallies: Mapping[str, Tally]) -> str:
    rows = {
        name: {
            "cases": tally.cases,
            "results": dict(tally.results),
            "slowest_cpu_s": round(tally.slowest, 2),
            "most_memory_mb": round(tally.most_memory, 1),
            "bugs": [asdict(bug) for bug in tally.bugs],
        }
        for name, tally in tallies.items()
    }
    total = {
        "cases": sum(tally.cases for tally in tallies.values()),
        "bugs": sum(len(tally.bugs) for tally in tallies.values()),
    }
    limits = {"cpu_s": SECONDS, "memory_mb": MEMORY / 2**20}
    return json.dumps({"campaign": "fuzz", "limits": limits, **total, "formats": rows}, indent=1)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cases", type=int, default=1000 * len(FUZZED), help="in all, dealt evenly to the formats"
    )
    parser.add_argument("--format", action="append", choices=FUZZED, help="only these")
    parser.add_argument(
        "--seed",
        type=int,
        help="run this one case of each format here, and print what became of it",
    )
    parser.add_argument("--first", type=int, default=1, help="first seed")
    parser.add_argument("--json", type=Path, help="write the counts there")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    formats = options.format or FUZZED
    if options.worker:
        _work()
    elif options.seed is not None:
        for name in formats:
            print(json.dumps(asdict(run_case(name, options.seed)), indent=1).replace("\\n", "\n"))
    else:
        tallies = campaign(formats, -(-options.cases // len(formats)), options.first, options.json)
        bugs = sum(len(tally.bugs) for tally in tallies.values())
        print(f"{sum(tally.cases for tally in tallies.values())} cases, {bugs} bugs")
        sys.exit(1 if bugs else 0)


if __name__ == "__main__":
    main()
