"""From patients and outcomes to a risk model, with replicas for its intervals.

    fit_risk_model(patients)
      _table      image components and clinical variables, scaled, gaps left
      fit_whole   completions of the gaps given outcomes; how large the coefficients of each group
                  of columns are expected; each cause's hazard, on all completions together
      fit_replica the same on a bootstrap sample, from a completion of its own

A replica weighs the patients by a draw of Dirichlet weights (the Bayesian bootstrap; Rubin, Ann
Stat 1981: no replica is without events), and is drawn towards a draw of the prior instead of its
mean (Pearce et al., AISTATS 2020). Without the second, intervals of penalised coefficients are too
narrow: they know the chance of the sample, and not that the penalty pulls all replicas alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.stats import chi2

from training.cards import Card
from training.errors import InsufficientData
from training.limits import require_range
from training.risk.covariates import ENCODED, NAMES, NCCN_GROUPS, Covariates
from training.risk.hazards import (
    CURVE_QUARTERS,
    EXPECTED,
    LIMIT,
    YEARS,
    CauseFit,
    Floats,
    FollowUp,
    Integers,
    Prior,
    cumulative_hazard,
    estimate_spreads,
    fit_cause,
)
from training.risk.missing import completed, fit_joint
from training.risk.prediction import CAUSE_WORDS, CAUSES
from training.risk.risk_model import RiskModel
from training.threads import threads_for

CONSTANT, IMAGE, CLINICAL, TREATMENT, INTERACTION = range(-1, 4)
"""Groups of columns: the coefficients of a group have one spread. Those of constant columns are
0."""
_TREATMENT_SPREAD = 1.0
"""Of a treatment's log hazard ratio: two of three ratios are between 0.37 and 2.7."""
_NO_PENALTY = 10.0


@dataclass(frozen=True, kw_only=True)
class Patients:
    """Patients with outcomes; N of them.

    Attributes:
        covariates: of each.
        time: years to the event or to the end of follow-up, above 0, [N].
        cause: 0 for none, or the place in CAUSES from 1 on, [N].
        embeddings: slide embeddings [N, E]; E = 0 for a model without image.
        treated: whether each had `treatment`, [N]; None where all had the same.
        treatment: in words; empty without.
        randomised: whether it was assigned at random.
    """

    covariates: Sequence[Covariates]
    time: Floats
    cause: Integers
    embeddings: npt.NDArray[np.floating]
    treated: npt.NDArray[np.bool_] | None = None
    treatment: str = ""
    randomised: bool = False

    def __len__(self) -> int:
        return len(self.time)

    def some(self, rows: npt.NDArray[np.intp]) -> Patients:
        """These rows."""
        return replace(
            self,
            covariates=[self.covariates[k] for k in rows],
            time=self.time[rows],
            cause=self.cause[rows],
            embeddings=self.embeddings[rows],
            treated=None if self.treated is None else self.treated[rows],
        )

    def without_image(self) -> Patients:
        """The same without slide embeddings."""
        return replace(self, embeddings=np.empty((len(self), 0)))

    def counts(self) -> npt.NDArray[np.int64]:
        """How many of none and of each cause within LIMIT years, which are those that count."""
        counted = np.where(self.time <= LIMIT, self.cause, 0)
        return np.bincount(counted, minlength=len(CAUSES) + 1)

    @property
    def endpoint(self) -> int:
        """Number of the cause that a model of them is about: distant metastasis, or prostate-cancer
        death where there are too few of those.
        """
        counts = self.counts()
        return 2 if counts[1] < MIN_EVENTS <= counts[2] else 1

    def too_rare(self) -> dict[str, int]:
        """Clinical variables that some, but too few patients have, by how many have them."""
        known = (~np.isnan([one.encode() for one in self.covariates])).sum(axis=0)
        least = max(MIN_KNOWN, MIN_KNOWN_SHARE * len(self))
        return {
            NAMES[name]: int(n) for name, n in zip(ENCODED, known, strict=True) if 0 < n < least
        }

    def events(self) -> dict[str, int]:
        """How many of each cause, those with any."""
        counts = self.counts()[1:]
        return {name: int(n) for name, n in zip(CAUSES, counts, strict=True) if n}


@dataclass(frozen=True, kw_only=True)
class RiskModelConfig:
    """How a risk model is fitted.

    Attributes:
        components: principal components of the slide embedding; 0 leaves the image out.
        replicas: bootstrap refits for the interval.
        completions: draws of what is missing that the fit is made on.
        min_group: minimum of patients of an NCCN group for a percentile.
    """

    components: int = 4
    replicas: int = 60
    completions: int = 5
    min_group: int = 20

    def __post_init__(self) -> None:
        require_range("components", self.components, 0)
        require_range("replicas", self.replicas, 2)
        require_range("completions", self.completions, 1)


