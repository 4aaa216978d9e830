"""How well artefacts and tissue are found: intersection over union with masks that people drew, and
with drawn slides.

    python -m tests.benchmarks.quality [--json FILE] [--quick] [--pictures FOLDER]

The masks of `histoqc-*` come with HistoQC. Their scale is unknown: 20 um a pixel is assumed, 10 for
the one that is drawn finer. The rules' constants were set on these four pictures, as there were no
others: their metrics are optimistic. The mask of red ink leaves faint strokes out: `-with-faint`
shows what finding them costs there. `drawn-*` and `tissue-*` are drawn with known masks;
`pale-0.12` is a stain of 12 % of the usual depth. `focus-*` is the area under the curve that
separates sharp patches, deep and pale, from blurred ones; `patch-quality` is what measuring costs.
`--pictures` writes masks over thumbnails, and patches before and after stain normalisation, as PNG.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from scipy import ndimage
from skimage.segmentation import find_boundaries
from sklearn.metrics import roc_auc_score

from pipelines.overview import overview_picture
from pipelines.quality import Artefacts, artefacts, patch_quality
from pipelines.slides.errors import NoTissue
from pipelines.stain import METHODS, fit_stain
from pipelines.synthetic.tissue import generate_tile
from pipelines.tissue import tissue_mask
from tests.benchmarks import harness
from tests.support.shared_data import shared_data
from tests.support.thumbnails import INK, SIDE, THUMBNAIL_MPP, Drawn, cores, disc, iou, line

GOAL = 0.7
HISTOQC = {
    "pen-black": ("pen_black", "pen", 10.0),
    "pen-green": ("pen_green", "pen", 20.0),
    "pen-red": ("pen_red", "pen", 20.0),
    "coverslip-edge": ("coverslip_edge_he", "edge", 20.0),
}
"""Case: picture, which of the artefacts, assumed mpp."""
TISSUE = {
    "300um": (300, 1.0, (243, 243, 243)),
    "600um": (600, 1.0, (243, 243, 243)),
    "1000um": (1000, 1.0, (243, 243, 243)),
    "300um-pale-0.35": (300, 0.35, (243, 243, 243)),
    "600um-pale-0.2": (600, 0.2, (243, 243, 243)),
    "600um-pale-0.12": (600, 0.12, (243, 243, 243)),
    "600um-pale-0.2-yellowish": (600, 0.2, (225, 215, 190)),
}
"""Case: width of the cores, depth of the stain, colour of the glass."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A picture, what is found on it, and what should be."""

    name: str
    pixels: NDArray[np.uint8]
    mpp: float
    found: Artefacts
    mask: NDArray[np.bool_]
    truth: NDArray[np.bool_]

    def row(self) -> harness.Row:
        share = iou(self.mask, self.truth)
        return harness.Row(
            case=self.name,
            ours=100 * share,
            reference="drawn mask",
            reference_value=100.0,
            unit="% of union",
            ratio=share,
            spread=(share, share),
            goal=None if self.name.endswith("-with-faint") else GOAL,
        )

    def picture(self) -> Image.Image:
        """The picture, what is found on it, and the truth outlined in black."""
        try:
            tissue = tissue_mask(self.name, self.pixels, mpp=self.mpp, found=self.found)
        except NoTissue:
            tissue = np.zeros(self.mask.shape, bool)
        drawn = Image.open(
            _stream(
                overview_picture(self.pixels, tissue, np.empty((0, 4)), self.found, mpp=self.mpp)
            )
        )
        marked = np.array(drawn)
        before = np.full_like(marked, 255)
        before[: len(self.pixels)] = self.pixels
        marked[: len(self.pixels)][find_boundaries(self.truth, mode="inner")] = 0
        return Image.fromarray(np.concatenate([before, marked], axis=1))


def real_cases(folder: Path) -> Iterator[Case]:
    for name, (picture, kind, mpp) in HISTOQC.items():
        pixels = np.asarray(Image.open(folder / "histoqc" / f"{picture}.png").convert("RGB"))
        truth = (
            np.asarray(Image.open(folder / "histoqc" / f"{picture}_mask.png").convert("L")) > 127
        )
        found = artefacts(pixels, mpp=mpp)
        yield Case(
            name=f"histoqc-{name}",
            pixels=pixels,
            mpp=mpp,
            found=found,
            mask=getattr(found, kind),
            truth=truth,
        )
        if found.faint.any():
            mask = found.pen | found.faint
            yield Case(
                name=f"histoqc-{name}-with-faint",
                pixels=pixels,
                mpp=mpp,
                found=found,
                mask=mask,
                truth=truth,
            )


def drawn_cases() -> Iterator[Case]:
    for colour, light in INK.items():
        drawn = cores(width_um=700)
        drawn.absorb("pen", line([(60, 150), (400, 60), (700, 300)], 40), light, soft=2)
        yield _of(f"drawn-pen-{colour}", drawn, "pen")
    drawn = cores(width_um=700)
    drawn.absorb("edge", line([(880, 0), (905, 500), (890, SIDE)], 8), (0.3, 0.3, 0.3))
    for x, y, radius in ((760, 820, 60), (300, 860, 35), (420, 500, 40)):
        drawn.absorb("rim", disc(x, y, radius) & ~disc(x, y, radius - 3), (0.35, 0.35, 0.35))
        drawn.artefacts["bubble"] = drawn.artefacts.get(
            "bubble", np.zeros((SIDE, SIDE), bool)
        ) | disc(x, y, radius)
    yield _of("drawn-edge", drawn, "edge")
    yield _of("drawn-bubble", drawn, "bubble")


