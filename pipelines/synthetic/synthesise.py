"""Make a cohort: slides with biopsy cores assembled from tiles of known pattern, with region
annotations and a manifest.

Tiles come from a folder of real tissue (class folders) or, without one, from
`pipelines.synthetic.tissue`. Real tiles are divided between the splits before slides are made, so a
slide of split `test` shows tissue that no training slide shows. The answer per region is known
because each region is filled with tiles of one pattern.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import shapely
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from pipelines.annotations import PATTERNS, Region, write_regions
from pipelines.fields import require
from pipelines.slides.resolution import PLAUSIBLE_MPP, is_plausible
from pipelines.synthetic.svs import SvsMetadata, write_svs
from pipelines.synthetic.tissue import MPP, generate_tile

TILE = 750
"""Side of a tile in pixels of level 0, the size of the published prostate tiles: 172 um."""
GLASS = (243, 241, 244)
CORE_WIDTH = 2
"""Tiles across a core: 345 um, a thin 18-gauge core."""
MARGIN = 400
"""Glass around a core, pixels of level 0."""
MAX_SLIDES, MAX_CORES, MAX_LENGTH = 10_000, 8, 100
"""Of a cohort, a slide and a core in tiles: one slide then has 3.5 GB of pixels at most."""
GENERATED_TILES = 6
"""Of each pattern and split, where there are no real ones."""
TEST_SHARE = 0.4
"""Share of the real tiles that only test slides show."""

CASES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("benign", ("benign",)),
    ("3+3", ("benign", "gleason_3")),
    ("3+4", ("gleason_3", "gleason_3", "gleason_4", "benign")),
    ("4+3", ("gleason_4", "gleason_4", "gleason_3", "benign")),
    ("4+4", ("gleason_4", "benign")),
    ("4+5", ("gleason_4", "gleason_4", "gleason_5", "benign")),
    ("5+4", ("gleason_5", "gleason_5", "gleason_4", "benign")),
)
"""Slide labels and the patterns of their segments, dealt to slides in turn."""


@dataclass(frozen=True, kw_only=True)
class SynthConfig:
    """What cohort to make.

    Attributes:
        out: local folder.
        slides: number of slides.
        test_slides: how many of them are of split `test`, the last ones; None is a quarter of
            them, at most 3.
        tiles: folder with one folder of tiles per pattern (`Benign`, `Gleason3`, `Gleason4`,
            `Gleason5`); None generates them.
        tile_mpp: micrometres per pixel of the tiles.
        cores: cores per slide.
        core_length: length of a core in tiles.
        seed: source of all randomness.

    Raises:
        ValueError: a value that can't be used; names the field, the value and what is allowed.
    """

    out: str
    slides: int = 12
    test_slides: int | None = None
    tiles: str | None = None
    tile_mpp: float = MPP
    cores: int = 2
    core_length: int = 14
    seed: int = 0

    def __post_init__(self) -> None:
        low, high = PLAUSIBLE_MPP
        local = bool(self.out.strip()) and "://" not in self.out
        shown = f"0 to {self.slides}: the number of slides"
        require("out", self.out, local, "a local folder")
        require("slides", self.slides, 1 <= self.slides <= MAX_SLIDES, f"1 to {MAX_SLIDES}")
        require("test_slides", self.test_slides, 0 <= self.held_out <= self.slides, shown)
        require(
            "tile_mpp",
            self.tile_mpp,
            is_plausible(self.tile_mpp),
            f"{low:g} to {high:g} um per pixel",
        )
        require("cores", self.cores, 1 <= self.cores <= MAX_CORES, f"1 to {MAX_CORES}")
        require(
            "core_length",
            self.core_length,
            1 <= self.core_length <= MAX_LENGTH,
            f"1 to {MAX_LENGTH} tiles",
        )
        require("seed", self.seed, self.seed >= 0, "at least 0")

    @property
    def held_out(self) -> int:
        """Number of slides of split `test`."""
        return min(3, self.slides // 4) if self.test_slides is None else self.test_slides


TileSource = Callable[[str, np.random.Generator], NDArray[np.uint8]]


def synthesise(
    config: SynthConfig, *, on_slide: Callable[[int], None] = lambda _count: None
) -> str:
    """Write slides, annotations and `manifest.csv` into `config.out`.

    Returns:
        Path of the manifest.

    Raises:
        FileNotFoundError: `config.tiles` lacks a class folder or its images.
    """
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    sources = {split: _tile_source(config, split) for split in ("train", "test")}
    rows = []
    for k in range(config.slides):
        split = "test" if k >= config.slides - config.held_out else "train"
        label, patterns = _label_of(k, split, config)
        name = f"slide-{k:03d}"
        _write_slide(
            out / name, patterns, sources[split], config, np.random.default_rng((config.seed, k))
        )
        rows.append([f"{name}.svs", f"case-{k:03d}", split, label, f"{name}.geojson"])
        on_slide(k + 1)
    manifest = out / "manifest.csv"
    with manifest.open("w", newline="") as stream:
        csv.writer(stream).writerows([["slide", "case", "split", "label", "annotation"], *rows])
    return str(manifest)


def _label_of(k: int, split: str, config: SynthConfig) -> tuple[str, tuple[str, ...]]:
    """Train slides go through all cases; test slides begin at 4+3, a case with three patterns."""
    first = config.slides - config.held_out
    return CASES[(k - first + 3) % len(CASES)] if split == "test" else CASES[k % len(CASES)]


def tile_pool(config: SynthConfig, split: str) -> dict[str, list[NDArray[np.uint8]]]:
    """The tiles that slides of a split are assembled from.

    Returns:
        uint8 [TILE, TILE, 3] at `config.tile_mpp`, by PATTERNS.

    Raises:
        FileNotFoundError: `config.tiles` lacks a class folder or its images.
    """
    if config.tiles is not None:
        return {pattern: _read_tiles(Path(config.tiles), pattern, split) for pattern in PATTERNS}
    return {
        pattern: [
            generate_tile(
                pattern,
                np.random.default_rng((config.seed, number, split == "test", k)),
                side=TILE,
            )
            for k in range(GENERATED_TILES)
        ]
        for number, pattern in enumerate(PATTERNS)
    }


def _tile_source(config: SynthConfig, split: str) -> TileSource:
    pool = tile_pool(config, split)

    def tile(pattern: str, rng: np.random.Generator) -> NDArray[np.uint8]:
        chosen = np.rot90(
            pool[pattern][int(rng.integers(len(pool[pattern])))], int(rng.integers(4))
        )
        return chosen[:, ::-1] if rng.integers(2) else chosen

    return tile


def _read_tiles(folder: Path, pattern: str, split: str) -> list[NDArray[np.uint8]]:
    paths = sorted((folder / pattern.capitalize().replace("_", "")).glob("*.jpg"))
    if not paths:
        raise FileNotFoundError(
            f"{folder} has no tiles of {pattern}: folder {pattern.capitalize().replace('_', '')}"
        )
    held_out = round(len(paths) * TEST_SHARE)
    chosen = paths[:held_out] if split == "test" else paths[held_out:]
    return [np.asarray(Image.open(path).convert("RGB").resize((TILE, TILE))) for path in chosen]


def _write_slide(
    stem: Path,
    patterns: Sequence[str],
    source: TileSource,
    config: SynthConfig,
    rng: np.random.Generator,
) -> None:
    core = (CORE_WIDTH * TILE, config.core_length * TILE)
    height = core[1] + 2 * MARGIN
    width = config.cores * (core[0] + MARGIN) + MARGIN
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:] = GLASS
    regions = []
    for k in range(config.cores):
        left = MARGIN + k * (core[0] + MARGIN)
        for pattern, first, last in _segments(patterns, config.core_length, rng):
            for row in range(first, last):
                for column in range(CORE_WIDTH):
                    top, start = MARGIN + row * TILE, left + column * TILE
                    pixels[top : top + TILE, start : start + TILE] = source(pattern, rng)
            outline = shapely.box(left, MARGIN + first * TILE, left + core[0], MARGIN + last * TILE)
            regions.append(Region(pattern=pattern, outline=outline))
        _ragged_edges(pixels[:, left : left + core[0]], rng)
    metadata = SvsMetadata(
        mpp=config.tile_mpp,
        fields=(
            ("Filename", f"DOE^JANE {stem.name}"),
            ("Date", "01/02/24"),
            ("User", "technician"),
        ),
        label=f"DOE JANE\n{stem.name}",
    )
    write_svs(stem.with_suffix(".svs"), pixels, metadata)
    write_regions(str(stem.with_suffix(".geojson")), regions)


def _segments(
    patterns: Sequence[str], length: int, rng: np.random.Generator
) -> list[tuple[str, int, int]]:
    """Divide a core among its patterns in random order: (pattern, first row, end row)."""
    order = [patterns[k] for k in rng.permutation(len(patterns))]
    bounds = np.rint(np.linspace(0, length, len(order) + 1)).astype(int).tolist()
    return list(zip(order, bounds, bounds[1:], strict=False))


def _ragged_edges(strip: NDArray[np.uint8], rng: np.random.Generator) -> None:
    """Fray a core's long edges to glass, as a needle leaves them; at most 60 px, so that regions
    keep their pattern."""
    height, width = strip.shape[:2]
    for side in (0, 1):
        rough = ndimage.gaussian_filter1d(rng.normal(0, 1, height), 40)
        depth = np.clip(30 + 25 * rough / max(1e-6, float(np.abs(rough).max())), 2, 60).astype(int)
        columns = np.arange(60)
        gone = columns[None] < depth[:, None]
        band = strip[:, :60] if side == 0 else strip[:, width - 60 :][:, ::-1]
        band[gone] = GLASS