DEFAULT_RISK: Final = RiskModelConfig()
MIN_EVENTS: Final = 10
"""Of the endpoint: fewer do not determine even one coefficient."""
MIN_FOLLOWED: Final = 10
"""Patients that were followed for ten years."""
MIN_KNOWN, MIN_KNOWN_SHARE = 30, 0.2
"""Patients who have a clinical variable: where fewer do, it is taken as not given. One without any
effect that 20 of 200 men have was beyond its 95 % interval in 45 % of the cohorts, one that 100
have in 13 %, before replicas had joint distributions of their own."""
EVENTS_PER_TERM: Final = 10
"""Events of the endpoint for each term of the interaction's test: with 14 events for six terms,
12 % of cohorts without an interaction had p < 0.05."""


def fit_risk_model(
    patients: Patients, *, card: Card, config: RiskModelConfig = DEFAULT_RISK, seed: int = 0
) -> RiskModel:
    """Fit on patients with outcomes.

    Args:
        patients: see `require_ten_years`.
        card: must say simulated_outcomes.
        config: how to fit.
        seed: of completions and bootstrap.

    Raises:
        InsufficientData: too few events.
    """
    causes, endpoint = _causes(patients)
    table = _table(patients, config.components)
    design = _design(table, patients, causes, endpoint)
    random = np.random.default_rng(seed)
    with threads_for(table.scaled.size * config.completions):
        whole, spreads, p_value = fit_whole(design, config.completions, random)
        replicas = [fit_replica(design, whole, spreads, random) for _ in range(config.replicas)]
    return _model(
        [whole, *replicas],
        design,
        table=table,
        patients=patients,
        config=config,
        p_value=p_value,
        card=card,
    )


def require_ten_years(patients: Patients) -> None:
    """Refuse a cohort that says nothing of a 10-year risk.

    Raises:
        InsufficientData: too few were followed for 10 years.
    """
    longest, followed = patients.time.max(), int((patients.time >= YEARS[-1]).sum())
    if longest < YEARS[-1]:
        raise InsufficientData(
            f"the longest follow-up is {longest:.1f} years: a 10-year risk needs 10; give longer "
            "follow-up"
        )
    if followed < MIN_FOLLOWED:
        raise InsufficientData(
            f"{followed} of {len(patients)} patients were followed for 10 years: a 10-year risk "
            f"needs {MIN_FOLLOWED}; give longer follow-up"
        )


def _causes(patients: Patients) -> tuple[list[int], int]:
    """Numbers of the causes that have events, and the endpoint's."""
    counts, endpoint = patients.counts(), patients.endpoint
    if counts[endpoint] < MIN_EVENTS:
        word = CAUSE_WORDS[CAUSES[endpoint - 1]]
        raise InsufficientData(
            f"{counts[endpoint]} of {len(patients)} patients have the event {word}: a hazard needs "
            f"{MIN_EVENTS}; add patients or follow-up"
        )
    return [k for k in range(1, len(counts)) if counts[k]], endpoint


@dataclass(frozen=True, kw_only=True)
class _Table:
    """Image components, then ENCODED; scaled, NaN where missing, 0 where nobody has a value."""

    image_centre: Floats
    image_components: Floats
    centre: Floats
    scale: Floats
    scaled: Floats
    ranges: Floats


def _table(patients: Patients, components: int) -> _Table:
    images = patients.embeddings.astype(np.float64)
    centre, directions = _principal_components(images, components)
    encoded = np.array([one.encode() for one in patients.covariates])
    raw = np.hstack([(images - centre) @ directions.T, encoded])
    rare = [NAMES[name] in patients.too_rare() for name in ENCODED]
    raw[:, len(directions) :][:, rare] = np.nan
    given = ~np.isnan(raw).all(axis=0)
    middle, spread = np.zeros(raw.shape[1]), np.ones(raw.shape[1])
    middle[given] = np.nanmean(raw[:, given], axis=0)
    spread[given] = np.nanstd(raw[:, given], axis=0)
    spread[spread < 1e-9] = 1.0
    ranges = np.full((len(ENCODED), 2), np.nan)
    known = given[len(directions) :]
    ranges[known, 0] = np.nanmin(encoded[:, known], axis=0)
    ranges[known, 1] = np.nanmax(encoded[:, known], axis=0)
    return _Table(
        image_centre=centre,
        image_components=directions,
        centre=middle,
        scale=spread,
        scaled=np.where(given, (raw - middle) / spread, 0.0),
        ranges=ranges,
    )


