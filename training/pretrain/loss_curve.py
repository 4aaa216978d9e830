"""The loss curve of a run as a picture: every step, a running mean, and the schedule of the learning rate."""

from __future__ import annotations

import io

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from training.pretrain.checkpoints import History


def loss_curve(history: History) -> bytes:
    """PNG of the DINO loss, KoLeo and learning rate over steps."""
    steps = np.array([at["step"] for at in history])
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    koleo, rate = axes.twinx(), axes.twinx()
    rate.spines["right"].set_position(("axes", 1.12))
    dino = np.array([at["dino"] for at in history])
    axes.plot(steps, dino, color="#9cc3e6", linewidth=0.8)
    lines = [axes.plot(steps, _running_mean(dino), color="#1f5f99", label="DINO loss (mean)")[0]]
    lines += koleo.plot(
        steps,
        _running_mean(np.array([at["koleo"] for at in history])),
        color="#c0504d",
        label="KoLeo",
    )
    lines += rate.plot(
        steps,
        [at["learning_rate"] for at in history],
        color="#7f7f7f",
        linestyle="--",
        label="learning rate",
    )
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("DINO loss")
    koleo.set_ylabel("KoLeo (lower: embeddings further apart)")
    rate.set_ylabel("learning rate")
    axes.legend(handles=lines, loc="upper right")
    axes.set_title(f"Self-supervised training, {len(steps)} steps")
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    return stream.getvalue()


def _running_mean(
    values: np.ndarray[tuple[int], np.dtype[np.float64]],
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Centred mean over a twentieth of the run; narrower at the ends."""
    reach = max(1, len(values) // 40)
    total = np.concatenate([[0.0], np.cumsum(values)])
    low = np.maximum(np.arange(len(values)) - reach, 0)
    high = np.minimum(np.arange(len(values)) + reach + 1, len(values))
    return (total[high] - total[low]) / (high - low)
