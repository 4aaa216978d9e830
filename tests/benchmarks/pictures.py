"""The README's pictures, all of generated tissue: a slide as `acinus prepare` shows it, artefacts,
and stains of three scanners.

    python -m tests.benchmarks.pictures [--json FOLDER] [--to FOLDER]

With `--json`, the folder of the benchmarks' JSON files, their plots are drawn too.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from pipelines.fingerprint import Fingerprint, colour_distance, fingerprint
from pipelines.grid import PatchSpec
from pipelines.index import index_slide
from pipelines.patches import decode_patches, fetch_shards
from pipelines.slides.opening import open_slide
from pipelines.synthetic.svs import SvsMetadata, write_svs
from pipelines.synthetic.synthesise import SynthConfig, synthesise
from pipelines.synthetic.tissue import MPP, generate_tile
from tests.benchmarks.page import plot
from tests.benchmarks.quality import drawn_cases

FOLDER = Path(__file__).with_name("pictures")
PLOTS = ("reader", "peers")
"""Benchmarks whose plots the README shows."""
SCANNERS = {
    "scanner A": np.eye(3),
    "scanner B": np.array([[0.75, 0.05, 0.0], [0.1, 0.8, 0.0], [0.0, 0.15, 1.1]]),
    "scanner C": np.array([[1.5, 0.0, 0.1], [0.0, 1.25, 0.0], [0.15, 0.0, 0.9]]),
}
"""What each does to the optical density of red, green and blue."""
WHITE = 243.0
PATCHES = slice(7, 10)
"""Neighbours on the slides that are shown."""
SHOWN = ("", "macenko", "reinhard")


def slide_picture() -> Image.Image:
    """A prepared slide's `overview.png`: the tissue of a generated biopsy without ink."""
    with tempfile.TemporaryDirectory() as folder:
        synthesise(SynthConfig(out=folder, slides=5, test_slides=0, core_length=9, seed=3))
        with open_slide(str(sorted(Path(folder).rglob("*.svs"))[3])) as slide:
            indexed = index_slide(slide, PatchSpec(size=224, mpp=0.5), organisation="local")
        return Image.open(io.BytesIO(indexed.picture())).convert("RGB").reduce(2)


def artefacts_picture() -> Image.Image:
    """Ink, a coverslip's edge and bubbles: as drawn, and as found (the truth outlined in black)."""
    wanted = ("drawn-pen-blue", "drawn-pen-green", "drawn-edge", "drawn-bubble")
    pictures = [case.picture() for case in drawn_cases() if case.name in wanted]
    stacked = np.concatenate([np.asarray(picture) for picture in pictures[:3:2]])
    return Image.fromarray(stacked).reduce(2)


def stain_picture() -> Figure:
    """The same tissue by three scanners, a row per method.

    With the colours of each fingerprint, and their distance to scanner A.
    """
    figure = Figure(figsize=(13, 6.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(SHOWN) + 1, len(SCANNERS), height_ratios=(4, 4, 4, 1))
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{scanner}.svs" for scanner in SCANNERS]
        for path, densities in zip(paths, SCANNERS.values(), strict=True):
            write_svs(path, _scanned(densities), SvsMetadata(mpp=MPP))
        for row, method in zip(axes, SHOWN, strict=False):
            seen = [_as_models_see(path, method) for path in paths]
            for panel, scanner, (patches, found) in zip(row, SCANNERS, seen, strict=True):
                distance = colour_distance(seen[0][1], found)
                title = f"{method or scanner}: colour distance to A {distance:.1f}"
                _image(panel, np.concatenate(list(patches[PATCHES]), axis=1), title)
                if not method:
                    _swatches(axes[-1, list(SCANNERS).index(scanner)], found)
    return figure


def _scanned(densities: NDArray[np.float64]) -> NDArray[np.uint8]:
    """A core between glass, seen with other densities, uint8 [H, W, 3]."""
    pixels = np.full((1024, 3072, 3), WHITE)
    rng = np.random.default_rng(5)
    for k, pattern in enumerate(("gleason_3", "benign", "gleason_4", "gleason_3")):
        pixels[150:850, 136 + 700 * k : 836 + 700 * k] = generate_tile(pattern, rng, side=700)
    absorbed = -np.log(np.clip(pixels, 1, WHITE) / WHITE) @ densities.T
    return np.rint(WHITE * np.exp(-np.clip(absorbed, 0, None))).astype(np.uint8)


def _as_models_see(path: Path, method: str) -> tuple[NDArray[np.uint8], Fingerprint]:
    """All patches of a slide, and their fingerprint."""
    with open_slide(str(path)) as slide:
        shards = index_slide(
            slide, PatchSpec(size=224, mpp=0.5, stain=method), organisation="local"
        ).shards
        patches = decode_patches(fetch_shards(shards))["patch"]
        return patches, fingerprint(slide, patches, glass=(WHITE, WHITE, WHITE))


def _swatches(axes: Axes, found: Fingerprint) -> None:
    """Glass, haematoxylin and eosin of a fingerprint as colours."""
    glass = np.array(found.glass)
    stains = (found.haematoxylin, found.eosin)
    colours = [
        glass * np.exp(-np.array(stain) * depth)
        for stain, depth in zip(stains, found.maxima, strict=True)
    ]
    _image(
        axes,
        np.rint(np.array([[glass, *colours]])).astype(np.uint8),
        "fingerprint: glass, haematoxylin, eosin",
        flat=True,
    )


def _image(axes: Axes, pixels: NDArray[np.uint8], title: str, *, flat: bool = False) -> None:
    axes.imshow(pixels, aspect="auto" if flat else "equal")
    axes.set_title(title, fontsize=9)
    axes.set_axis_off()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="folder of the benchmarks' JSON files")
    parser.add_argument("--to", type=Path, default=FOLDER, help="where the pictures go")
    given = parser.parse_args()
    given.to.mkdir(parents=True, exist_ok=True)
    slide_picture().save(given.to / "slide.png", optimize=True)
    artefacts_picture().save(given.to / "artefacts.png", optimize=True)
    stain_picture().savefig(given.to / "stain.png", dpi=80)
    if given.json:
        for name in PLOTS:
            plot(json.loads((given.json / f"{name}.json").read_text())).savefig(
                given.to / f"{name}.png", dpi=110
            )


if __name__ == "__main__":
    main()