def _principal_components(images: Floats, count: int) -> tuple[Floats, Floats]:
    """Centre [E] and directions [C, E], C <= count; each of unit variance; the sign is fixed so
    that a refit gives the same.
    """
    if images.shape[1] == 0:
        return np.empty(0), np.empty((0, 0))
    centre = images.mean(axis=0)
    _, singular, directions = np.linalg.svd(images - centre, full_matrices=False)
    count = min(count, int((singular > 1e-6 * max(singular[0], 1e-12)).sum()))
    directions = (
        directions[:count]
        * np.sign(directions[np.arange(count), np.abs(directions[:count]).argmax(axis=1)])[:, None]
    )
    return centre, directions * np.sqrt(len(images)) / singular[:count, None]


@dataclass(frozen=True, kw_only=True)
class Design:
    """What all fits share.

    Attributes:
        scaled: columns [N, P] with gaps.
        outcome: what a completion has to know of the outcome, [N, O].
        followed: of the patients.
        treated: 1 or 0, [N]; None without a treatment.
        interacting: which columns the treatment's effect on the endpoint may depend on: the
            image's where there is one, else the clinical ones.
        groups: of the columns, then of the treatment and its interactions, [P + 1 + I]; below 0,
            the spread is not estimated.
        causes: their numbers.
        endpoint: the number of the endpoint.
    """

    scaled: Floats
    outcome: Floats
    followed: FollowUp
    treated: Floats | None
    interacting: npt.NDArray[np.intp]
    groups: npt.NDArray[np.int64]
    causes: list[int]
    endpoint: int

    def columns(self, completion: Floats) -> Floats:
        """Columns of the fit, [N, P] or [N, P + 1 + I], of columns without gaps."""
        if self.treated is None:
            return completion
        treated = self.treated[:, None]
        return np.hstack([completion, treated, treated * completion[:, self.interacting]])

    def spreads(self) -> Floats:
        """Before any is estimated; 0 where a column does not vary."""
        fixed = np.where(self.groups == TREATMENT, _TREATMENT_SPREAD, EXPECTED)
        return np.where(self.groups == CONSTANT, 0.0, fixed)

    def completions(
        self, count: int, random: np.random.Generator, *, weights: Floats | None = None
    ) -> list[Floats]:
        """The columns with their gaps drawn given all that is known, outcomes too, by the joint
        distribution of the weighted patients; one if there are no gaps.
        """
        if not np.isnan(self.scaled).any():
            return [self.scaled]
        table, columns = np.hstack([self.scaled, self.outcome]), self.scaled.shape[1]
        joint = fit_joint(table, weights=weights)
        return [completed(table, joint, random)[:, :columns] for _ in range(count)]


def _design(table: _Table, patients: Patients, causes: list[int], endpoint: int) -> Design:
    followed = FollowUp.of(patients.time, patients.cause)
    events = np.stack([followed.cause == cause for cause in causes], axis=1)
    outcome = [events.astype(np.float64), cumulative_hazard(followed, causes)]
    varies = np.nanstd(table.scaled, axis=0) > 0
    images = len(table.image_components)
    groups = np.where(np.arange(len(varies)) < images, IMAGE, CLINICAL)
    groups = np.where(varies, groups, CONSTANT)
    treated, interacting = None, np.empty(0, np.intp)
    if patients.treated is not None:
        treated = patients.treated.astype(np.float64)
        outcome.append(treated[:, None])
        interacting = np.arange(images) if images else np.flatnonzero(varies)
        groups = np.concatenate([groups, [TREATMENT], np.full(len(interacting), INTERACTION)])
    return Design(
        scaled=table.scaled,
        outcome=np.hstack(outcome),
        followed=followed,
        treated=treated,
        interacting=interacting,
        groups=groups,
        causes=causes,
        endpoint=endpoint,
    )


def fit_whole(
    design: Design, completions: int, random: np.random.Generator
) -> tuple[list[CauseFit], list[Floats], float | None]:
    """Each cause on all completions at once (every patient counts once), spreads, and the p value
    of the interaction.
    """
    drawn = design.completions(completions, random)
    columns = np.vstack([design.columns(one) for one in drawn])
    followed = design.followed.repeated(len(drawn))
    weights = np.full(len(columns), 1 / len(drawn))
    fits, spreads = [], []
    for cause in design.causes:
        start, groups = design.spreads(), design.groups.copy()
        groups[groups == TREATMENT] = -1
        if cause != design.endpoint:
            start[groups == INTERACTION] = 0.0
            groups[groups == INTERACTION] = -1
        found = estimate_spreads(columns, followed, cause, start, groups, weights=weights)
        spreads.append(found)
        fits.append(fit_cause(columns, followed, cause, Prior.of(found), weights=weights))
    return fits, spreads, _interaction_p_value(design, drawn)


