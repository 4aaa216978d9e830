"""The loss curve of a run as a picture: every step, a running mean, and the schedule of the
learning rate.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from training.pretrain.checkpoints import History

COLOURS: Final = ("#1f5f99", "#c0504d", "#4f8f4f")
"""Of the losses in turn."""


def loss_curve(history: History, losses: Mapping[str, str]) -> bytes:
    """PNG of losses and learning rate over steps.

    Args:
        history: metrics of every step.
        losses: metrics to draw, each with its label; the main one first, which is drawn step by
            step too.
    """
    steps = np.array([step["step"] for step in history])
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    lines = []
    for number, ((name, label), colour) in enumerate(zip(losses.items(), COLOURS, strict=False)):
        values = np.array([step[name] for step in history])
        side = axes if number == 0 else _further_axes(axes, number)
        if number == 0:
            side.plot(steps, values, color=colour, alpha=0.4, linewidth=0.8)
        lines += side.plot(steps, _running_mean(values), color=colour, label=f"{label}, mean")
        side.set_ylabel(label)
    rate = _further_axes(axes, len(losses))
    rates = [step["learning_rate"] for step in history]
    lines += rate.plot(steps, rates, color="#7f7f7f", linestyle="--", label="learning rate")
    rate.set_ylabel("learning rate")
    axes.legend(handles=lines, loc="upper right")
    axes.set_title(f"Self-supervised training, {len(steps)} steps")
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    return stream.getvalue()


def _further_axes(axes: Axes, number: int) -> Axes:
    """Axes with a scale of its own, the `number`-th on the right."""
    further = axes.twinx()
    further.spines["right"].set_position(("axes", 0.88 + 0.12 * number))
    return further


def _running_mean(
    values: np.ndarray[tuple[int], np.dtype[np.float64]],
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Centred mean over a twentieth of the run; narrower at the ends."""
    reach = max(1, len(values) // 40)
    total = np.concatenate([[0.0], np.cumsum(values)])
    low = np.maximum(np.arange(len(values)) - reach, 0)
    high = np.minimum(np.arange(len(values)) + reach + 1, len(values))
    return (total[high] - total[low]) / (high - low)
