"""Pictures of a risk model: what it predicts beside what happened."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from training.pictures import png
from training.risk.cross_validation import YEARS, CrossValidatedScore
from training.risk.hazards import Floats
from training.risk.prediction import CAUSE_WORDS
from training.risk.risk_model import RiskModel
from training.risk.simulated_patients import SimulatedPatients, SimulatedScore
from training.risk.survival import CalibrationGroup

_NOTICE = "Research use only; not a diagnosis"
_TICKS = (0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0)
"""Of hazard ratios."""
_BLUE, _ORANGE = "#1f5f99", "#d95f02"


def simulated_figure(model: RiskModel, held_out: SimulatedPatients, score: SimulatedScore) -> bytes:
    """PNG: predicted against true 10-year risk of patients, and of groups of them against what was
    observed.
    """
    estimate, lower, upper = held_out.ten_year(model)
    truth = held_out.cohort.true_risk(10.0)
    some = slice(0, 200)  # more bars would hide each other
    reach = np.stack([estimate - lower, upper - estimate])
    figure = Figure(figsize=(10, 4.8), layout="constrained")
    one, many = figure.subplots(1, 2)
    one.errorbar(
        truth[some],
        estimate[some],
        yerr=reach[:, some],
        fmt="o",
        markersize=3,
        color=_BLUE,
        ecolor="#c9dcec",
    )
    one.set_title(f"Held-out patients, the first {len(truth[some])}, with 95 % interval")
    one.set_xlabel("true risk")
    one.set_ylabel("predicted risk")
    _groups(many, score.calibration_ten_years)
    many.set_title("Fifths of those without the treatment, by predicted risk")
    for axes in (one, many):
        _diagonal(axes)
    figure.suptitle(
        f"10-year risk of distant metastasis. SIMULATED OUTCOMES. {_NOTICE}", color="#a11"
    )
    return png(figure)


def cross_validated_figure(model: RiskModel, score: CrossValidatedScore) -> bytes:
    """PNG: groups of patients by predicted risk against what was observed, and hazard ratios with
    their intervals.
    """
    figure = Figure(figsize=(10, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    _groups(left, score.calibration)
    left.set_title(f"Fifths of {score.patients} patients, held out by cross-validation")
    _diagonal(left)
    names, ratios, lower, upper = _ratios(model)
    places = np.arange(len(names))[::-1]
    right.errorbar(
        ratios, places, xerr=[ratios - lower, upper - ratios], fmt="o", color=_BLUE, capsize=3
    )
    right.axvline(1.0, linestyle="--", color="grey", linewidth=0.8)
    right.set_xscale("log")
    ends = right.get_xlim()
    ticks = [tick for tick in _TICKS if ends[0] <= tick <= ends[1]]
    right.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    right.minorticks_off()
    right.set_yticks(places, [name.replace("_", " ") for name in names])
    right.set_xlabel("hazard ratio per standard deviation, with 95 % interval")
    word = CAUSE_WORDS[model.card["endpoint"]]
    figure.suptitle(f"{YEARS:g}-year risk of {word}. {_NOTICE}")
    return png(figure)


def _ratios(model: RiskModel) -> tuple[list[str], Floats, Floats, Floats]:
    names = list(model.hazard_ratios())
    logs = model.coefficients[:, model.endpoint]
    margin = 1.96 * logs[1:].std(axis=0, ddof=1)
    return names, np.exp(logs[0]), np.exp(logs[0] - margin), np.exp(logs[0] + margin)


def _groups(axes: Axes, groups: list[CalibrationGroup]) -> None:
    predicted = [group.predicted for group in groups]
    observed = [group.observed for group in groups]
    axes.plot(predicted, observed, "s", color=_ORANGE, label="observed")
    true = [group.true for group in groups if group.true is not None]
    if true:
        axes.plot(predicted, true, "o", color=_BLUE, label="true")
    axes.legend()
    axes.set_xlabel("predicted risk")
    axes.set_ylabel("observed or true risk" if true else "observed risk")


def _diagonal(axes: Axes) -> None:
    limit = max(0.05, *axes.get_xlim(), *axes.get_ylim())
    axes.plot([0, limit], [0, limit], "--", color="grey", linewidth=0.8)
    axes.set_xlim(0, limit)
    axes.set_ylim(0, limit)
