"""One patient's risk: slide embedding and clinical variables -> cumulative incidences, intervals,
benefit of a treatment, explanation.

Competing hazards (`hazards.py`) on the leading components of the slide embedding and the encoded
clinical variables. Whatever is missing is averaged over, given what is known (`missing.py`). The
95 % interval comes from bootstrap replicas of the fit (`fitting.py`), as standard errors on the
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
from training.errors import SpecMismatch
from training.risk.covariates import ENCODED, NAMES, NCCN_GROUPS, Covariates
from training.risk.hazards import YEARS, Floats, incidence
from training.risk.missing import Joint
from training.risk.prediction import Interval, RiskCurve, RiskPrediction, TreatmentBenefit

KIND: Final = "risk-model"

_DRAWS = 64
"""Values of what is missing that a risk is averaged over: half of them, and their opposites."""
_Z = 1.96
_LOG_LIMIT = 12.0
"""Of a log hazard ratio: beyond, exp says nothing more, and then overflows."""


@dataclass(frozen=True, kw_only=True)
class RiskModel:
    """A fitted risk model.

    Columns are the image components, then ENCODED: P = C + 6. K causes; F = 1 + R fits: the model,
    then its bootstrap replicas.

    Attributes:
        image_centre: [E] mean slide embedding; E = 0 without image.
        image_components: [C, E] slide embedding (centred) -> components of unit variance.
        image_limit: largest Mahalanobis distance of the components in training; an image beyond it
            counts as one at it, in the same direction.
        centre: [P] what is subtracted from the columns ...
        scale: [P] ... before they are divided by this.
        log_baseline: [F, K, 40] log hazards per year in the quarters of ten years.
        coefficients: [F, K, P] per scaled column, without treatment.
        treatment: [F, K] log hazard ratio of the treatment at the columns' centre.
        interaction: [F, K, P] how it changes per scaled column.
        joint: of the scaled columns.
        ranges: [6, 2] minimum and maximum of ENCODED in training, where values beyond are held; NaN
            of one that too few had.
        reference: [3, 101] percentiles of the score in each of NCCN_GROUPS; NaN where there were
            too few patients.
        card: see `training.cards`; holds `causes`, `endpoint`, `treatment`, `randomised` and
            `simulated_outcomes`, encoder_hash and slide_model_hash ("" without image), and the hash
            once it is saved.
    """

    image_centre: Floats
    image_components: Floats
    image_limit: float
    centre: Floats
    scale: Floats
    log_baseline: Floats
    coefficients: Floats
    treatment: Floats
    interaction: Floats
    joint: Joint
    ranges: Floats
    reference: Floats
    card: Card

    @property
    def hash(self) -> str:
        """Names the model; empty before it is saved."""
        return str(self.card.get("hash", ""))

    @property
    def needs_image(self) -> bool:
        """Whether the image has a part in it."""
        return len(self.image_components) > 0

    @property
    def causes(self) -> tuple[str, ...]:
        """The causes that it knows, in the order of its arrays."""
        return tuple(self.card["causes"])

    @property
    def endpoint(self) -> int:
        """Index of the cause that score and percentile are about."""
        return self.causes.index(self.card["endpoint"])

    def columns(
        self,
        embeddings: Sequence[npt.NDArray[np.floating] | None],
        covariates: Sequence[Covariates],
    ) -> Floats:
        """Scaled columns of N patients [N, P], NaN where something is missing.

        Raises:
            SpecMismatch: a slide embedding comes from another slide model.
            ValueError: a slide embedding holds a value that is not finite.
        """
        images = np.stack([self._components(embedding) for embedding in embeddings])
        encoded = np.array([one.encode() for one in covariates])
        scaled = (np.hstack([images, encoded]) - self.centre) / self.scale
        return np.where(self._unused, 0.0, scaled)

    def held(self, columns: Floats) -> Floats:
        """Columns [P] within what training saw, the image in the same direction: a hazard that is
        linear there says nothing of what is beyond, and exp would make it 0 or certain.
        """
        images = len(self.image_components)
        image, clinical = columns[:images], columns[images:]
        distance = float(np.linalg.norm(image))
        if distance > self.image_limit:
            image = image * (self.image_limit / distance)
        ends = (self.ranges.T - self.centre[images:]) / self.scale[images:]
        ends = np.where(self._unused[images:], 0.0, ends)
        return np.concatenate([image, np.clip(clinical, ends[0], ends[1])])

    def predict(
        self, slide_embedding: npt.NDArray[np.floating] | None, covariates: Covariates
    ) -> RiskPrediction:
        """Risk of one patient.

        Args:
            slide_embedding: [E] of the case; None is averaged over, as any other missing value.
            covariates: clinical variables, each possibly missing.

        Raises:
            SpecMismatch: the slide embedding comes from another slide model.
            ValueError: the slide embedding holds a value that is not finite.
        """
        columns = self.columns([slide_embedding], [covariates])[0]
        rows = self._completed(self.held(columns))
        risks, treated = self._incidences(rows), self._incidences(rows, treated=True)
        parts = self._parts(rows.mean(axis=0))
        score, nccn = float(parts[0].sum()), covariates.nccn
        return RiskPrediction(
            endpoint=self.card["endpoint"],
            curves={cause: risk_curve(risks[:, k]) for k, cause in enumerate(self.causes)},
            score=score,
            nccn=nccn,
            percentile=None if nccn is None else self._percentile(score, nccn.tier),
            benefit=self._benefit(rows, risks, treated),
            contributions=self._named(parts[0]),
            no_effect=self._no_effect(parts),
            missing=self._missing(slide_embedding, covariates),
            outside_training_range=self._outside(columns, covariates.encode()),
            simulated_outcomes=bool(self.card["simulated_outcomes"]),
        )

    def scores(
        self,
        embeddings: Sequence[npt.NDArray[np.floating] | None],
        covariates: Sequence[Covariates],
    ) -> Floats:
        """Score of many patients at once, [N]."""
        rows = self.columns(embeddings, covariates)
        means = np.stack([self._completed(self.held(row)).mean(axis=0) for row in rows])
        return np.asarray(means @ self.coefficients[0, self.endpoint])

    def endpoint_risks(
        self,
        embeddings: Sequence[npt.NDArray[np.floating] | None],
        covariates: Sequence[Covariates],
        treated: npt.NDArray[np.bool_],
        *,
        years: float,
    ) -> tuple[Floats, Floats]:
        """Log hazard and risk of the endpoint within `years` of many patients, each with or without
        the treatment, [N] each; without intervals.
        """
        k, scores, risks = self.endpoint, [], []
        first = replace(
            self,
            log_baseline=self.log_baseline[:1],
            coefficients=self.coefficients[:1],
            treatment=self.treatment[:1],
            interaction=self.interaction[:1],
        )
        for row, has in zip(self.columns(embeddings, covariates), treated, strict=True):
            rows = self._completed(self.held(row))
            score = rows.mean(axis=0) @ self.coefficients[0, k]
            if has:
                score += self.treatment[0, k] + self.interaction[0, k] @ rows.mean(axis=0)
            scores.append(score)
            curve = first._incidences(rows, treated=bool(has))[0, k]
            risks.append(float(np.interp(years, YEARS, curve)))
        return np.array(scores), np.array(risks)

    def ten_year_risks(
        self,
        embeddings: Sequence[npt.NDArray[np.floating] | None],
        covariates: Sequence[Covariates],
    ) -> Floats:
        """Estimate, lower and upper end of the 10-year risk of many patients, [3, N]; without the
        treatment.
        """
        rows = self.columns(embeddings, covariates)
        completed = (self._completed(self.held(row)) for row in rows)
        fits = (self._incidences(each)[:, self.endpoint] for each in completed)
        risks = [risk_curve(fit).at(10.0) for fit in fits]
        return np.array([[risk.estimate, risk.lower, risk.upper] for risk in risks]).T

    def hazard_ratios(self) -> dict[str, float]:
        """Hazard ratio of the endpoint per standard deviation of each column."""
        names = [f"image_{k + 1}" for k in range(len(self.image_components))] + list(ENCODED)
        ratios = np.exp(self.coefficients[0, self.endpoint])
        return dict(zip(names, ratios.tolist(), strict=True))

    @property
    def _unused(self) -> npt.NDArray[np.bool_]:
        """Columns that too few patients of the cohort had a value of, [P]."""
        return np.concatenate(
            [np.zeros(len(self.image_components), bool), np.isnan(self.ranges[:, 0])]
        )

    def _components(self, embedding: npt.NDArray[np.floating] | None) -> Floats:
        if embedding is None or not self.needs_image:
            return np.full(len(self.image_components), np.nan)
        if embedding.shape != self.image_centre.shape:
            raise SpecMismatch(
                "slide embedding size",
                f"risk model takes [{len(self.image_centre)}]",
                f"the slide embedding is {list(embedding.shape)}",
                "use the slide model that the risk model was fitted on",
            )
        if not np.isfinite(embedding).all():
            raise ValueError(
                "the slide embedding holds a value that is not finite; predict the slide again"
            )
        return np.asarray(
            self.image_components @ (embedding.astype(np.float64) - self.image_centre)
        )

    def _completed(self, columns: Floats) -> Floats:
        """The columns with their gaps drawn, [D, P]; [1, P] without gaps."""
        if not np.isnan(columns).any():
            return columns[None]
        half = np.random.default_rng(0).normal(size=(_DRAWS // 2, len(columns)))
        return self.joint.completed(
            np.repeat(columns[None], _DRAWS, axis=0), np.concatenate([half, -half])
        )

    def _incidences(self, rows: Floats, *, treated: bool = False) -> Floats:
        """Cumulative incidences [F, K, 41], averaged over the rows [D, P]."""
        ratios = rows @ self.coefficients.transpose(0, 2, 1)  # [F, D, K]
        if treated:
            ratios = ratios + self.treatment[:, None] + rows @ self.interaction.transpose(0, 2, 1)
        found = incidence(self.log_baseline[:, None], ratios)
        return np.asarray(found.mean(axis=1))

    def _benefit(self, rows: Floats, risks: Floats, treated: Floats) -> TreatmentBenefit | None:
        if not self.card["treatment"]:
            return None
        k = self.endpoint
        change = self.treatment[:, k] + self.interaction[:, k] @ rows.mean(axis=0)
        log_ratio = _normal(change)
        return TreatmentBenefit(
            treatment=self.card["treatment"],
            hazard_ratio=Interval(
                estimate=_ratio(log_ratio.estimate),
                lower=_ratio(log_ratio.lower),
                upper=_ratio(log_ratio.upper),
            ),
            without_treatment=risk_curve(risks[:, k]).at(10.0),
            with_treatment=risk_curve(treated[:, k]).at(10.0),
            reduction=_normal(risks[:, k, -1] - treated[:, k, -1]),
            randomised=bool(self.card["randomised"]),
        )

    def _parts(self, row: Floats) -> Floats:
        """What each column adds to the endpoint's log hazard, [F, P]."""
        return np.asarray(row * self.coefficients[:, self.endpoint])

    def _named(self, parts: Floats) -> dict[str, float]:
        """Parts of one fit [P], in the words of an explanation."""
        images = len(self.image_components)
        totals = {"image": float(parts[:images].sum())} if images else {}
        for name, part, (low, _) in zip(ENCODED, parts[images:], self.ranges, strict=True):
            if not np.isnan(low):
                totals[NAMES[name]] = totals.get(NAMES[name], 0.0) + float(part)
        return totals

    def _no_effect(self, parts: Floats) -> list[str]:
        """Contributions that the replicas' spread does not separate from 0."""
        replicas = [self._named(row) for row in parts[1:]]
        return [
            name
            for name, value in self._named(parts[0]).items()
            if abs(value) <= _Z * np.std([replica[name] for replica in replicas], ddof=1)
        ]

    def _missing(
        self, embedding: npt.NDArray[np.floating] | None, covariates: Covariates
    ) -> tuple[str, ...]:
        known = self._named(np.zeros(len(self.scale)))
        image = ("image",) if embedding is None else ()
        return tuple(name for name in (*image, *covariates.missing) if name in known)

    def _percentile(self, score: float, group: str) -> float | None:
        reference = self.reference[NCCN_GROUPS.index(group)]
        return (
            None
            if np.isnan(reference).any()
            else min(float(np.searchsorted(reference, score, side="left")), 100.0)
        )

    def _outside(self, columns: Floats, encoded: Floats) -> list[str]:
        """In the words of `contributions`; what is missing is not outside."""
        beyond = [
            NAMES[name]
            for name, value, (low, high) in zip(ENCODED, encoded, self.ranges, strict=True)
            if value < low or value > high
        ]
        distance = np.linalg.norm(columns[: len(self.image_components)])
        image = ["image"] if distance > self.image_limit else []
        return list(dict.fromkeys(image + beyond))


