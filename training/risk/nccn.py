"""NCCN risk groups of localised prostate cancer, by the published rules.

EDITION, as reproduced by eviQ (Cancer Institute NSW, table 3417):

    very low       T1c, grade group 1, PSA below 10, fewer than 3 positive cores with at most 50 %
                   cancer in each, PSA density below 0.15: the share of cancer in each core and the
                   density are not asked for here, so that very low is reported as low
    low            T1 to T2a, grade group 1, PSA below 10
    intermediate   no high or very high feature, and at least one intermediate risk factor: T2b or
                   T2c; grade group 2 or 3; PSA 10 to 20
      favourable     one factor, grade group 1 or 2, and less than half of the cores positive
      unfavourable   two or three factors, or grade group 3, or half of the cores or more positive
    high           T3a, or grade group 4 or 5, or PSA above 20: one of them
    very high      T3b or T4, or primary pattern 5, or two or three high features, or more than 4
                   cores of grade group 4 or 5 (the grade of each core is not asked for here)

A stage without its letter counts as its lowest where that decides less: T2 as T2a (low is still
possible), T3 as T3a. Such a group says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Final, Literal

EDITION: Final = "NCCN Guidelines, Prostate Cancer, version 2.2020"

NccnName = Literal[
    "low",
    "intermediate",
    "favourable intermediate",
    "unfavourable intermediate",
    "high",
    "very high",
]


@dataclass(frozen=True, kw_only=True)
class NccnGroup:
    """A man's risk group and what led to it.

    Attributes:
        name: of the group; "intermediate" where the positive cores that would decide between
            favourable and unfavourable are missing.
        reasons: what led to it, each as a short phrase with the man's own value.
        missing: what would have been needed to say more.
        edition: of the rules.
    """

    name: NccnName
    reasons: tuple[str, ...]
    missing: tuple[str, ...] = ()
    edition: str = EDITION

    @property
    def tier(self) -> Literal["low", "intermediate", "high"]:
        """The group without its subdivision; high includes very high."""
        if self.name in ("high", "very high"):
            return "high"
        return "low" if self.name == "low" else "intermediate"


GROUPS: Final[tuple[NccnName, ...]] = (
    "low",
    "favourable intermediate",
    "unfavourable intermediate",
    "high",
    "very high",
)
"""From the lowest; "intermediate" is one of two of these."""

_STAGES: Final = {
    "T2": ("T2a", "T2b", "T2c"),
    "T3": ("T3a", "T3b"),
    None: ("T1c", "T2b", "T3a", "T3b"),
}
_GRADES: Final = ((1, 3), (2, 3), (3, 4), (4, 4), (5, 4), (5, 5))
"""Grade group and primary pattern."""


def possible_groups(
    *,
    t_stage: str | None,
    psa: float | None,
    grade_group: int | None,
    primary: int | None,
    positive: float | None,
) -> tuple[NccnName, ...]:
    """The groups of GROUPS that a man may belong to, from the lowest, whatever is missing of him.

    Arguments as for `nccn_group`; None and a stage without its letter stand for every value.
    """
    stages = _STAGES.get(t_stage, (str(t_stage),))
    grades = _GRADES if grade_group is None or primary is None else ((grade_group, primary),)
    shares = (0.0, 1.0) if positive is None else (positive,)
    found = {
        nccn_group(
            t_stage=stage, psa=level, grade_group=group, primary=pattern, positive=share
        ).name
        for stage, level, (group, pattern), share in product(
            stages, (5.0, 15.0, 25.0) if psa is None else (psa,), grades, shares
        )
    }
    return tuple(name for name in GROUPS if name in found)


def nccn_group(
    *, t_stage: str, psa: float, grade_group: int, primary: int, positive: float | None
) -> NccnGroup:
    """The group of a man with localised cancer.

    Args:
        t_stage: clinical T stage, such as "T2b"; the letter may be missing.
        psa: ng/mL.
        grade_group: ISUP grade group, 1 to 5.
        primary: primary Gleason pattern.
        positive: share of cores with cancer, 0 to 1; None if not known.
    """
    missing = ("letter of the T stage",) if t_stage in ("T2", "T3") else ()
    high = [
        reason
        for applies, reason in (
            (t_stage in ("T3", "T3a"), f"stage {t_stage}"),
            (grade_group >= 4, f"grade group {grade_group}"),
            (psa > 20, f"PSA {psa:g} above 20"),
        )
        if applies
    ]
    worst = [
        reason
        for applies, reason in (
            (t_stage in ("T3b", "T4"), f"stage {t_stage}"),
            (primary == 5, "primary pattern 5"),
            (len(high) >= 2, f"{len(high)} high-risk features: {', '.join(high)}"),
        )
        if applies
    ]
    if worst:
        return NccnGroup(name="very high", reasons=tuple(worst), missing=missing)
    if high:
        return NccnGroup(name="high", reasons=tuple(high), missing=missing)
    factors = [
        reason
        for applies, reason in (
            (t_stage in ("T2b", "T2c"), f"stage {t_stage}"),
            (grade_group in (2, 3), f"grade group {grade_group}"),
            (10 <= psa <= 20, f"PSA {psa:g} from 10 to 20"),
        )
        if applies
    ]
    if not factors:
        reasons = (f"stage {t_stage}, grade group 1, PSA {psa:g} below 10",)
        return NccnGroup(name="low", reasons=reasons, missing=missing)
    return _intermediate(tuple(factors), missing, grade_group, positive)


def _intermediate(
    factors: tuple[str, ...], missing: tuple[str, ...], grade_group: int, positive: float | None
) -> NccnGroup:
    many = positive is not None and positive >= 0.5
    if len(factors) > 1 or grade_group == 3 or many:
        cores = (f"{positive:.0%} of the cores positive",) if many else ()
        return NccnGroup(
            name="unfavourable intermediate", reasons=(*factors, *cores), missing=missing
        )
    if positive is None:
        missing = (*missing, "positive cores")
        return NccnGroup(name="intermediate", reasons=factors, missing=missing)
    cores = (f"{positive:.0%} of the cores positive",)
    return NccnGroup(name="favourable intermediate", reasons=(*factors, *cores), missing=missing)
