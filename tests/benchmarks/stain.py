"""What stain normalisation costs and how exact it is: a slide's fit applied to patches, against
fitting every patch.

    python -m tests.benchmarks.stain [--json FILE] [--quick]

`apply-*` are patches of 224 px per second of CPU time, against fitting and applying on every patch
by the same code, and against torchstain. `within-a-level-*` is the share of all 16.7 million
colours, channel by channel, that differ by at most one level from the float64 oracle; `exact-*` of
those that do not differ. `fit-*` is a slide's fit, in fits per second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torchstain.numpy.normalizers import NumpyMacenkoNormalizer

from pipelines.stain import METHODS, StainFit, fit_slide_stain, fit_stain
from pipelines.synthetic.tissue import generate_tile
from tests.benchmarks import harness
from tests.pipelines.test_stain import oracle
from tests.support.shared_data import shared_data


def tissue() -> NDArray[np.uint8]:
    """16 patches of 224 px: real ones where there are any."""
    folder = shared_data()
    if folder is None:
        rng = np.random.default_rng(4)
        return np.stack(
            [
                generate_tile(name, rng, side=224)
                for name in ("benign", "gleason_3", "gleason_4", "gleason_5") * 4
            ]
        )
    tiles = sorted((folder / "tiles" / "gleason_arvaniti").rglob("*.jpg"))[::10]
    return np.stack([np.asarray(Image.open(tile).convert("RGB"))[:224, :224] for tile in tiles])


def apply_rows(patches: NDArray[np.uint8], *, pairs: int) -> Iterator[harness.Row]:
    out = np.empty_like(patches)
    for method in METHODS:
        fit = fit_slide_stain("bench", patches, method=method)
        ours = _rate(lambda fit=fit: len(fit.apply(patches, out)))  # type: ignore[misc]
        each = _rate(lambda method=method: _fit_each(patches, method))  # type: ignore[misc]
        named = {"unit": "patches/s/core", "pairs": pairs}
        yield harness.compare(
            f"apply-{method}", ours, each, reference="a fit per patch", goal=5.0, **named
        )  # type: ignore[arg-type]
        if method == "macenko":
            yield harness.compare(
                f"apply-{method}-torchstain",
                ours,
                _rate(lambda: _torchstain(patches)),
                reference="torchstain",
                **named,
            )  # type: ignore[arg-type]


def exactness_rows(patches: NDArray[np.uint8], *, step: int) -> Iterator[harness.Row]:
    for method in METHODS:
        off = _differences(fit_slide_stain("bench", patches, method=method), step=step)
        for case, share, goal in (
            ("within-a-level", float((off <= 1).mean()), 1.0),
            ("exact", float((off == 0).mean()), 0.99),
        ):
            named = {
                "reference": "float64 oracle",
                "reference_value": 100.0,
                "unit": "% of all colours",
            }
            yield harness.Row(
                case=f"{case}-{method}",
                ours=100 * share,
                ratio=share,
                spread=(share, share),
                goal=goal,
                **named,
            )  # type: ignore[arg-type]


def fit_rows(patches: NDArray[np.uint8], *, pairs: int) -> Iterator[harness.Row]:
    normalise = _rate(lambda: _torchstain(patches[:1]))
    for method in METHODS:
        fit = _rate(
            lambda method=method: int(fit_slide_stain("bench", patches, method=method) is not None)
        )  # type: ignore[misc]
        named = {"reference": "torchstain, 1 patch", "unit": "fits/s/core", "pairs": pairs}
        yield harness.compare(f"fit-{method}", fit, normalise, **named)  # type: ignore[arg-type]


def _differences(fit: StainFit, *, step: int) -> NDArray[np.uint8]:
    """Levels between ours and the oracle, for every `step`-th red with every green and blue."""
    levels = np.arange(256, dtype=np.uint8)
    found = []
    for red in levels[::step]:
        colours = np.stack(np.meshgrid([red], levels, levels, indexing="ij"), axis=-1).reshape(
            -1, 3
        )
        normalised = fit.apply(colours.reshape(1, 256, 256, 3).copy()).reshape(-1, 3)
        found.append(np.abs(normalised - oracle(colours, fit)).astype(np.uint8))
    return np.concatenate(found)


def _rate(work: Callable[[], int]) -> Callable[[], float]:
    return lambda: harness.cpu_rate(work)


def _fit_each(patches: NDArray[np.uint8], method: str) -> int:
    for patch in patches:
        fit_stain(patch.reshape(-1, 3), method=method).apply(patch[None].copy())
    return len(patches)


def _torchstain(patches: NDArray[np.uint8]) -> int:
    for patch in patches:
        NumpyMacenkoNormalizer().normalize(patch, stains=False)
    return len(patches)


def main() -> None:
    given = harness.arguments(__doc__ or "")
    patches = tissue()
    pairs = 3 if given.quick else 9
    rows = [
        *apply_rows(patches, pairs=pairs),
        *fit_rows(patches, pairs=pairs),
        *exactness_rows(patches, step=8 if given.quick else 1),
    ]
    harness.report("stain", rows, given, packages=("numpy", "torchstain"))


if __name__ == "__main__":
    main()
