"""The risk model where the truth is known: what it says against the hazards that made the outcomes.

    python -m tests.benchmarks.risk [--json FILE] [--quick]

200 cohorts of 1,000 men (20 with --quick; `tests/support/risk_cohorts.py`), each fitted and then
compared with the truth on 600 new men. `concordance` is the model's beside that of the true
hazards: the goal is within 0.02. `lifelines-cox` is the same of an unpenalised Cox fit of the same
columns. `slope` is the true log hazard's slope on the predicted one: 0.9 to 1.1. `coverage-...` are
the shares of new men whose 95 % interval of the 10-year risk holds the true one, and of cohorts
whose interval of the treatment's hazard ratio does: 0.93 to 0.97. `...-gaps` is fitted with a
quarter of PSA, T stage and cores missing. `risk-missing` is the mean predicted risk of men whose
own PSA, T stage and cores are missing, beside their mean true risk. `interaction-found` is the
share of cohorts in which the test of the treatment's interaction with the image has p < 0.05,
where one standard deviation changes its log hazard ratio by 0.5; `interaction-none` is the same
where nothing is to be found: near 0.05.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from lifelines import CoxPHFitter

from tests.benchmarks import harness
from tests.support.risk_cohorts import KnownCohort, known_cohort, with_gaps
from training.risk.fitting import DEFAULT_RISK, Patients, fit_risk_model
from training.risk.risk_model import RiskModel
from training.risk.survival import Observed, concordance

MEN, NEW_MEN, COHORTS, QUICK = 1000, 600, 200, 20
STRENGTH = -0.5
"""What one standard deviation of the image changes in the treatment's log hazard ratio."""
GAPS = 0.25


@dataclass(frozen=True, kw_only=True)
class Found:
    """What was found in one cohort."""

    concordance: float
    oracle: float
    cox: float
    slope: float
    coverage: float
    treatment_covered: bool
    missing_predicted: float
    missing_true: float
    p_value: float


def study(seed: int, *, interaction: float = 0.0, gaps: float = 0.0) -> Found:
    """Fit one cohort and compare with the truth of new men."""
    cohort = known_cohort(seed, MEN, interaction=interaction)
    patients = with_gaps(cohort.patients, share=gaps, seed=seed) if gaps else cohort.patients
    model = fit_risk_model(
        patients, card={"simulated_outcomes": True}, config=DEFAULT_RISK, seed=seed
    )
    new = known_cohort(seed + 10_000, NEW_MEN, interaction=interaction)
    images = list(new.patients.embeddings)
    true = new.true_risk(10.0)
    _, lower, upper = model.ten_year_risks(images, new.patients.covariates)
    scores = model.scores(images, new.patients.covariates)
    fewer = with_gaps(new.patients, share=0.5, seed=seed)
    nobody = np.zeros(NEW_MEN, bool)
    _, predicted = model.endpoint_risks(images, fewer.covariates, nobody, years=10.0)
    gone = np.array([bool(man.missing) for man in fewer.covariates])
    untreated = np.flatnonzero(~new.patients.treated)  # type: ignore[operator]
    observed = Observed(time=new.patients.time, cause=new.patients.cause).some(untreated)
    return Found(
        concordance=concordance(observed, scores[untreated]) or 0.5,
        oracle=concordance(observed, new.oracle[untreated]) or 0.5,
        cox=_cox(model, cohort.patients, new, untreated, observed),
        slope=float(np.polyfit(scores, new.oracle, 1)[0]),
        coverage=float(((lower <= true) & (true <= upper)).mean()),
        treatment_covered=_treatment_covered(model, cohort),
        missing_predicted=float(predicted[gone].mean()),
        missing_true=float(true[gone].mean()),
        p_value=model.card["interaction_p_value"],
    )


def _treatment_covered(model: RiskModel, cohort: KnownCohort) -> bool:
    """Whether the interval of the treatment's log hazard ratio at the average man holds the true
    one.
    """
    found = model.treatment[:, model.endpoint]
    true = float(cohort.treatment_effect.mean())
    return bool(abs(true - found[0]) <= 1.96 * found[1:].std(ddof=1))


def _cox(
    model: RiskModel,
    patients: Patients,
    new: KnownCohort,
    untreated: np.ndarray,
    observed: Observed,
) -> float:
    """Concordance of lifelines' unpenalised Cox model of the same columns, without gaps."""
    columns = model.columns(list(patients.embeddings), patients.covariates)
    frame = pd.DataFrame(columns).assign(
        treated=patients.treated, time=patients.time, event=patients.cause == 1
    )
    frame.columns = frame.columns.map(str)
    peer = CoxPHFitter().fit(frame, "time", "event")
    coefficients = peer.params_.to_numpy()[: columns.shape[1]]
    scores = model.columns(list(new.patients.embeddings), new.patients.covariates) @ coefficients
    return concordance(observed, scores[untreated]) or 0.5


def studies(count: int, **options: float) -> list[Found]:
    """The first cohorts, on two processes."""
    with ProcessPoolExecutor(2) as pool:
        return list(pool.map(partial(study, **options), range(count), chunksize=4))


def share_row(case: str, shares: Sequence[float], aim: float, **named: object) -> harness.Row:
    """A mean over cohorts beside what it should be; quartiles of the cohorts."""
    low, high = np.percentile(shares, [25, 75])
    mean = float(np.mean(shares))
    return harness.Row(
        case=case,
        ours=mean,
        reference="aim",
        reference_value=aim,
        unit="mean over cohorts",
        ratio=mean / aim,
        spread=(float(low / aim), float(high / aim)),
        **named,  # type: ignore[arg-type]
    )


def rows_of(case: str, found: Sequence[Found]) -> list[harness.Row]:
    """What is compared in every scenario."""
    c = {"reference": "true hazards", "unit": "C-index"}
    return [
        harness.pairs_row(
            f"concordance{case}", [k.concordance for k in found], [k.oracle for k in found], **c
        ),
        share_row(
            f"concordance-lost{case}",
            [k.oracle - k.concordance for k in found],
            0.02,
            goal=1.0,
            better="lower",
        ),
        share_row(f"slope{case}", [k.slope for k in found], 1.0),
        share_row(f"coverage-risk{case}", [k.coverage for k in found], 0.95),
        share_row(f"coverage-treatment{case}", [float(k.treatment_covered) for k in found], 0.95),
    ]


def main() -> None:
    """Run the benchmark."""
    given = harness.arguments(__doc__ or "")
    count = QUICK if given.quick else COHORTS
    plain, gaps = studies(count), studies(count, gaps=GAPS)
    changed = studies(count, interaction=STRENGTH)
    rows = [*rows_of("", plain), *rows_of("-gaps", gaps)]
    rows.insert(
        1,
        harness.pairs_row(
            "lifelines-cox",
            [k.concordance for k in plain],
            [k.cox for k in plain],
            reference="Cox, lifelines",
            unit="C-index",
        ),
    )
    rows += [
        harness.pairs_row(
            "risk-missing",
            [k.missing_predicted for k in gaps],
            [k.missing_true for k in gaps],
            reference="true risk",
            unit="10-year risk",
        ),
        share_row("interaction-found", [float(k.p_value < 0.05) for k in changed], 1.0),
        share_row("interaction-none", [float(k.p_value < 0.05) for k in plain], 0.05),
    ]
    harness.report("risk", rows, given, packages=("numpy", "lifelines"))


if __name__ == "__main__":
    main()
