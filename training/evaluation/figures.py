"""Pictures of a probe: scores, confusion, few examples, embeddings in the plane, nearest tiles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from training.evaluation.tiles import TileSource, read_tile
from training.pictures import png

if TYPE_CHECKING:
    from training.evaluation.attention import TileAttention
    from training.evaluation.probe import ProbeReport, ProbeRow

ENCODER, BASELINE = "#1f5f99", "#b8b8b8"
COLOURS: Final = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb")
"""Paul Tol's bright scheme: apart for colour-blind readers."""
ATTENDED: Final = 6
"""Tiles that are shown with most attention, and with least."""
ATTENTION_TICKS: Final = (0.01, 0.03, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 100.0)
SHOWN_PIXELS: Final = 150
"""Tiles are shown with about this many pixels a side; PCam's have fewer."""
QUERIES, NEAREST = 2, 5
"""Tiles of each class that the nearest ones are shown of, and how many."""


def scores_figure(report: ProbeReport) -> bytes:
    """PNG: both scores of each row with their intervals, and the best encoder's confusion."""
    rows = report.rows[::-1]
    figure = Figure(figsize=(12, 1.8 + 0.55 * max(len(rows), 5)), layout="constrained")
    bars, matrix = figure.subplots(1, 2, width_ratios=[1.4, 1.0])
    for k, row in enumerate(rows):
        colour = BASELINE if row.encoder is None else ENCODER
        for shift, score, alpha in ((0.2, row.linear, 1.0), (-0.2, row.knn, 0.55)):
            bars.barh(k + shift, score.mean, 0.36, color=colour, alpha=alpha)
            bars.plot([score.low, score.high], [k + shift] * 2, color="black", linewidth=1)
            ink = "white" if row.encoder is not None and alpha == 1.0 else "black"
            bars.text(0.01, k + shift, f"{score.mean:.2f}", va="center", fontsize=9, color=ink)
    bars.axvline(report.chance, color="black", linestyle=":", label="chance")
    bars.set_yticks(range(len(rows)), [row.name for row in rows])
    bars.set_xlim(0, 1)
    bars.set_xlabel("balanced accuracy with its 95 % interval; dark: linear, light: kNN")
    bars.legend(loc="lower right", frameon=False)
    best = next(row for row in report.rows if row.encoder is not None)
    _confusion(matrix, best, report.classes)
    figure.suptitle(f"{sum(report.tiles)} tiles, {_division(report)}")
    return png(figure)


def _confusion(axes: Axes, row: ProbeRow, classes: Sequence[str]) -> None:
    counts = np.array(row.confusion)
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (y, x), share in np.ndenumerate(shares):
        colour = "white" if share > 0.5 else "black"
        axes.text(x, y, f"{share:.0%}", ha="center", va="center", color=colour)
    axes.set_xticks(range(len(classes)), classes, rotation=30, ha="right")
    axes.set_yticks(range(len(classes)), classes)
    axes.set_xlabel("predicted")
    axes.set_ylabel("truth")
    axes.set_title(f"{row.name}, linear probe", fontsize=10)


def _division(report: ProbeReport) -> str:
    if report.dataset is not None:
        return f"official split of {report.dataset}"
    kind = "grouped folds" if report.groups else "optimistic: split without patient ids"
    return f"same folds; {kind}"


def few_shot_figure(report: ProbeReport) -> bytes:
    """PNG: balanced accuracy over the number of examples of each class."""
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for k, row in enumerate(report.rows):
        if row.shots:
            style = "-" if row.encoder is not None else "--"
            colour = COLOURS[k % len(COLOURS)]
            axes.plot(
                list(row.shots), list(row.shots.values()), style, marker="o", color=colour,
                label=row.name,
            )  # fmt: skip
    axes.axhline(report.chance, color="black", linestyle=":", label="chance")
    axes.set_xscale("log", base=2)
    counts = sorted({count for row in report.rows for count in row.shots})
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.set_xlabel("examples of each class to learn from")
    axes.set_ylabel("balanced accuracy on the others")
    axes.legend(fontsize=8)
    return png(figure)