def _interaction_p_value(design: Design, completions: list[Floats]) -> float | None:
    """Likelihood ratio test that the treatment's effect does not depend on the columns; the median
    over completions (van de Wiel et al., Stat Med 2009). None without a treatment, without columns
    that vary, or with fewer than EVENTS_PER_TERM events a column.
    """
    terms = len(design.interacting)
    events = int((design.followed.cause == design.endpoint).sum())
    if design.treated is None or not terms or events < EVENTS_PER_TERM * terms:
        return None
    wide = np.where(design.groups == CONSTANT, 0.0, _NO_PENALTY)
    none = np.where(design.groups == INTERACTION, 0.0, wide)
    values = []
    for completion in completions:
        full, without = (
            fit_cause(
                design.columns(completion), design.followed, design.endpoint, Prior.of(spreads)
            ).log_likelihood
            for spreads in (wide, none)
        )
        values.append(chi2.sf(2 * max(full - without, 0.0), len(design.interacting)))
    return float(np.median(values))


def fit_replica(
    design: Design, whole: list[CauseFit], spreads: list[Floats], random: np.random.Generator
) -> list[CauseFit]:
    """One replica: each cause on a weighted sample and a completion of its own, drawn towards a
    draw of the prior.
    """
    size = len(design.scaled)
    weights = random.dirichlet(np.ones(size)) * size
    (completion,) = design.completions(1, random, weights=weights)
    columns = design.columns(completion)
    return [
        fit_cause(
            columns,
            design.followed,
            cause,
            Prior.of(spread).around_a_draw(random),
            weights=weights,
            start=fit.parameters,
        )
        for cause, fit, spread in zip(design.causes, whole, spreads, strict=True)
    ]


def _model(
    fits: list[list[CauseFit]],
    design: Design,
    *,
    table: _Table,
    patients: Patients,
    config: RiskModelConfig,
    p_value: float | None,
    card: Card,
) -> RiskModel:
    every = np.array([[cause.coefficients for cause in fit] for fit in fits])  # [F, K, P + 1 + I]
    columns = design.scaled.shape[1]
    treatment, interaction = np.zeros(every.shape[:2]), np.zeros((*every.shape[:2], columns))
    if design.treated is not None:
        treatment = every[..., columns]
        interaction[..., design.interacting] = every[..., columns + 1 :]
    model = RiskModel(
        image_centre=table.image_centre,
        image_components=table.image_components,
        image_limit=_image_limit(table),
        centre=table.centre,
        scale=table.scale,
        log_baseline=np.array(
            [[cause.log_baseline[:CURVE_QUARTERS] for cause in fit] for fit in fits]
        ),
        coefficients=every[..., :columns],
        treatment=treatment,
        interaction=interaction,
        joint=fit_joint(table.scaled),
        ranges=table.ranges,
        reference=np.full((len(NCCN_GROUPS), 101), np.nan),
        card={
            **card,
            "causes": [CAUSES[cause - 1] for cause in design.causes],
            "endpoint": CAUSES[design.endpoint - 1],
            "treatment": patients.treatment if design.treated is not None else "",
            "randomised": patients.randomised,
            "interaction_p_value": p_value,
        },
    )
    return replace(model, reference=_reference(model, patients, config.min_group))


def _image_limit(table: _Table) -> float:
    components = table.scaled[:, : len(table.image_components)]
    return float(np.linalg.norm(components, axis=1).max()) if components.size else 0.0


def _reference(model: RiskModel, patients: Patients, minimum: int) -> Floats:
    """Percentiles of the score in each of NCCN_GROUPS, [3, 101]."""
    images = [*patients.embeddings] if model.needs_image else [None] * len(patients)
    scores = model.scores(images, patients.covariates)
    found = [one.nccn for one in patients.covariates]
    tiers = np.array(["" if group is None else group.tier for group in found])
    return np.array([_percentiles(scores[tiers == group], minimum) for group in NCCN_GROUPS])


def _percentiles(scores: Floats, minimum: int) -> Floats:
    return np.percentile(scores, np.arange(101)) if len(scores) >= minimum else np.full(101, np.nan)
