"""One patient's risk of distant metastasis: slide embedding and clinical variables -> 5- and
10-year risk, interval, explanation.

A penalised Cox model on the leading components of the slide embedding and the encoded clinical
variables. The 95 % interval comes from bootstrap replicas of the fit, as standard errors on the
complementary log-log scale: within (0, 1), around the estimate, and steadier than percentiles of
few replicas. It says how well this cohort determines the model, and nothing about another
population. Prediction is NumPy. This module does not know where embeddings and outcomes come from;
the card does, and says if they are simulated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from training.cards import Card, load_model, require_entries, save_model
from training.errors import InsufficientData, SpecMismatch
from training.limits import require_range
from training.risk.covariates import ENCODED, NCCN_GROUPS, Covariates
from training.risk.nccn import NccnGroup
from training.risk.survival import YEARS, Booleans, CoxFit, Floats, fit_cox
from training.threads import threads_for

KIND: Final = "risk-model"

_LOG_CEILING = 10.0
"""Logarithm of a cumulative hazard at which risk is 1 to the last digit; far beyond it, exp
overflows.
"""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with its 95 % interval; lower <= estimate <= upper."""

    estimate: float
    lower: float
    upper: float


@dataclass(frozen=True, kw_only=True)
class RiskCurve:
    """Cumulative incidence of distant metastasis over `years`, with its 95 % interval; all [41],
    from 0 to 10 years.
    """

    years: Floats
    estimate: Floats
    lower: Floats
    upper: Floats

    def at(self, years: float) -> Interval:
        """The risk within a number of years."""
        values = (
            float(np.interp(years, self.years, part))
            for part in (self.estimate, self.lower, self.upper)
        )
        return Interval(**dict(zip(("estimate", "lower", "upper"), values, strict=True)))


@dataclass(frozen=True, kw_only=True)
class Risk:
    """What the risk model says of one patient.

    Attributes:
        five_year: risk of distant metastasis within 5 years.
        ten_year: the same within 10 years.
        curve: cumulative incidence from 0 to 10 years.
        score: log hazard against the training cohort's average patient.
        nccn: NCCN risk group, with what led to it.
        percentile: share in percent of the cohort's patients of the same NCCN group with a lower
            score; None if it had too few.
        contributions: log hazard that each of image, age, psa, t_stage and gleason adds against the
            average patient; sums to score.
        no_effect: contributions whose 95 % interval holds 0: their direction is not to be read.
        outside_training_range: what the model has not seen the like of: names of clinical
            variables, or image.
        simulated_outcomes: whether the cohort's outcomes were drawn by a generator; such a report
            must say so.
    """

    five_year: Interval
    ten_year: Interval
    curve: RiskCurve
    score: float
    nccn: NccnGroup
    percentile: float | None
    contributions: dict[str, float]
    no_effect: list[str]
    outside_training_range: list[str]
    simulated_outcomes: bool


@dataclass(frozen=True, kw_only=True)
class RiskModelConfig:
    """How a risk model is fitted.

    Attributes:
        components: principal components of the slide embedding; 0 leaves the image out.
        spread: expected size of log hazard ratios per standard deviation; the penalty (see
            `fit_cox`).
        replicas: bootstrap refits for the interval.
        min_group: minimum of patients of an NCCN group for a percentile.
    """

    components: int = 4
    spread: float = 0.3
    replicas: int = 40
    min_group: int = 20

    def __post_init__(self) -> None:
        require_range("components", self.components, 0)
        require_range("spread", self.spread, 1e-6)
        require_range("replicas", self.replicas, 2)


DEFAULT_RISK: Final = RiskModelConfig()


