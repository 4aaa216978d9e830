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

ENCODED: Final = (
    "age",
    "psa",
    "t_stage",
    "gleason_primary",
    "gleason_secondary",
    "positive_cores",
)
"""Columns of `Covariates.encode`: per 10 years, per doubling, per step of STAGE_STEPS, twice per
pattern above 3, and the share of cores with cancer."""
NAMES: Final = {
    "age": "age",
    "psa": "psa",
    "t_stage": "t_stage",
    "gleason_primary": "gleason",
    "gleason_secondary": "gleason",
    "positive_cores": "positive_cores",
}
"""Columns of ENCODED in the words of an explanation."""


@dataclass(frozen=True, kw_only=True)
class Covariates:
    """Clinical variables of one patient; checked when made. None is a value that is missing.

    Attributes:
        age: years at biopsy.
        psa: ng/mL before biopsy.
        t_stage: one of T_STAGES.
        primary: primary Gleason pattern, 3 to 5; with the secondary, or neither.
        secondary: secondary Gleason pattern, 3 to 5.
        positive_cores: biopsy cores with cancer; with the total, or neither.
        total_cores: biopsy cores taken.

    Raises:
        CovariateError: names the field, the value and what it may be.
    """

    age: float | None = None
    psa: float | None = None
    t_stage: str | None = None
    primary: int | None = None
    secondary: int | None = None
    positive_cores: int | None = None
    total_cores: int | None = None

    def __post_init__(self) -> None:
        require_quantity("age", self.age, AGE_RANGE, "years")
        require_quantity("psa", self.psa, PSA_RANGE, "ng/mL")
        if self.t_stage is not None and self.t_stage not in T_STAGES:
            raise CovariateError(
                "t_stage",
                self.t_stage,
                f"give the clinical T stage as one of {', '.join(T_STAGES)}",
            )
        require_gleason(self.primary, self.secondary)
        require_cores(self.positive_cores, self.total_cores)

    @property
    def gleason(self) -> GleasonScore | None:
        """The Gleason score; None where it is missing."""
        if self.primary is None or self.secondary is None:
            return None
        return GleasonScore(self.primary, self.secondary)

    @property
    def positive_share(self) -> float | None:
        """Share of cores with cancer; None where it is missing."""
        if self.positive_cores is None or self.total_cores is None:
            return None
        return self.positive_cores / self.total_cores

    @property
    def missing(self) -> tuple[str, ...]:
        """What is missing, in the words of NAMES."""
        absent = np.isnan(self.encode())
        return tuple(
            dict.fromkeys(NAMES[name] for name, gone in zip(ENCODED, absent, strict=True) if gone)
        )

    def encode(self) -> npt.NDArray[np.float64]:
        """[6] as ENCODED names them, in its units; NaN where a value is missing."""
        stage = None if self.t_stage is None else STAGE_STEPS[self.t_stage]
        values = (
            None if self.age is None else self.age / 10.0,
            None if self.psa is None else math.log2(self.psa),
            stage,
            None if self.primary is None else self.primary - 3,
            None if self.secondary is None else self.secondary - 3,
            self.positive_share,
        )
        return np.array([math.nan if value is None else value for value in values], np.float64)

    @property
    def nccn(self) -> NccnGroup | None:
        """NCCN risk group, with what led to it; None where PSA, T stage or Gleason is missing."""
        gleason = self.gleason
        if self.psa is None or self.t_stage is None or gleason is None:
            return None
        return nccn_group(
            t_stage=self.t_stage,
            psa=self.psa,
            grade_group=gleason.grade_group,
            primary=gleason.primary,
            positive=self.positive_share,
        )


def require_quantity(
    name: str, value: float | None, within: tuple[float, float], unit: str
) -> None:
    """Refuse a number that no patient has.

    Raises:
        CovariateError: not a finite number, or out of range.
    """
    low, high = within
    if value is not None and not (
        isinstance(value, (int, float)) and math.isfinite(value) and low <= value <= high
    ):
        raise CovariateError(name, value, f"give {unit} between {low:g} and {high:g}")


def require_gleason(primary: int | None, secondary: int | None) -> None:
    """Refuse what is not a Gleason score of a cancer.

    Raises:
        CovariateError: one pattern without the other, or one that is not 3, 4 or 5.
    """
    for name, pattern in (("primary", primary), ("secondary", secondary)):
        if pattern not in (None, 3, 4, 5):
            raise CovariateError(
                name, pattern, "give a Gleason pattern 3, 4 or 5; risk is for men with cancer"
            )
    if (primary is None) != (secondary is None):
        absent = "primary" if primary is None else "secondary"
        raise CovariateError(absent, None, "give both Gleason patterns, or neither")


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
