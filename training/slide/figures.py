"""Pictures of a slide model on held-out slides: confusion of patterns, grades slide by slide, where
attention is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure

from pipelines.annotations import PATTERNS, UNLABELLED
from training.pictures import png
from training.slide.calibration import Calibration
from training.slide.gleason import GRADE_GROUPS
from training.slide.labelled_slides import LabelledSlide
from training.slide.slide_model import SlidePrediction

WORDS: Final = tuple(pattern.replace("_", " ") for pattern in PATTERNS)
COLOURS: Final = ("#d9d9d9", "#9fc8e8", "#f2c14e", "#e4572e", "#6a040f")
"""Unlabelled, then PATTERNS: light to dark with the grade, apart for colour-blind readers."""


def confusion_figure(confusion: npt.NDArray[np.integer], balanced_accuracy: float) -> bytes:
    """PNG: annotated against predicted pattern, share of the annotated and counts."""
    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.add_subplot()
    totals = confusion.sum(axis=1, keepdims=True)
    shares = np.divide(confusion, totals, out=np.zeros(confusion.shape), where=totals > 0)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row in range(len(PATTERNS)):
        for column in range(len(PATTERNS)):
            text = (
                f"{shares[row, column]:.0%}\n{confusion[row, column]:,}" if totals[row, 0] else "-"
            )
            axes.text(
                column,
                row,
                text,
                ha="center",
                va="center",
                color="white" if shares[row, column] > 0.55 else "black",
            )
    axes.set_xticks(range(len(WORDS)), WORDS)
    axes.set_yticks(range(len(WORDS)), WORDS)
    axes.set_xlabel("predicted")
    axes.set_ylabel("annotated")
    axes.set_title(f"Patches of held-out slides: balanced accuracy {balanced_accuracy:.2f}")
    figure.colorbar(image, ax=axes, label="share of the annotated", shrink=0.8)
    return png(figure)


def reliability_figure(calibrations: Mapping[str, Calibration]) -> bytes:
    """PNG: accuracy against confidence of held-out answers, before and after calibration."""
    figure = Figure(figsize=(5.2 * len(calibrations), 4.8), layout="constrained")
    panels = figure.subplots(1, len(calibrations), squeeze=False)[0]
    for axes, (title, found) in zip(panels, calibrations.items(), strict=True):
        axes.plot([0, 1], [0, 1], color="#7f7f7f", linestyle="--", linewidth=1)
        for name, bins, error, colour in (
            ("before", found.before, found.error_before, "#d95f02"),
            ("after", found.after, found.error_after, "#1f5f99"),
        ):
            shown = [k for k, share in enumerate(bins.weight) if share > 0]
            axes.plot(
                [bins.confidence[k] for k in shown],
                [bins.accuracy[k] for k in shown],
                color=colour,
                label=f"{name}: calibration error {error:.3f}",
            )
            axes.scatter(
                [bins.confidence[k] for k in shown],
                [bins.accuracy[k] for k in shown],
                s=[15 + 400 * bins.weight[k] for k in shown],
                color=colour,
                alpha=0.7,
            )
        axes.set_xlim(0, 1.03)
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlabel("probability of the most probable answer")
        axes.set_ylabel("share that was right")
        axes.set_title(f"{title}: {found.answers:,} held out, temperature {found.temperature:.2f}")
        axes.legend(loc="lower right")
    return png(figure)


def grades_figure(
    names: Sequence[str],
    probabilities: npt.NDArray[np.floating],
    truth: Sequence[int],
    by_area: Sequence[int],
) -> bytes:
    """PNG: the attention model's grade group probabilities of each slide [S, 6], its label and the
    grade by areas.
    """
    figure = Figure(figsize=(7.5, 1.6 + 0.32 * len(names)), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(probabilities, cmap="Greys", vmin=0, vmax=1, aspect="auto")
    rows = np.arange(len(names))
    axes.scatter(
        truth, rows, s=110, facecolors="none", edgecolors="#1f77b4", linewidths=2, label="label"
    )
    axes.scatter(by_area, rows, s=40, marker="x", color="#d95f02", linewidths=2, label="by areas")
    axes.set_xticks(range(len(GRADE_GROUPS)), ["benign", *map(str, GRADE_GROUPS[1:])])
    axes.set_yticks(rows, names)
    axes.set_xlabel("ISUP grade group")
    axes.set_title("Held-out slides: probability by attention (grey)")
    figure.colorbar(image, ax=axes, label="probability")
    figure.legend(loc="outside lower center", ncols=2)
    return png(figure)


def attention_figure(slides: Sequence[tuple[LabelledSlide, SlidePrediction]]) -> bytes:
    """PNG: annotated pattern, predicted pattern and attention over each slide."""
    figure = Figure(figsize=(9, 3.4 * len(slides)), layout="constrained")
    grid = figure.subplots(len(slides), 3, squeeze=False)
    for axes, (slide, found) in zip(grid, slides, strict=True):
        look = {
            "cmap": ListedColormap(COLOURS),
            "norm": BoundaryNorm(np.arange(UNLABELLED - 0.5, len(PATTERNS)), len(COLOURS)),
        }
        lift = np.log2(np.maximum(found.attention * len(found.attention), 1 / 16))
        _mosaic(axes[0], slide, slide.patterns, look)
        named = _mosaic(axes[1], slide, found.patch_probabilities.argmax(axis=1), look)
        attended = _mosaic(axes[2], slide, lift, {"cmap": "coolwarm", "vmin": -4, "vmax": 4})
        bar = figure.colorbar(named, ax=axes[1], shrink=0.8)
        bar.set_ticks(range(UNLABELLED, len(PATTERNS)), labels=["unlabelled", *WORDS])
        bar = figure.colorbar(attended, ax=axes[2], shrink=0.8)
        bar.set_ticks([-4, -2, 0, 2, 4], labels=["1/16", "1/4", "1", "4", "16"])
        for panel, title in zip(
            axes,
            (f"{slide.short_id} ({slide.label}): annotated", "predicted", "attention (1: average)"),
            strict=True,
        ):
            panel.set_title(title, fontsize=9)
    return png(figure)


def _mosaic(
    axes: Axes, slide: LabelledSlide, values: npt.NDArray[Any], look: dict[str, Any]
) -> Any:
    """One pixel a patch, glass left empty."""
    column = np.rint((slide.bag.x - slide.bag.x.min()) / slide.bag.patch_side).astype(int)
    row = np.rint((slide.bag.y - slide.bag.y.min()) / slide.bag.patch_side).astype(int)
    canvas = np.full((row.max() + 1, column.max() + 1), np.nan)
    canvas[row, column] = values
    axes.set_xticks([])
    axes.set_yticks([])
    return axes.imshow(np.ma.masked_invalid(canvas), interpolation="nearest", **look)
