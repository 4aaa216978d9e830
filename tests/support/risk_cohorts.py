"""Men whose hazards are known: clinical variables, slide embeddings that hold a signal, a treatment
whose effect may depend on the image, gaps, and a second cause that competes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from training.risk.covariates import Covariates
from training.risk.fitting import Patients

Floats = npt.NDArray[np.float64]

SHAPE, OTHER_SHAPE = 1.3, 1.2
BASE, OTHER_BASE = 0.012, 0.012
CLINICAL = np.array([0.1, 0.2, 0.12, 0.3, 0.2, 0.8])
"""Log hazard ratios of ENCODED."""
AVERAGE = np.array([6.7, 3.1, 1.5, 0.4, 0.4, 0.4])
IMAGE = np.array([0.45, -0.25, 0.1])
"""Log hazard ratios of three directions of the slide embedding."""
TREATMENT = -0.4
GRADES = ((3, 3), (3, 4), (4, 3), (4, 4), (4, 5))
STAGES = ("T1c", "T2a", "T2b", "T2c", "T3a", "T3b")


@dataclass(frozen=True, kw_only=True)
class KnownCohort:
    """Patients and what is true of them, without the treatment.

    Attributes:
        patients: what a registry would know.
        oracle: log hazard of metastasis, [N].
        treatment_effect: log hazard ratio of the treatment of each, [N].
        other: log hazard of death of another cause, [N].
    """

    patients: Patients
    oracle: Floats
    treatment_effect: Floats
    other: Floats

    def true_risk(self, years: float) -> Floats:
        """Probability of metastasis within `years`, before death; by 800 midpoints, [N]."""
        at = (np.arange(800) + 0.5) * years / 800
        metastasis = BASE * np.exp(self.oracle)[:, None] * at**SHAPE
        death = OTHER_BASE * np.exp(self.other)[:, None] * at**OTHER_SHAPE
        density = metastasis * SHAPE / at * np.exp(-metastasis - death)
        return np.asarray(density.sum(axis=1) * years / 800)


def known_cohort(seed: int, count: int, *, interaction: float = 0.0) -> KnownCohort:
    """Draw a cohort; `interaction` is what one standard deviation of the image's first direction
    adds to the treatment's log hazard ratio.
    """
    rng = np.random.default_rng(seed)
    men = [_man(rng) for _ in range(count)]
    encoded = np.array([man.encode() for man in men])
    image = rng.normal(size=(count, 3)) + 0.3 * (encoded[:, [3]] - 0.5)
    directions = np.random.default_rng(5).normal(size=(3, 16))
    treated = rng.random(count) < 0.5
    oracle = (encoded - AVERAGE) @ CLINICAL + image @ IMAGE
    effect = TREATMENT + interaction * image[:, 0]
    other = 0.9 * (encoded[:, 0] - AVERAGE[0])
    drawn = rng.exponential(size=(2, count))
    hazard = BASE * np.exp(oracle + treated * effect)
    times = np.stack(
        [
            np.minimum(rng.uniform(6, 14, count), rng.exponential(40, count)),
            (drawn[0] / hazard) ** (1 / SHAPE),
            (drawn[1] / (OTHER_BASE * np.exp(other))) ** (1 / OTHER_SHAPE),
        ]
    )
    patients = Patients(
        covariates=men,
        time=np.maximum(times.min(axis=0), 1e-3),
        cause=np.array([0, 1, 3])[times.argmin(axis=0)],
        embeddings=image @ directions + 0.05 * rng.normal(size=(count, 16)),
        treated=treated,
        treatment="short-term ADT",
        randomised=True,
    )
    return KnownCohort(patients=patients, oracle=oracle, treatment_effect=effect, other=other)


def _man(rng: np.random.Generator) -> Covariates:
    grade = int(rng.choice(5, p=[0.33, 0.3, 0.15, 0.12, 0.1]))
    primary, secondary = GRADES[grade]
    return Covariates(
        age=float(np.clip(rng.normal(67, 6.5), 45, 85)),
        psa=float(np.exp(rng.normal(2 + 0.15 * grade, 0.6))),
        t_stage=STAGES[min(5, int(rng.poisson(1 + 0.3 * grade)))],
        primary=primary,
        secondary=secondary,
        positive_cores=int(rng.binomial(12, 0.25 + 0.1 * grade)),
        total_cores=12,
    )


def with_gaps(patients: Patients, *, share: float, seed: int = 9) -> Patients:
    """The same, where PSA, T stage and cores of some men are missing, likelier of older ones."""
    rng = np.random.default_rng(seed)
    ages = np.array([man.age for man in patients.covariates], np.float64)
    likely = share * 2 * (ages - ages.min()) / (ages.max() - ages.min())
    men = []
    for man, chance in zip(patients.covariates, likely, strict=True):
        psa, stage, cores = rng.random(3) < chance
        changes: dict[str, None] = {}
        if psa:
            changes["psa"] = None
        if stage:
            changes["t_stage"] = None
        if cores:
            changes |= {"positive_cores": None, "total_cores": None}
        men.append(replace(man, **changes))  # type: ignore[arg-type]
    return replace(patients, covariates=men)
