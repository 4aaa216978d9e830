"""What treatments of localised prostate cancer rest on: the options that the guideline names for
each risk group, and the trials behind them, in our own words.

The options are those of the edition that `nccn.py` names, as a review of its year reproduces them
(intermediate and high: PMC7672503, table 4). For low and very high risk no source of that year was
at hand: NCCN's guide for patients of 2016 was, and the options in both editions are taken to be the
same. Findings of trials are those of their published abstracts. Nothing here was reviewed by a
clinician.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from training.risk.nccn import NccnName

Treatment = Literal[
    "active surveillance",
    "radiotherapy",
    "radiotherapy with short-term ADT (4 to 6 months)",
    "radiotherapy with long-term ADT (18 to 36 months)",
    "radical prostatectomy",
    "observation",
]

SURVEILLANCE: Final = "active surveillance"
RADIOTHERAPY: Final = "radiotherapy"
SHORT_ADT: Final = "radiotherapy with short-term ADT (4 to 6 months)"
LONG_ADT: Final = "radiotherapy with long-term ADT (18 to 36 months)"
PROSTATECTOMY: Final = "radical prostatectomy"
OBSERVATION: Final = "observation"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A published result.

    Attributes:
        name: of the trial.
        source: authors, journal and year.
        finding: what it found, in one sentence.
    """

    name: str
    source: str
    finding: str

    def __str__(self) -> str:
        return f"{self.name} ({self.source}): {self.finding}"


PROTECT: Final = Trial(
    name="ProtecT",
    source="Hamdy et al., N Engl J Med 2023",
    finding="1,643 men whose cancer was found by PSA, two thirds of them of low risk, were drawn "
    "to active monitoring, surgery or radiotherapy; after 15 years 3.1 %, 2.2 % and 2.9 % had died "
    "of it (no significant difference), and 9.4 %, 4.7 % and 5.0 % had metastases.",
)
RTOG_9408: Final = Trial(
    name="RTOG 9408",
    source="Jones et al., N Engl J Med 2011",
    finding="in 1,979 men with T1b to T2b and a PSA of 20 or less, 4 months of ADT with "
    "radiotherapy raised survival at 10 years from 57 % to 62 % and halved death from the cancer "
    "(8 % to 4 %), mainly in intermediate risk; in low risk no gain was significant.",
)
RTOG_0815: Final = Trial(
    name="RTOG 0815",
    source="Krauss et al., J Clin Oncol 2023",
    finding="in 1,492 men of intermediate risk, 6 months of ADT with dose-escalated radiotherapy "
    "lowered distant metastases (hazard ratio 0.25), not deaths of all causes (91 % against 90 % "
    "alive at 5 years); acute severe side effects rose from 2 % to 12 %.",
)
EORTC_22991: Final = Trial(
    name="EORTC 22991",
    source="Bolla et al., J Clin Oncol 2021",
    finding="in 481 men of intermediate risk, 6 months of ADT with 74 or 78 Gy improved event-free "
    "survival (hazard ratio 0.53); survival without metastasis at 10 years was 79 % against 73 %, "
    "which is not significant.",
)
RTOG_9910: Final = Trial(
    name="RTOG 9910",
    source="Pisansky et al., J Clin Oncol 2015",
    finding="in 1,489 men, 28 weeks of ADT before radiotherapy were not better than 8 weeks; 6 % "
    "had distant metastases at 10 years either way.",
)
SPRATT: Final = Trial(
    name="predictive model of RTOG 9408",
    source="Spratt et al., NEJM Evidence 2023",
    finding="another model than this one, from images and clinical variables, separated 543 men "
    "whom 4 months of ADT helped (distant metastasis, hazard ratio 0.34, 95 % interval 0.19 to "
    "0.63) from 1,051 in whom no benefit was seen (0.92, 0.59 to 1.43).",
)
EORTC_22961: Final = Trial(
    name="EORTC 22961",
    source="Bolla et al., N Engl J Med 2009",
    finding="in 970 men with locally advanced cancer, 6 months of ADT with radiotherapy were worse "
    "than 3 years: 19.0 % against 15.2 % had died at 5 years.",
)
RTOG_9202: Final = Trial(
    name="RTOG 9202",
    source="Lawton et al., Int J Radiat Oncol Biol Phys 2017",
    finding="in 1,520 men with T2c to T4, 28 months of ADT instead of 4 lowered distant metastases "
    "by 36 % and deaths by 12 % in 20 years.",
)
DART: Final = Trial(
    name="DART 01/05",
    source="Zapatero et al., Lancet Oncol 2015",
    finding="with high-dose radiotherapy, 28 months of ADT instead of 4 improved biochemical "
    "control and survival at 5 years, above all in high risk.",
)

TRIALS: Final[dict[Treatment, tuple[Trial, ...]]] = {
    SURVEILLANCE: (PROTECT,),
    RADIOTHERAPY: (PROTECT,),
    SHORT_ADT: (RTOG_9408, RTOG_0815, EORTC_22991, RTOG_9910, SPRATT),
    LONG_ADT: (EORTC_22961, RTOG_9202, DART),
    PROSTATECTOMY: (PROTECT,),
    OBSERVATION: (),
}

_TEN = "for a life expectancy of 10 years or more"
_SHORT = "preferred where life expectancy is below 10 years"
_FIVE = "for a life expectancy above 5 years, or with symptoms"

GUIDELINE: Final[dict[NccnName, dict[Treatment, str]]] = {
    "low": {
        SURVEILLANCE: f"preferred {_TEN}",
        RADIOTHERAPY: f"external or brachytherapy, {_TEN}",
        PROSTATECTOMY: _TEN,
        OBSERVATION: _SHORT,
    },
    "favourable intermediate": {
        SURVEILLANCE: _TEN,
        RADIOTHERAPY: "external or brachytherapy, whatever the life expectancy",
        PROSTATECTOMY: f"{_TEN}; with lymph nodes where their predicted risk is 2 % or more",
        OBSERVATION: _SHORT,
    },
    "unfavourable intermediate": {
        RADIOTHERAPY: "external, with or without brachytherapy; ADT may be added",
        SHORT_ADT: "external, with or without brachytherapy",
        PROSTATECTOMY: f"{_TEN}; with lymph nodes where their predicted risk is 2 % or more",
        OBSERVATION: _SHORT,
    },
    "high": {
        LONG_ADT: f"external, {_FIVE}; with brachytherapy 12 to 36 months of ADT",
        PROSTATECTOMY: f"with lymph nodes, {_FIVE}",
        OBSERVATION: "where life expectancy is 5 years or less and there are no symptoms",
    },
    "very high": {
        LONG_ADT: f"external, {_FIVE}; with brachytherapy 12 to 36 months of ADT",
        PROSTATECTOMY: f"with lymph nodes, {_FIVE}, where the tumour is not fixed",
        OBSERVATION: "where life expectancy is 5 years or less and there are no symptoms",
    },
}
"""By group: each option, and whom it is for. Life expectancy is not asked for here, so that every
option names the one that it depends on. "intermediate" has none of its own: it is divided first."""