def spread(
    features: NDArray[np.float32], labels: NDArray[np.int64], classes: Sequence[str]
) -> bytes:
    """PNG: tiles in the plane of the two main components of their standardised embeddings."""
    plane = PCA(2, random_state=0).fit(standard := StandardScaler().fit_transform(features))
    points = plane.transform(standard)
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.add_subplot()
    for label, name in enumerate(classes):
        own = points[labels == label]
        axes.scatter(
            own[:, 0],
            own[:, 1],
            s=22,
            color=COLOURS[label % len(COLOURS)],
            marker="o" if label < len(COLOURS) else "^",
            label=name,
            alpha=0.8,
        )
    shares = plane.explained_variance_ratio_
    axes.set_xlabel(f"first component, {shares[0]:.0%} of the variance")
    axes.set_ylabel(f"second component, {shares[1]:.0%}")
    axes.legend()
    return png(figure)


def attention_figure(
    attention: TileAttention, classes: Sequence[str], tiles: Sequence[TileSource]
) -> bytes:
    """PNG: attention on the tiles of each class, and the tiles with most and least of it."""
    multiples, labels = attention.multiples, attention.labels
    order = np.argsort(-multiples, kind="stable")
    count = min(ATTENDED, len(order) // 2)
    figure = Figure(figsize=(1.75 * max(count, 4), 6.6), layout="constrained")
    grid = figure.add_gridspec(3, count, height_ratios=[1.6, 1.0, 1.0])
    axes = figure.add_subplot(grid[0, :])
    for label in range(len(classes)):
        own = np.sort(multiples[labels == label])
        rows = label + np.linspace(-0.3, 0.3, len(own))
        axes.scatter(own, rows, s=14, color=COLOURS[label % len(COLOURS)], alpha=0.8)
        axes.plot([own.mean()] * 2, [label - 0.4, label + 0.4], color="black", linewidth=1.5)
    axes.axvline(1.0, color="black", linestyle=":")
    axes.set_xscale("log")
    axes.set_xticks(ATTENTION_TICKS, [f"{tick:g}" for tick in ATTENTION_TICKS])
    axes.minorticks_off()
    axes.set_xlim(0.9 * min(0.5, multiples.min()), 1.1 * max(2.0, multiples.max()))
    axes.set_yticks(range(len(classes)), classes)
    axes.invert_yaxis()
    axes.set_xlabel("attention on a tile; dotted: the even share, 1; bar: the mean of a class")
    for row, (name, shown) in enumerate(
        {"most": order[:count], "least": order[::-1][:count]}.items(), start=1
    ):
        for column, k in enumerate(shown):
            panel = figure.add_subplot(grid[row, column])
            _show_tile(panel, tiles[k], f"{classes[labels[k]]}, {multiples[k]:.2g}")
            panel.set_ylabel(name if column == 0 else "")
    return png(figure)


def _show_tile(axes: Axes, tile: TileSource, title: str) -> None:
    pixels = read_tile(tile)
    step = max(1, max(pixels.shape[:2]) // SHOWN_PIXELS)
    axes.imshow(pixels[::step, ::step])
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(title, fontsize=8)


def neighbours_figure(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    classes: Sequence[str],
    tiles: Sequence[TileSource],
) -> bytes:
    """PNG: tiles of each class (black frame), and the nearest others by cosine; a red frame is
    another class.
    """
    standard = StandardScaler().fit_transform(features)
    standard /= np.maximum(np.linalg.norm(standard, axis=1, keepdims=True), 1e-12)
    queries = [
        int(k)
        for label in range(len(classes))
        for k in np.flatnonzero(labels == label)[:: max(1, (labels == label).sum() // QUERIES)][
            :QUERIES
        ]
    ]
    count = min(NEAREST, len(labels) - 1)
    figure = Figure(figsize=(1.6 * (count + 1), 1.75 * len(queries)), layout="constrained")
    grid = figure.subplots(len(queries), count + 1, squeeze=False)
    for axes, query in zip(grid, queries, strict=True):
        order = np.argsort(-(standard @ standard[query]), kind="stable")
        shown = [query, *(int(k) for k in order if k != query)][: count + 1]
        for panel, k in zip(axes, shown, strict=True):
            _show_tile(panel, tiles[k], classes[labels[k]])
            frame = "#228833" if labels[k] == labels[query] else "#cc3311"
            for side in panel.spines.values():
                side.set_color("black" if k == query else frame)
                side.set_linewidth(2.5)
    figure.suptitle(
        "left: a tile; then its nearest, green: of its class, red: of another", fontsize=10
    )
    return png(figure)