def _ratio(log_ratio: float) -> float:
    return float(np.exp(np.clip(log_ratio, -_LOG_LIMIT, _LOG_LIMIT)))


def _normal(values: Floats) -> Interval:
    """Row 0 with the spread of the others."""
    margin = _Z * float(np.std(values[1:], ddof=1))
    estimate = float(values[0])
    return Interval(estimate=estimate, lower=estimate - margin, upper=estimate + margin)


def risk_curve(fits: Floats) -> RiskCurve:
    """Estimate from row 0 of cumulative incidences [F, 41], interval from the others' spread on the
    complementary log-log scale.
    """
    logs = np.log(-np.log1p(-np.clip(fits, 1e-12, 1 - 1e-12)))
    margin = _Z * logs[1:].std(axis=0, ddof=1)
    ends = (-np.expm1(-np.exp(logs[0] + shift)) for shift in (0.0, -margin, margin))
    estimate, lower, upper = (
        np.maximum.accumulate(np.concatenate([[0.0], end[1:]])) for end in ends
    )  # the interval narrows with events; a risk never falls
    return RiskCurve(years=YEARS, estimate=estimate, lower=lower, upper=upper)


def save_risk_model(uri: str, model: RiskModel) -> RiskModel:
    """Write the model below `uri`; returns it with its hash in the card."""
    arrays: dict[str, npt.NDArray[Any]] = {name: getattr(model, name) for name in _ARRAYS}
    joint = {f"joint_{name}": value for name, value in vars(model.joint).items()}
    card = {**model.card, "kind": KIND}
    digest = save_model(
        uri, {**arrays, **joint, "image_limit": np.array([model.image_limit])}, card
    )
    return replace(model, card={**card, "hash": digest})


def load_risk_model(uri: str) -> RiskModel:
    """Read the model below `uri`.

    Raises:
        ModelNotFound: there is none.
        BrokenModel: weights and card do not belong together, or it is of an earlier version.
    """
    arrays, card = load_model(uri, KIND)
    require_entries(
        uri, card, "encoder_hash", "slide_model_hash", "simulated_outcomes", "causes", "endpoint"
    )
    joint = Joint(**{name: arrays.pop(f"joint_{name}") for name in _JOINT})
    return RiskModel(
        image_limit=float(arrays.pop("image_limit")[0]), joint=joint, card=card, **arrays
    )


_JOINT: Final = ("mean", "covariance", "low", "high")
_ARRAYS: Final = (
    "image_centre",
    "image_components",
    "centre",
    "scale",
    "log_baseline",
    "coefficients",
    "treatment",
    "interaction",
    "ranges",
    "reference",
)
