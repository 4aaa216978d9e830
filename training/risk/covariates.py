"""What a clinician states about a patient in addition to the slides: age, PSA, clinical T stage,
Gleason. No identity.

The same encoding serves the cohort generator, the risk model and its explanations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from training.errors import CovariateError
from training.risk.nccn import NccnGroup, nccn_group
from training.slide.gleason import GleasonScore

STAGE_STEPS: Final = {
    "T1": 0.0,
    "T1a": 0.0,
    "T1b": 0.0,
    "T1c": 0.0,
    "T2": 2.0,
    "T2a": 1.0,
    "T2b": 2.0,
    "T2c": 3.0,
    "T3": 4.5,
    "T3a": 4.0,
    "T3b": 5.0,
    "T4": 6.0,
}
"""Clinical T stages of AJCC's 7th and 8th edition, and how far each is from T1c. T1a and T1b, found
by resection, count as T1c; a stage without its letter is the middle of its letters."""
T_STAGES: Final = tuple(STAGE_STEPS)

NCCN_GROUPS: Final = ("low", "intermediate", "high")

MAX_CORES: Final = 100
AGE_RANGE: Final = (30.0, 100.0)
PSA_RANGE: Final = (0.05, 5000.0)

ENCODED: Final = ("age", "psa", "t_stage", "gleason_primary", "gleason_secondary")
"""Columns of `Covariates.encode`: per 10 years, per doubling, per step of STAGE_STEPS, and
twice per pattern above 3."""


@dataclass(frozen=True, kw_only=True)
class Covariates:
    """Clinical variables of one patient; checked when made.

    Attributes:
        age: years at biopsy.
        psa: ng/mL before biopsy.
        t_stage: one of T_STAGES.
        primary: primary Gleason pattern, 3 to 5.
        secondary: secondary Gleason pattern, 3 to 5.
        positive_cores: biopsy cores with cancer; None if not known.
        total_cores: biopsy cores taken; None if not known.

    Raises:
        CovariateError: names the field, the value and what it may be.
    """

    age: float
    psa: float
    t_stage: str
    primary: int
    secondary: int
    positive_cores: int | None = None
    total_cores: int | None = None

    def __post_init__(self) -> None:
        for name, value, (low, high), unit in (
            ("age", self.age, AGE_RANGE, "years"),
            ("psa", self.psa, PSA_RANGE, "ng/mL"),
        ):
            if not (
                isinstance(value, (int, float)) and math.isfinite(value) and low <= value <= high
            ):
                raise CovariateError(name, value, f"give {unit} between {low:g} and {high:g}")
        if self.t_stage not in T_STAGES:
            raise CovariateError(
                "t_stage",
                self.t_stage,
                f"give the clinical T stage as one of {', '.join(T_STAGES)}",
            )
        for name, pattern in (("primary", self.primary), ("secondary", self.secondary)):
            if pattern not in (3, 4, 5):
                raise CovariateError(
                    name, pattern, "give a Gleason pattern 3, 4 or 5; risk is for men with cancer"
                )

        require_cores(self.positive_cores, self.total_cores)

    @property
    def gleason(self) -> GleasonScore:
        """The Gleason score."""
        return GleasonScore(self.primary, self.secondary)

    def encode(self) -> npt.NDArray[np.float64]:
        """[5] as ENCODED names them, in its units."""
        stage = STAGE_STEPS[self.t_stage]
        return np.array(
            [self.age / 10.0, math.log2(self.psa), stage, self.primary - 3, self.secondary - 3],
            np.float64,
        )

    @property
    def nccn(self) -> NccnGroup:
        """NCCN risk group, with what led to it."""
        positive = None
        if self.positive_cores is not None and self.total_cores is not None:
            positive = self.positive_cores / self.total_cores
        return nccn_group(
            t_stage=self.t_stage,
            psa=self.psa,
            grade_group=self.gleason.grade_group,
            primary=self.primary,
            positive=positive,
        )


def require_cores(positive: int | None, total: int | None) -> None:
    """Refuse numbers of biopsy cores that no biopsy has.

    Raises:
        CovariateError: one without the other, no core at all, or more positive ones than cores.
    """
    if (positive is None) != (total is None):
        raise CovariateError(
            "positive_cores", positive, "give positive_cores and total_cores, or neither"
        )
    if positive is None or total is None:
        return
    if not 1 <= total <= MAX_CORES:
        raise CovariateError("total_cores", total, f"give a number of cores, 1 to {MAX_CORES}")
    if not 0 <= positive <= total:
        raise CovariateError("positive_cores", positive, f"give 0 to {total}, the total of cores")
