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
from training.slide.gleason import GleasonScore

T_STAGES: Final = ("T1c", "T2a", "T2b", "T2c", "T3a", "T3b")
"""Clinical T stages of localised cancer found by needle biopsy, AJCC 7th edition, in order."""

NCCN_GROUPS: Final = ("low", "intermediate", "high")

AGE_RANGE: Final = (30.0, 100.0)
PSA_RANGE: Final = (0.05, 5000.0)

ENCODED: Final = ("age", "psa", "t_stage", "gleason_primary", "gleason_secondary")
"""Columns of `Covariates.encode`: per 10 years, per doubling, per step of T_STAGES, and twice per
pattern above 3."""


@dataclass(frozen=True, kw_only=True)
class Covariates:
    """Clinical variables of one patient; checked when made.

    Attributes:
        age: years at biopsy.
        psa: ng/mL before biopsy.
        t_stage: one of T_STAGES.
        primary: primary Gleason pattern, 3 to 5.
        secondary: secondary Gleason pattern, 3 to 5.

    Raises:
        CovariateError: names the field, the value and what it may be.
    """

    age: float
    psa: float
    t_stage: str
    primary: int
    secondary: int

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

    @property
    def gleason(self) -> GleasonScore:
        """The Gleason score."""
        return GleasonScore(self.primary, self.secondary)

    def encode(self) -> npt.NDArray[np.float64]:
        """[5] as ENCODED names them, in its units."""
        stage = T_STAGES.index(self.t_stage)
        return np.array(
            [self.age / 10.0, math.log2(self.psa), stage, self.primary - 3, self.secondary - 3],
            np.float64,
        )

    @property
    def nccn_group(self) -> str:
        """NCCN risk group of localised prostate cancer from T stage, PSA and grade group.

        Low: T1-T2a, grade group 1 and PSA below 10. High (very high included): T3, grade group 4-5
            or PSA above 20. Intermediate: the
        rest. Favourable and unfavourable intermediate cannot be distinguished: that needs the share
        of positive cores; very low neither.
        """
        group = self.gleason.grade_group
        if self.t_stage.startswith("T3") or group >= 4 or self.psa > 20:
            return "high"
        if self.t_stage in ("T1c", "T2a") and group == 1 and self.psa < 10:
            return "low"
        return "intermediate"