@dataclass(frozen=True, kw_only=True)
class RiskModel:
    """A fitted risk model. Columns are the image components, then ENCODED; C components, P = C + 5
    columns, R replicas.

    Attributes:
        image_centre: [E] mean slide embedding.
        image_components: [C, E] slide embedding (centred) -> components of unit variance.
        image_limit: largest Mahalanobis distance of the components in training.
        scale: [P] standard deviation of the columns.
        centre: [1 + R, P] where each fit's baseline holds, in scaled columns; row 0 is the fit, the
            others its replicas.
        coefficients: [1 + R, P] per scaled column.
        baseline: [1 + R, 41] cumulative baseline hazard at YEARS.
        ranges: [5, 2] minimum and maximum of ENCODED in training.
        reference: [3, 101] percentiles of the score in each of NCCN_GROUPS; NaN where there were
            too few patients.
        card: see `training.cards`; holds encoder_hash, slide_model_hash and simulated_outcomes, and
            the hash once it is saved.
    """

    image_centre: Floats
    image_components: Floats
    image_limit: float
    scale: Floats
    centre: Floats
    coefficients: Floats
    baseline: Floats
    ranges: Floats
    reference: Floats
    card: Card

    @property
    def hash(self) -> str:
        """Names the model; empty before it is saved."""
        return str(self.card.get("hash", ""))

    def columns(self, embeddings: Floats, encoded: Floats) -> Floats:
        """Scaled columns [N, P] of slide embeddings [N, E] and encoded covariates [N, 5]."""
        return (
            np.hstack([(embeddings - self.image_centre) @ self.image_components.T, encoded])
            / self.scale
        )

    def log_hazard(self, embeddings: Floats, covariates: Sequence[Covariates]) -> Floats:
        """Score of many patients at once, [N]."""
        columns = self.columns(embeddings, np.array([one.encode() for one in covariates]))
        return np.asarray((columns - self.centre[0]) @ self.coefficients[0])

    def predict(self, slide_embedding: npt.NDArray[np.floating], covariates: Covariates) -> Risk:
        """Risk of one patient.

        Raises:
            SpecMismatch: the slide embedding comes from another slide model.
            ValueError: the slide embedding holds a value that is not finite.
        """
        if slide_embedding.shape != self.image_centre.shape:
            raise SpecMismatch(
                "slide embedding size",
                f"risk model takes [{len(self.image_centre)}]",
                f"the slide embedding is {list(slide_embedding.shape)}",
                "use the slide model that the risk model was fitted on",
            )
        if not np.isfinite(slide_embedding).all():
            raise ValueError(
                "the slide embedding holds a value that is not finite; predict the slide again"
            )
        encoded = covariates.encode()
        columns = self.columns(slide_embedding.astype(np.float64)[None], encoded[None])[0]
        parts = (columns - self.centre) * self.coefficients  # [1 + R, P]
        curve = _curve(self.baseline, parts.sum(axis=1))
        score = float(parts[0].sum())
        return Risk(
            five_year=curve.at(5.0),
            ten_year=curve.at(10.0),
            curve=curve,
            score=score,
            nccn=covariates.nccn,
            percentile=self._percentile(score, covariates.nccn.tier),
            contributions=_contributions(parts[0]),
            no_effect=_no_effect(parts),
            outside_training_range=self._outside(columns[: len(self.image_components)], encoded),
            simulated_outcomes=bool(self.card["simulated_outcomes"]),
        )

    def hazard_ratios(self) -> dict[str, float]:
        """Hazard ratio per standard deviation of each column."""
        names = [f"image_{k + 1}" for k in range(len(self.image_components))] + list(ENCODED)
        return dict(zip(names, np.exp(self.coefficients[0]).tolist(), strict=True))

    def _percentile(self, score: float, group: str) -> float | None:
        reference = self.reference[NCCN_GROUPS.index(group)]
        return (
            None
            if np.isnan(reference).any()
            else float(np.interp(score, reference, np.arange(101.0)))
        )

    def _outside(self, components: Floats, encoded: Floats) -> list[str]:
        """Names in the words of `contributions`."""
        beyond = [
            NAMES[name]
            for name, value, (low, high) in zip(ENCODED, encoded, self.ranges, strict=True)
            if not low <= value <= high
        ]
        image = ["image"] if np.linalg.norm(components) > self.image_limit else []
        return list(dict.fromkeys(image + beyond))


NAMES: Final = {
    "age": "age",
    "psa": "psa",
    "t_stage": "t_stage",
    "gleason_primary": "gleason",
    "gleason_secondary": "gleason",
}
"""Columns of ENCODED in the words of an explanation."""


def _contributions(parts: Floats) -> dict[str, float]:
    clinical = parts[-len(ENCODED) :]
    totals = {"image": float(parts[: -len(ENCODED)].sum()), **dict.fromkeys(NAMES.values(), 0.0)}
    for name, part in zip(ENCODED, clinical, strict=True):
        totals[NAMES[name]] += float(part)
    return totals


def _no_effect(parts: Floats) -> list[str]:
    """Names of the contributions that the replicas' spread (rows 1..) does not tell from 0."""
    replicas = [_contributions(row) for row in parts[1:]]
    return [
        name
        for name, value in _contributions(parts[0]).items()
        if abs(value) <= 1.96 * np.std([replica[name] for replica in replicas], ddof=1)
    ]


def _curve(baselines: Floats, log_hazards: Floats) -> RiskCurve:
    """Estimate from row 0, interval from the spread of log cumulative hazards in the other rows."""
    # A replica's baseline is 0 before its own first event: half of the whole cohort's first step
    # stands for it, as a continuity correction; its logarithm would make the interval 0 to 100 %.
    reached = baselines[0] > 0
    floor = baselines[0][reached].min() / 2 if reached.any() else 1.0
    logs = np.log(np.maximum(baselines, floor)) + log_hazards[:, None]
    margin = 1.96 * logs[1:].std(axis=0, ddof=1)
    ends = (
        -np.expm1(-np.exp(np.minimum(logs[0] + shift, _LOG_CEILING)) * reached)
        for shift in (0.0, -margin, margin)
    )
    estimate, lower, upper = (
        np.maximum.accumulate(end) for end in ends
    )  # the interval narrows with events; a risk never falls
    return RiskCurve(years=YEARS, estimate=estimate, lower=lower, upper=upper)