def tissue_cases() -> Iterator[Case]:
    for name, (width, depth, glass) in TISSUE.items():
        drawn = cores(width_um=width, depth=depth)
        pixels = drawn.photograph(glass=glass)
        found = artefacts(pixels, mpp=THUMBNAIL_MPP)
        mask = tissue_mask(name, pixels, mpp=THUMBNAIL_MPP, found=found)
        yield Case(
            name=f"tissue-{name}",
            pixels=pixels,
            mpp=THUMBNAIL_MPP,
            found=found,
            mask=mask,
            truth=drawn.tissue,
        )


def sharp_patches(folder: Path | None) -> NDArray[np.uint8]:
    """Patches of 224 px at 0.5 um a pixel: real ones where there are any."""
    if folder is None:
        rng = np.random.default_rng(4)
        return np.stack(
            [
                generate_tile(name, rng, side=224)
                for name in ("benign", "gleason_3", "gleason_4", "gleason_5") * 8
            ]
        )
    tiles = sorted((folder / "tiles" / "gleason_arvaniti").rglob("*.jpg"))
    opened = (
        Image.open(tile)
        .convert("RGB")
        .resize((345, 345), Image.Resampling.BOX)
        .crop((0, 0, 224, 224))
        for tile in tiles
    )
    return np.stack([np.asarray(image) for image in opened])


def focus_rows(sharp: NDArray[np.uint8]) -> Iterator[harness.Row]:
    """Sharp patches, deep and pale, against the same ones blurred."""
    pale = np.rint(243 - (243 - sharp.astype(float)) * 0.35).astype(np.uint8)
    clear = np.concatenate([patch_quality(sharp).focus, patch_quality(pale).focus])
    for sigma in (1.0, 1.5, 2.0):
        soft = np.stack(
            [
                np.asarray(Image.fromarray(patch).filter(ImageFilter.GaussianBlur(sigma)))
                for patch in sharp
            ]
        )
        blurred = patch_quality(soft).focus
        area = float(
            roc_auc_score([1] * len(clear) + [0] * len(blurred), np.concatenate([clear, blurred]))
        )
        named = {"reference": "perfect", "reference_value": 100.0, "unit": "% area under curve"}
        yield harness.Row(
            case=f"focus-{sigma:g}px",
            ours=100 * area,
            ratio=area,
            spread=(area, area),
            goal=0.9,
            **named,
        )  # type: ignore[arg-type]


def cost_row(patches: NDArray[np.uint8], *, pairs: int) -> harness.Row:
    """All of `patch_quality` against scipy's Laplacian alone."""

    def laplacian() -> int:
        for patch in patches:
            ndimage.laplace(patch.mean(axis=2)).var()
        return len(patches)

    def ours() -> int:
        return len(patch_quality(patches).focus)

    named = {"reference": "scipy's Laplacian alone", "unit": "patches/s/core", "pairs": pairs}
    return harness.compare(
        "patch-quality-224",
        lambda: harness.cpu_rate(ours),
        lambda: harness.cpu_rate(laplacian),
        **named,  # type: ignore[arg-type]
    )


def stain_panel(pictures: list[NDArray[np.uint8]]) -> Image.Image:
    """A column per picture: its middle as scanned, then by each method fitted to the picture."""
    columns = []
    for picture in pictures:
        top, left = (picture.shape[0] - 224) // 2, (picture.shape[1] - 224) // 2
        middle = picture[top : top + 224, left : left + 224]
        fits = [fit_stain(picture.reshape(-1, 3), method=method) for method in METHODS]
        columns.append(
            np.concatenate([middle, *(fit.apply(middle[None].copy())[0] for fit in fits)])
        )
    return Image.fromarray(np.concatenate(columns, axis=1))


def write_pictures(to: Path, cases: list[Case], folder: Path | None) -> None:
    to.mkdir(parents=True, exist_ok=True)
    for case in cases:
        case.picture().save(to / f"{case.name}.png")
    shown = list(sharp_patches(folder)[16::32])
    if folder is not None:
        others = ("torchstain_source.png", "torchstain_target.png", "hgsc_nest.jpg", "histo.jpg")
        shown += [
            np.asarray(Image.open(folder / "misc" / other).convert("RGB")) for other in others
        ]
    stain_panel(shown).save(to / "stain.png")


def _of(name: str, drawn: Drawn, kind: str) -> Case:
    pixels = drawn.photograph()
    found = artefacts(pixels, mpp=THUMBNAIL_MPP)
    truth = drawn.artefacts[kind]
    return Case(
        name=name,
        pixels=pixels,
        mpp=THUMBNAIL_MPP,
        found=found,
        mask=getattr(found, kind),
        truth=truth,
    )


def _stream(content: bytes) -> io.BytesIO:
    return io.BytesIO(content)


def _pictures() -> Path | None:
    """Take `--pictures` off the command line; the rest is the harness's."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--pictures", type=Path)
    given, sys.argv[1:] = parser.parse_known_args()
    folder: Path | None = given.pictures
    return folder


def main() -> None:
    to, given, folder = _pictures(), harness.arguments(__doc__ or ""), shared_data()
    if folder is None:
        print("no real slides here: drawn ones only")
    cases = [*(real_cases(folder) if folder else ()), *drawn_cases(), *tissue_cases()]
    sharp = sharp_patches(folder)
    rows = [case.row() for case in cases]
    rows += [*focus_rows(sharp), cost_row(sharp[:64], pairs=3 if given.quick else 9)]
    harness.report("quality", rows, given, packages=("numpy", "scipy", "scikit-image", "pillow"))
    if to is not None:
        write_pictures(to, cases, folder)


if __name__ == "__main__":
    main()
