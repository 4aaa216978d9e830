"""How our reader compares with other slide readers: patches/s of CPU time, pairs of processes on
the same slide.

    make bench-peers
    python -m tests.benchmarks.peers [--json FILE] [--quick]

Each peer runs in an environment of its own (`peer_readers.environments`, installed here when it is
not there yet) and in the way that its documentation recommends, which its script in `peer_readers/`
names. The slide is generated H&E as SVS, one level, 256-px JPEG tiles at 4:2:0; patches have 256
px, aligned with the tiles or missing them by 100 px. Peers read row by row, which suits their
caches; we read shard by shard. Opening the slide is not measured.

- `peers-NAME-aligned`, `-unaligned`: one thread each, patches per second of CPU time. Ours is
  `fetch_shards` + `decode_patches`. The second table gives the same measurements by the wall clock,
  and how each peer's pixels differ from OpenSlide's.
- `peers-dataloader-*`, `peers-ray-tasks-*`: wall clock on all cores, the slide eight times over.
  Ours is the same two functions in one thread a core. In the rows with `-stream-` it is our Ray
  Data source, `read_patches`, with a consumer that decodes.

Wall-clock rates are valid only on a machine that does nothing else.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
import openslide
import tifffile
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from tests.benchmarks import harness
from tests.benchmarks.peer_readers import environments
from tests.benchmarks.peer_readers.environments import Environment, InstallError
from tests.benchmarks.peer_readers.protocol import Measurement, Pixels
from tests.benchmarks.peer_readers.shards import corners_of
from tests.benchmarks.reader import MPP, OFFSET, TILE, shards_of, write_slide

ROOT = Path(__file__).parents[2]
SIDE = 32
"""Tiles along a side of the slide."""
PASSES = 8
"""How often readers on all cores read the slide for one measurement: Ray's start of a dataset is
then a small part of it."""
PATIENCE = 300
"""Seconds after which a reader that does not answer is killed."""

ALIGNMENTS = {"aligned": 0, "unaligned": OFFSET}
Clock = Literal["cpu", "wall"]


@dataclass(frozen=True, kw_only=True)
class Reader:
    """A script of `peer_readers`.

    Attributes:
        name: part of the case's name.
        title: the table's name for it.
        script: the module.
        environment: where it runs, None for ours.
        options: of its command line, aligned and unaligned.
    """

    name: str
    title: str
    script: str
    environment: Environment | None = None
    options: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())


PLAIN = Reader(name="plain", title="ours", script="plain", options=(("1",), ("1",)))
THREADS = Reader(
    name="threads", title="ours, all cores", script="plain", options=((str(os.cpu_count()),),) * 2
)
STREAM = Reader(name="stream", title="ours by Ray Data", script="stream")

ON_ONE_CORE = (
    Reader(
        name="tiatoolbox",
        title="TIAToolbox",
        script="tiatoolbox",
        environment=environments.TIATOOLBOX,
    ),
    Reader(
        name="lazyslide",
        title="LazySlide",
        script="lazyslide",
        environment=environments.LAZYSLIDE,
        options=(("openslide",),) * 2,
    ),
    Reader(
        name="lazyslide-fastslide",
        title="LazySlide + fastslide",
        script="lazyslide",
        environment=environments.LAZYSLIDE,
        options=(("fastslide",),) * 2,
    ),
    Reader(
        name="tiffslide", title="tiffslide", script="tiffslide", environment=environments.TIFFSLIDE
    ),
    Reader(
        name="fastslide",
        title="fastslide",
        script="fastslide",
        environment=environments.FASTSLIDE,
        options=(("0",), ("64",)),
    ),
    Reader(name="pyvips", title="pyvips", script="pyvips", environment=environments.PYVIPS),
    Reader(name="cucim", title="cuCIM on CPU", script="cucim", environment=environments.CUCIM),
)
ON_ALL_CORES = (
    Reader(
        name="dataloader",
        title="OpenSlide + DataLoader",
        script="dataloader",
        environment=environments.DATALOADER,
    ),
    Reader(name="ray-tasks", title="OpenSlide in Ray tasks", script="ray_tasks"),
)


class ReaderError(Exception):
    """A reader failed; holds the last line that it printed."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a reader is given: files as `protocol` describes them."""

    slide: Path
    corners: Path
    expected: Path