def fit_risk_model(
    embeddings: npt.NDArray[np.floating],
    covariates: Sequence[Covariates],
    time: Floats,
    event: Booleans,
    *,
    card: Card,
    config: RiskModelConfig = DEFAULT_RISK,
    seed: int = 0,
) -> RiskModel:
    """Fit on slide embeddings [N, E], clinical variables and outcomes of N patients.

    Args:
        embeddings: one slide embedding a patient.
        covariates: of each patient.
        time: years to the event or to the end of follow-up.
        event: whether the event ended it.
        card: must say simulated_outcomes.
        config: how to fit.
        seed: of the bootstrap.

    Raises:
        InsufficientData: too few events, or follow-up shorter than 10 years.
    """
    if time.max() < YEARS[-1]:
        raise InsufficientData(
            f"the longest follow-up is {time.max():.1f} years: a 10-year risk needs 10; give "
            "longer follow-up"
        )
    images, encoded = embeddings.astype(np.float64), np.array([one.encode() for one in covariates])
    centre, components = _principal_components(images, config.components)
    raw = np.hstack([(images - centre) @ components.T, encoded])
    spread = raw.std(axis=0)
    scale = np.where(spread > 1e-9, spread, 1.0)
    columns = raw / scale
    fits = _fits(columns, time, event, config, np.random.default_rng(seed))
    scores = fits[0].log_hazard(columns)
    groups = np.array([one.nccn.tier for one in covariates])
    return RiskModel(
        image_centre=centre,
        image_components=components,
        image_limit=float(np.linalg.norm(columns[:, : len(components)], axis=1).max())
        if len(components)
        else 0.0,
        scale=scale,
        centre=np.array([fit.centre for fit in fits]),
        coefficients=np.array([fit.coefficients for fit in fits]),
        baseline=np.array([fit.baseline for fit in fits]),
        ranges=np.stack([encoded.min(axis=0), encoded.max(axis=0)], axis=1),
        reference=np.array(
            [_percentiles(scores[groups == group], config.min_group) for group in NCCN_GROUPS]
        ),
        card={**card, "fit_remarks": sorted({remark for fit in fits for remark in fit.remarks})},
    )


def _fits(
    columns: Floats,
    time: Floats,
    event: Booleans,
    config: RiskModelConfig,
    random: np.random.Generator,
) -> list[CoxFit]:
    """The fit and its bootstrap replicas. The coefficient of a column that does not vary is 0."""
    varying = columns.std(axis=0) > 1e-9

    def fit(rows: npt.NDArray[np.intp]) -> CoxFit:
        found = fit_cox(columns[rows][:, varying], time[rows], event[rows], spread=config.spread)
        coefficients = np.zeros(columns.shape[1])
        coefficients[varying] = found.coefficients
        return replace(found, centre=columns[rows].mean(axis=0), coefficients=coefficients)

    everyone = np.arange(len(time))
    with threads_for(columns.size):
        return [
            fit(everyone),
            *(fit(random.choice(everyone, len(everyone))) for _ in range(config.replicas)),
        ]


def _principal_components(images: Floats, count: int) -> tuple[Floats, Floats]:
    """Centre [E] and directions [C, E], C <= count; each of unit variance; the sign is fixed so
    that a refit gives the same.
    """
    centre = images.mean(axis=0)
    _, singular, directions = np.linalg.svd(images - centre, full_matrices=False)
    count = min(count, int((singular > 1e-6 * max(singular[0], 1e-12)).sum()))
    directions = (
        directions[:count]
        * np.sign(directions[np.arange(count), np.abs(directions[:count]).argmax(axis=1)])[:, None]
    )
    return centre, directions * np.sqrt(len(images)) / singular[:count, None]


def _percentiles(scores: Floats, minimum: int) -> Floats:
    return np.percentile(scores, np.arange(101)) if len(scores) >= minimum else np.full(101, np.nan)


def save_risk_model(uri: str, model: RiskModel) -> RiskModel:
    """Write the model below `uri`; returns it with its hash in the card."""
    arrays: dict[str, npt.NDArray[Any]] = {name: getattr(model, name) for name in _ARRAYS}
    card = {**model.card, "kind": KIND}
    digest = save_model(uri, {**arrays, "image_limit": np.array([model.image_limit])}, card)
    return replace(model, card={**card, "hash": digest})


def load_risk_model(uri: str) -> RiskModel:
    """Read the model below `uri`.

    Raises:
        ModelNotFound: there is none.
        BrokenModel: weights and card do not belong together.
    """
    arrays, card = load_model(uri, KIND)
    require_entries(uri, card, "encoder_hash", "slide_model_hash", "simulated_outcomes")
    return RiskModel(image_limit=float(arrays.pop("image_limit")[0]), card=card, **arrays)


_ARRAYS: Final = (
    "image_centre",
    "image_components",
    "scale",
    "centre",
    "coefficients",
    "baseline",
    "ranges",
    "reference",
)
