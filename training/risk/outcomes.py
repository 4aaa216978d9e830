"""What happened to the patients of a cohort: a table (CSV or Parquet), one line a case.

    case               as in the cohort's manifest, once
    time               from the biopsy to the event or to the end of follow-up, above 0
    event              none, distant_metastasis, prostate_cancer_death or other_death: what ended it
    treatment          0 or 1: whether the patient had the treatment whose benefit is asked for
    age                years at biopsy
    psa                ng/mL before biopsy
    t_stage            clinical T stage: T2a, cT2a, ...; TX is missing
    gleason_primary    3 to 5, as graded at biopsy
    gleason_secondary  3 to 5
    positive_cores     biopsy cores with cancer
    total_cores        biopsy cores taken

The first three are needed. A blank covariate is missing, and handled as such. No other column is
taken: what is not known at biopsy, such as a later PSA or the pathology of the prostatectomy, would
carry the outcome into the model. Everything that is wrong is reported at once, with line numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

from pipelines import storage
from pipelines.manifest_table import Row, read_table, together
from pipelines.slides.errors import ManifestError
from training.errors import CovariateError, OutcomesError
from training.risk.covariates import Covariates
from training.risk.prediction import CAUSES

COVARIATES: Final = (
    "age",
    "psa",
    "t_stage",
    "gleason_primary",
    "gleason_secondary",
    "positive_cores",
    "total_cores",
)
COLUMNS: Final = ("case", "time", "event", "treatment", *COVARIATES)
EVENTS: Final = ("none", *CAUSES)

TimeUnit = Literal["years", "months", "days"]
PER_YEAR: Final[dict[TimeUnit, float]] = {"years": 1.0, "months": 12.0, "days": 365.25}
MAX_YEARS: Final = 60.0
"""Of follow-up: above, it was given in another unit."""
MAX_MEDIAN_YEARS: Final = 15.0
"""Of follow-up: half of a cohort is hardly followed for longer; months read as years would be."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What happened to one patient, and what was known at biopsy.

    Attributes:
        case: pseudonymous group id.
        years: to the event or to the end of follow-up.
        cause: 0 for none, or the place in CAUSES from 1 on.
        treated: whether the patient had the treatment; None if the table does not say.
        covariates: each possibly missing.
    """

    case: str
    years: float
    cause: int
    treated: bool | None
    covariates: Covariates


def read_outcomes(location: str, *, unit: TimeUnit = "years") -> list[Outcome]:
    """Read and validate a table of outcomes.

    Args:
        location: CSV or Parquet.
        unit: of the column time.

    Raises:
        OutcomesError: the table can't be read, has a column that is not one of COLUMNS, or lines
            that can't be used: a case twice, a time that is missing or not above 0, an unknown
            event, a treatment on some lines only, a clinical variable that no patient can have.
    """
    uri = storage.as_uri(location)
    name = storage.object_name(uri)
    try:
        outcomes, problems = _rows(uri, name, unit)
        if problems:
            raise together(name, problems)
    except ManifestError as error:
        raise OutcomesError(f"{error.slide} {error.cause}; {error.remedy}") from None
    if not outcomes:
        raise OutcomesError(f"{name} lists no case; add lines")
    middle = float(np.median([one.years for one in outcomes]))
    if middle > MAX_MEDIAN_YEARS:
        raise OutcomesError(
            f"{name} has a median follow-up of {middle:.0f} years, read as {unit}; {_UNIT_REMEDY}"
        )
    return outcomes


def _rows(uri: str, name: str, unit: TimeUnit) -> tuple[list[Outcome], list[ManifestError]]:
    table = read_table(uri, COLUMNS, literal=("event",))
    needed = [column for column in COLUMNS[:3] if column not in table.columns]
    if needed:
        cause = f"has no column {', '.join(map(repr, needed))}"
        raise ManifestError(name, cause, "add it; case, time and event are needed")
    problems = list(table.problems)
    outcomes: list[Outcome] = []
    lines: dict[str, int] = {}
    for row in table.rows:
        mistakes: list[tuple[str, str]] = []
        outcome = _outcome(row, unit, mistakes)
        first = lines.setdefault(outcome.case, row.line)
        if first != row.line:
            mistakes.append(("names the case of line " + str(first) + " again", "keep one of them"))
        problems += [
            ManifestError(name, f"{cause} in line {row.line}", remedy) for cause, remedy in mistakes
        ]
        outcomes.append(outcome)
    return outcomes, problems + list(_half_treated(name, table.columns, table.rows))


def _half_treated(
    name: str, columns: Sequence[str], rows: Sequence[Row]
) -> Iterator[ManifestError]:
    """A treatment that is stated of some patients only."""
    if "treatment" in columns and any(row.cells["treatment"] for row in rows):
        for row in rows:
            if not row.cells["treatment"]:
                remedy = "give 0 or 1 on every line, or leave the column out"
                yield ManifestError(name, f"has no treatment in line {row.line}", remedy)


Mistakes = list[tuple[str, str]]
"""What is wrong, and what to do."""


def _outcome(row: Row, unit: TimeUnit, mistakes: Mistakes) -> Outcome:
    """The outcome of one line; what is wrong with it is added to `mistakes`."""
    text = {column: row.cells.get(column, "") for column in COLUMNS}
    if not text["case"]:
        mistakes.append(("names no case", "fill the column 'case' or delete the line"))
    event = text["event"].lower().replace(" ", "_").replace("-", "_")
    if event not in EVENTS:
        said = f"has the event {text['event']!r}" if event else "has no event"
        mistakes.append((said, f"give one of {', '.join(EVENTS)}"))
    treated = _TREATED.get(text["treatment"].lower())
    if treated is None and text["treatment"]:
        mistakes.append((f"has the treatment {text['treatment']!r}", "give 0 or 1"))
    return Outcome(
        case=text["case"] or f"line {row.line}",
        years=_years(text["time"], unit, mistakes),
        cause=EVENTS.index(event) if event in EVENTS else 0,
        treated=treated,
        covariates=_covariates(text, mistakes),
    )


def _years(text: str, unit: TimeUnit, mistakes: Mistakes) -> float:
    years = _number(text, float)
    if not text:
        mistakes.append(("has no time", "give the time to the event or to the end of follow-up"))
        return 1.0
    if years is None or not np.isfinite(years):
        remedy = f"give a number of {unit}, with a decimal point"
        mistakes.append((f"has the time {text!r}", remedy))
        return 1.0
    years /= PER_YEAR[unit]
    if years <= 0:
        remedy = "give a time after the biopsy; an event before it can't be predicted"
        mistakes.append((f"has the time {text}, which is not above 0", remedy))
    elif years > MAX_YEARS:
        remedy = _UNIT_REMEDY
        mistakes.append((f"has the time {text} {unit}, {years:.0f} years", remedy))
    return years


def _covariates(text: dict[str, str], mistakes: Mistakes) -> Covariates:
    """Made one group of fields at a time, so that one mistake does not hide another."""
    names = {"gleason_primary": "primary", "gleason_secondary": "secondary"}
    groups: tuple[tuple[str, ...], ...] = (
        ("age",),
        ("psa",),
        ("t_stage",),
        ("gleason_primary", "gleason_secondary"),
        ("positive_cores", "total_cores"),
    )
    good: dict[str, Any] = {}
    for group in groups:
        values: dict[str, Any] = {}
        for column in group:
            kind = _KINDS.get(column, _whole)
            values[names.get(column, column)] = _number(text[column], kind)
            if text[column] and values[names.get(column, column)] is None and kind is not _t_stage:
                mistakes.append((f"has the {column} {text[column]!r}", "give a number or nothing"))
        try:
            Covariates(**values)
        except CovariateError as error:
            mistakes.append((f"has the {error.field} {error.value!r}", error.remedy))
        else:
            good |= values
    return Covariates(**good)


def _number(text: str, kind: Callable[[str], Any]) -> Any:
    try:
        return kind(text) if text and "_" not in text else None
    except ValueError:
        return None


def _whole(text: str) -> int:
    """A whole number; tables with gaps hold 4.0."""
    number = float(text)
    if not number.is_integer():
        raise ValueError(text)
    return int(number)


def _t_stage(text: str) -> str | None:
    """As T_STAGES spells it; TX is missing. A pathological stage (pT2) stays as it is, to be
    refused: it is not known at biopsy.
    """
    stage = text[1:] if text[:1] in "cC" else text
    if stage.upper() == "TX":
        return None
    return stage[:1].upper() + stage[1:].lower() if stage[:1] in "tT" else text


_KINDS: Final[dict[str, Callable[[str], Any]]] = {"age": float, "psa": float, "t_stage": _t_stage}
"""How a column is read; whole numbers else."""
_TREATED: Final = {
    "": None,
    "0": False,
    "0.0": False,
    "false": False,
    "1": True,
    "1.0": True,
    "true": True,
}
_UNIT_REMEDY: Final = "say whether time is in years, months or days"