class Running:
    """A reader's process."""

    def __init__(self, reader: Reader, process: subprocess.Popen[str], errors: Path) -> None:
        self._reader, self._process, self._errors = reader, process, errors
        self.pixels = Pixels(**self._answer())
        self.measurements: list[Measurement] = []

    @classmethod
    @contextmanager
    def start(cls, reader: Reader, work: Work, *, alignment: str) -> Iterator[Self]:
        """Run the reader while the block runs.

        Raises:
            ReaderError: it ended, or did not answer in time.
        """
        python = reader.environment.python if reader.environment else sys.executable
        options = reader.options[list(ALIGNMENTS).index(alignment)]
        arguments = (str(work.slide), str(work.corners), str(work.expected), *options)
        errors = work.slide.with_name(f"{reader.name}.log")
        with errors.open("w") as log:
            process = subprocess.Popen(
                [python, "-m", f"tests.benchmarks.peer_readers.{reader.script}", *arguments],
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1", "VIPS_CONCURRENCY": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
            try:
                yield cls(reader, process, errors)
            finally:
                try:
                    process.communicate(timeout=PATIENCE)  # closes its input, which ends it
                except (subprocess.TimeoutExpired, BrokenPipeError):
                    process.kill()
                    process.wait()

    def rate(self, clock: Clock) -> float:
        """Measure once: patches per second of that clock."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise ReaderError(self._last_words()) from error
        self.measurements.append(Measurement(**self._answer()))
        return self.rates(clock)[-1]

    def rates(self, clock: Clock) -> list[float]:
        """All measurements so far."""
        return [
            found.patches / (found.cpu if clock == "cpu" else found.wall)
            for found in self.measurements
        ]

    def _answer(self) -> dict[str, int | float]:
        assert self._process.stdout is not None
        patience = threading.Timer(PATIENCE, self._process.kill)
        patience.start()
        line = self._process.stdout.readline()
        patience.cancel()
        if not line:
            raise ReaderError(self._last_words())
        return json.loads(line)

    def _last_words(self) -> str:
        self._process.wait()
        lines = self._errors.read_text().strip().splitlines()
        last = lines[-1] if lines else f"exit code {self._process.returncode}"
        return f"{self._reader.title}: {last}"


def write_svs(path: Path) -> None:
    """The generated slide as Aperio's scanners write it: fastslide has a cache for SVS, and none
    for generic TIFF."""
    generic = path.with_name("generic.tif")
    write_slide(generic, subsampling=(2, 2), side=SIDE)
    content = generic.read_bytes()
    with tifffile.TiffFile(generic) as tiff, tifffile.TiffWriter(path) as svs:
        page = tiff.pages[0]
        svs.write(
            (
                content[start : start + length]
                for start, length in zip(page.dataoffsets, page.databytecounts, strict=True)
            ),
            shape=page.shape,
            dtype=page.dtype,
            photometric="ycbcr",
            compression="jpeg",
            subsampling=(2, 2),
            tile=(TILE, TILE),
            description=(
                f"Aperio Image Library\r\n{page.shape[1]}x{page.shape[0]} ({TILE}x{TILE}) "
                f"JPEG|AppMag = 40|MPP = {MPP}"
            ),
            metadata=None,
        )
    generic.unlink()


class Corners:
    """The patches of the slide at one alignment, in our order and in the peers'."""

    def __init__(self, slide: Path, *, offset: int) -> None:
        self._slide, self._offset = slide, offset
        self.by_shards = corners_of(shards_of(slide, size=TILE, offset=offset))
        self.by_rows = self.by_shards[np.lexsort((self.by_shards[:, 0], self.by_shards[:, 1]))]

    def work(self, *, ours: bool, passes: int) -> Work:
        """Files for a reader, in the slide's folder."""
        corners = self.by_shards if ours else self.by_rows
        name = f"{self._offset}-{'shards' if ours else 'rows'}"
        paths = (
            self._slide.with_name(f"{name}-{passes}.npy"),
            self._slide.with_name(f"{name}-expected.npy"),
        )
        np.save(paths[0], np.tile(corners, (passes, 1)))
        if not paths[1].exists():
            np.save(paths[1], self._read(corners))
        return Work(slide=self._slide, corners=paths[0], expected=paths[1])

    def _read(self, corners: NDArray[np.int64]) -> NDArray[np.uint8]:
        with openslide.OpenSlide(self._slide) as slide:
            return np.stack(
                [
                    np.asarray(slide.read_region(tuple(corner), 0, (TILE, TILE)))[..., :3]
                    for corner in corners.tolist()
                ]
            )


@dataclass(frozen=True, kw_only=True)
class Note:
    """What the harness's row does not hold: a peer's pixels and its wall-clock rate, or why it
    could not be measured."""

    case: str
    reader: str
    pixels: Pixels | None = None
    wall: float | None = None
    wall_ratio: float | None = None
    failure: str = ""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A reader of ours and a peer, at one alignment."""

    ours: Reader
    peer: Reader
    alignment: str

    @property
    def clock(self) -> Clock:
        """CPU time of one process, or the wall clock where there are several."""
        return "cpu" if self.peer in ON_ONE_CORE else "wall"

    @property
    def case(self) -> str:
        """The row's name."""
        by = "-stream" if self.ours is STREAM else ""
        return f"peers-{self.peer.name}{by}-{self.alignment}"

    def compare(self, corners: Corners, *, pairs: int) -> tuple[harness.Row, Note]:
        """Measure ours and the peer in turn."""
        passes = 1 if self.clock == "cpu" else PASSES
        unit = "patches/s/core" if self.clock == "cpu" else f"patches/s, {os.cpu_count()} cores"
        with (
            Running.start(
                self.ours, corners.work(ours=True, passes=passes), alignment=self.alignment
            ) as ours,
            Running.start(
                self.peer, corners.work(ours=False, passes=passes), alignment=self.alignment
            ) as peer,
        ):
            if ours.pixels.greatest:
                raise RuntimeError(
                    f"{self.case}: {self.ours.title} differs from OpenSlide's pixels: {ours.pixels}"
                )
            row = harness.compare(
                self.case,
                lambda: ours.rate(self.clock),
                lambda: peer.rate(self.clock),
                pairs=pairs,
                reference=self.peer.title,
                unit=unit,
            )
        walls = list(zip(ours.rates("wall"), peer.rates("wall"), strict=True))[
            1:
        ]  # without the warm-up
        return row, Note(
            case=self.case,
            reader=self.peer.title,
            pixels=peer.pixels,
            wall=statistics.median(theirs for _, theirs in walls),
            wall_ratio=statistics.median(a / b for a, b in walls),
        )


def print_notes(notes: Sequence[Note], sizes: dict[str, int]) -> None:
    """The second table, and the size of the environments."""
    table = Table(title="peers: pixels compared with OpenSlide's, and the wall clock")
    for column in (
        "case",
        "reader",
        "greatest difference",
        "pixels differing",
        "patches/s",
        "ours / theirs",
        "failure",
    ):
        table.add_column(column)
    for note in notes:
        pixels = (
            (f"{note.pixels.greatest} of 255", f"{note.pixels.share:.2%}")
            if note.pixels
            else ("", "")
        )
        wall = (f"{note.wall:,.0f}", f"{note.wall_ratio:.2f}") if note.wall else ("", "")
        table.add_row(note.case, note.reader, *pixels, *wall, note.failure)
    Console(width=170).print(table)
    print("environments, MB:", ", ".join(f"{name} {size}" for name, size in sizes.items()))


def main() -> None:
    given = harness.arguments(__doc__ or "")
    pairs = 3 if given.quick else 9
    rows, notes, missing = [], [], {}
    readers = {
        reader.environment.name: reader.environment
        for reader in (*ON_ONE_CORE, *ON_ALL_CORES)
        if reader.environment
    }
    for environment in readers.values():
        try:
            environment.install()
        except InstallError as error:
            missing[environment.name] = f"not installed: {error}"
    compared = [(PLAIN, peer) for peer in ON_ONE_CORE] + [
        (ours, peer) for peer in ON_ALL_CORES for ours in (THREADS, STREAM)
    ]
    with tempfile.TemporaryDirectory() as folder:
        slide = Path(folder) / "slide.svs"
        write_svs(slide)
        for alignment, offset in ALIGNMENTS.items():
            corners = Corners(slide, offset=offset)
            for ours, peer in compared:
                pair = Pair(ours=ours, peer=peer, alignment=alignment)
                print(pair.case, flush=True)
                try:
                    if peer.environment and peer.environment.name in missing:
                        raise ReaderError(missing[peer.environment.name])
                    row, note = pair.compare(corners, pairs=pairs)
                    rows.append(row)
                except ReaderError as error:
                    note = Note(case=pair.case, reader=peer.title, failure=str(error))
                notes.append(note)
    sizes = {
        name: environment.megabytes for name, environment in readers.items() if name not in missing
    }
    versions = {
        name: (*environment.packages, *environment.alone) for name, environment in readers.items()
    }
    extra = {
        "peers": [asdict(note) for note in notes],
        "environments": versions,
        "megabytes": sizes,
    }
    packages = ("simplejpeg", "openslide-python", "tifffile", "ray", "pyarrow", "numpy")
    harness.report("peers", rows, given, packages=packages, extra=extra)
    print_notes(notes, sizes)


if __name__ == "__main__":
    main()
