"""The hazard model on real clinical tables, beside Cox regression and the others that people use.

    python -m tests.benchmarks.risk_tables [--json FILE] [--quick]

Predictions are of men that a fit has not seen: ten folds, three times over (once with --quick).
What is missing is completed by our model; peers get the median of the fit's men in its place. The
Cox model's penalty (lifelines) is chosen by folds within the fit's men.

    blood-...    316 men after prostatectomy: biochemical recurrence; age, race, family history,
                 prostate volume, tumour volume, T stage, Gleason, PSA, confined or not
    stagec-...   146 men with stage C cancer: progression; age, grade, Gleason, G2, ploidy
    byar-...     502 men, estrogen or placebo, six competing causes of death: death of prostate
                 cancer, where other deaths compete; Fine and Gray's model by R's cmprsk where
                 Rscript is installed
    h2o-...      380 men: capsule penetration, yes or no, beside logistic regression

`c` is the concordance, `auc` and `brier` are at five years (`h2o`: of yes and no; its order only,
for a hazard is not a share). The
ratio's spread is the 95 % interval of a bootstrap of the men: a model is not worse than its peer
within it where the interval reaches 1 (Brier: lower is better). `byar-cif` is the cumulative
incidence at five years, by our model averaged over all men, beside Aalen and Johansen's
(lifelines). `byar-treatment` is the p value of the interaction of 1 or 5 mg estrogen with all
columns, beside a Cox model's likelihood ratio test.

With --json FILE, decision curves and calibration are drawn to FILE's name with `.png`.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from lifelines import AalenJohansenFitter, CoxPHFitter
from matplotlib.figure import Figure
from scipy.stats import chi2
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from tests.benchmarks import harness
from tests.support.shared_data import shared_data
from training.risk.cross_validation import folds_by_event
from training.risk.fitting import CLINICAL, CONSTANT, INTERACTION, TREATMENT, Design, fit_whole
from training.risk.hazards import QUARTER, FollowUp, cumulative_hazard, incidence
from training.risk.missing import fit_joint
from training.risk.survival import Observed, auc, brier, calibration, concordance, net_benefit

Floats = npt.NDArray[np.float64]
YEARS = 5.0
PENALTIES = (1e-4, 0.01, 0.1)


@dataclass(frozen=True, kw_only=True)
class Table:
    """A clinical table: columns [N, P] with gaps, what happened, and an optional treatment."""

    name: str
    columns: Floats
    observed: Observed
    treated: Floats | None = None

    def some(self, rows: npt.NDArray[np.intp]) -> Table:
        """These men only."""
        treated = None if self.treated is None else self.treated[rows]
        return Table(
            name=self.name,
            columns=self.columns[rows],
            observed=self.observed.some(rows),
            treated=treated,
        )


Prediction = tuple[Floats, Floats]
"""Score and risk within YEARS of each man."""
Model = Callable[[Table, Table], Prediction]
"""Fitted on the first table, of the men of the second."""


def read_tables() -> dict[str, Table]:
    """The survival tables of the shared data."""
    folder = shared_data()
    if folder is None:
        raise SystemExit("the clinical tables are not here: set ACINUS_SHARED_DATA")
    clinical = folder / "clinical"
    blood = pd.read_csv(clinical / "blood_storage_medicaldata.csv").dropna(
        subset=["TimeToRecurrence"]
    )
    stagec = pd.read_csv(clinical / "stagec_rpart.csv")
    byar = pd.read_csv(clinical / "byar_green_prostate_b.csv")
    cancer = byar["status"] == "dead - prostatic ca"
    return {
        "blood": _table(
            "blood",
            blood[["Age", "AA", "FamHx", "PVol", "TVol", "T.Stage", "bGS", "OrganConfined"]].assign(
                psa=np.log2(blood["PreopPSA"])
            ),
            blood["TimeToRecurrence"] / 12,
            blood["Recurrence"],
        ),
        "stagec": _table(
            "stagec",
            stagec[["age", "eet", "grade", "gleason"]].assign(
                g2=np.log(stagec["g2"]), diploid=stagec["ploidy"] == "diploid"
            ),
            stagec["pgtime"],
            stagec["pgstat"],
        ),
        "byar": _table(
            "byar",
            byar[["age", "stage", "wt", "hx", "hg", "sg", "bm"]].assign(
                size=np.sqrt(byar["sz"]), phosphatase=np.log(byar["ap"])
            ),
            byar["dtime"] / 12,
            np.where(cancer, 1, np.where(byar["status"] == "alive", 0, 3)),
            treated=byar["rx"].isin(["1.0 mg estrogen", "5.0 mg estrogen"]).to_numpy(np.float64),
        ),
    }


def _table(
    name: str,
    columns: pd.DataFrame,
    years: pd.Series,
    cause: pd.Series | npt.NDArray[np.integer],
    *,
    treated: Floats | None = None,
) -> Table:
    return Table(
        name=name,
        columns=columns.to_numpy(np.float64),
        observed=Observed(
            time=np.maximum(years.to_numpy(np.float64), 0.02), cause=np.asarray(cause, np.int64)
        ),
        treated=treated,
    )


def design_of(table: Table, *, interactions: bool = False) -> tuple[Design, Floats, Floats]:
    """Our model's design of a table, with centre and scale of its columns."""
    centre, scale = np.nanmean(table.columns, axis=0), np.nanstd(table.columns, axis=0)
    scaled = (table.columns - centre) / np.where(scale > 0, scale, 1.0)
    followed = FollowUp.of(table.observed.time, table.observed.cause)
    causes = [k for k in (1, 3) if (followed.cause == k).any()]
    events = np.stack([followed.cause == k for k in causes], axis=1)
    outcome = [events.astype(np.float64), cumulative_hazard(followed, causes)]
    groups = np.where(scale > 0, CLINICAL, CONSTANT)
    interacting = np.arange(len(scale)) if interactions else np.empty(0, np.intp)
    if table.treated is not None:
        outcome.append(table.treated[:, None])
        groups = np.concatenate([groups, [TREATMENT], np.full(len(interacting), INTERACTION)])
    design = Design(
        scaled=scaled,
        outcome=np.hstack(outcome),
        followed=followed,
        treated=table.treated,
        interacting=interacting,
        groups=groups,
        causes=causes,
        endpoint=1,
    )
    return design, centre, scale


def ours(fit_on: Table, predict: Table) -> Prediction:
    """The competing hazards of the product; gaps of new men are set to the conditional mean."""
    design, centre, scale = design_of(fit_on)
    fits, _, _ = fit_whole(design, 5, np.random.default_rng(0))
    scaled = (predict.columns - centre) / np.where(scale > 0, scale, 1.0)
    rows = completed_means(design.scaled, scaled)
    if predict.treated is not None:
        rows = np.hstack([rows, predict.treated[:, None]])
    baseline = np.array([fit.log_baseline for fit in fits])
    ratios = rows @ np.array([fit.coefficients for fit in fits]).T
    curves = incidence(baseline[None], ratios)
    return ratios[:, 0], curves[:, 0, round(YEARS / QUARTER)]


def completed_means(known: Floats, rows: Floats) -> Floats:
    """Rows whose gaps are what the others of the row lead one to expect."""
    joint = fit_joint(known)
    filled = [
        joint.completed(row[None], np.zeros((1, len(row))))[0] if np.isnan(row).any() else row
        for row in rows
    ]
    return np.array(filled)


def cox(fit_on: Table, predict: Table) -> Prediction:
    """lifelines' Cox regression of each cause, its penalty chosen by folds; the incidence of the
    first cause from both.
    """
    median = np.nanmedian(fit_on.columns, axis=0)
    scale = np.nanstd(fit_on.columns, axis=0)

    def filled(table: Table) -> pd.DataFrame:
        columns = np.where(np.isnan(table.columns), median, table.columns)
        frame = pd.DataFrame((columns - median) / np.where(scale > 0, scale, 1.0))
        if table.treated is not None:
            frame["treated"] = table.treated
        frame.columns = frame.columns.map(str)
        return frame

    frame, new = filled(fit_on), filled(predict)
    frame = frame.assign(time=fit_on.observed.time)
    penalty = _chosen_penalty(frame, fit_on.observed)
    models = {
        cause: CoxPHFitter(penalizer=penalty).fit(
            frame.assign(event=fit_on.observed.cause == cause), "time", "event"
        )
        for cause in sorted(set(fit_on.observed.cause) - {0})
    }
    grid = np.linspace(0.05, YEARS, 100)
    hazards = {
        cause: model.predict_cumulative_hazard(new, times=grid).to_numpy().T
        for cause, model in models.items()
    }
    total = np.sum(list(hazards.values()), axis=0)
    steps = np.diff(hazards[1], axis=1, prepend=0.0)
    free = np.exp(-np.concatenate([np.zeros((len(total), 1)), total[:, :-1]], axis=1))
    score = np.log(models[1].predict_partial_hazard(new).to_numpy())
    return score, np.clip((free * steps).sum(axis=1), 0, 1)


def _chosen_penalty(frame: pd.DataFrame, observed: Observed) -> float:
    fold = folds_by_event(observed.cause, 5, 0)
    found = []
    for penalty in PENALTIES:
        score = np.zeros(len(frame))
        for k in range(5):
            model = CoxPHFitter(penalizer=penalty).fit(
                frame[fold != k].assign(event=observed.event[fold != k]), "time", "event"
            )
            score[fold == k] = np.log(model.predict_partial_hazard(frame[fold == k]))
        found.append(concordance(observed, score) or 0.5)
    return PENALTIES[int(np.argmax(found))]


FINE_GRAY = """
library(cmprsk)
fit_on <- as.matrix(read.csv("fit.csv")); new <- as.matrix(read.csv("new.csv"))
outcome <- read.csv("outcome.csv")
model <- crr(outcome$time, outcome$cause, fit_on, failcode = 1, cencode = 0)
curves <- predict(model, new)
row <- max(which(curves[, 1] <= 5))
write.csv(data.frame(score = as.vector(new %*% model$coef), risk = curves[row, -1]), "found.csv")
"""


def fine_gray(fit_on: Table, predict: Table) -> Prediction:
    """Fine and Gray's subdistribution hazards, by cmprsk in R."""
    median, scale = np.nanmedian(fit_on.columns, axis=0), np.nanstd(fit_on.columns, axis=0)

    def filled(table: Table) -> Floats:
        columns = (np.where(np.isnan(table.columns), median, table.columns) - median) / scale
        return columns if table.treated is None else np.hstack([columns, table.treated[:, None]])

    with tempfile.TemporaryDirectory() as folder:
        for name, table in (("fit", fit_on), ("new", predict)):
            pd.DataFrame(filled(table)).to_csv(f"{folder}/{name}.csv", index=False)
        outcome = {"time": fit_on.observed.time, "cause": fit_on.observed.cause}
        pd.DataFrame(outcome).to_csv(f"{folder}/outcome.csv", index=False)
        subprocess.run(["Rscript", "-e", FINE_GRAY], cwd=folder, check=True, capture_output=True)
        found = pd.read_csv(f"{folder}/found.csv")
    return found["score"].to_numpy(), found["risk"].to_numpy()


def held_out(table: Table, models: dict[str, Model], *, repeats: int) -> dict[str, Prediction]:
    """Predictions of every man by fits that have not seen him, averaged over the repeats."""
    size = len(table.columns)
    found = {name: (np.zeros(size), np.zeros(size)) for name in models}
    for repeat in range(repeats):
        fold = folds_by_event(table.observed.cause, 10, repeat)
        for k in range(10):
            rows, others = np.flatnonzero(fold == k), np.flatnonzero(fold != k)
            for name, model in models.items():
                score, risk = model(table.some(others), table.some(rows))
                found[name][0][rows] += score / repeats
                found[name][1][rows] += risk / repeats
    return found


def rows_of(table: Table, found: dict[str, Prediction], peer: str) -> list[harness.Row]:
    """Ours against a peer, each with the interval of a bootstrap of the men."""
    observed = table.observed
    (score, risk), (their_score, their_risk) = found["ours"], found[peer]
    average = np.full(len(risk), risk.mean())
    tag = table.name if peer == "cox" else f"{table.name}-{peer}"

    def row(
        case: str,
        statistic: Callable[[Observed, Floats], float | None],
        a: Floats,
        b: Floats,
        **named: object,
    ) -> harness.Row:
        return compared(f"{tag}-{case}", observed, statistic, a, b, **named)

    lower = {"better": "lower", "unit": "Brier score"}
    return [
        row("c", concordance, score, their_score, reference=peer, unit="C-index"),
        row("auc", lambda o, r: auc(o, r, YEARS), risk, their_risk, reference=peer, unit="AUC"),
        row("brier", lambda o, r: brier(o, r, YEARS), risk, their_risk, reference=peer, **lower),
        row(
            "brier-average",
            lambda o, r: brier(o, r, YEARS),
            risk,
            average,
            reference="average",
            **lower,
        ),
    ]


def compared(
    case: str,
    observed: Observed,
    statistic: Callable[[Observed, Floats], float | None],
    a: Floats,
    b: Floats,
    **named: object,
) -> harness.Row:
    """A statistic of two predictions; the spread is the 95 % interval of their ratio."""
    random, size = np.random.default_rng(0), len(a)
    ratios = []
    for _ in range(300):
        rows = random.integers(size, size=size)
        one, other = (
            statistic(observed.some(rows), a[rows]),
            statistic(observed.some(rows), b[rows]),
        )
        if one is not None and other:
            ratios.append(one / other)
    low, high = np.percentile(ratios, [2.5, 97.5])
    mine, theirs = statistic(observed, a) or 0.0, statistic(observed, b) or 1.0
    return harness.Row(
        case=case,
        ours=mine,
        reference_value=theirs,
        ratio=mine / theirs,
        spread=(float(low), float(high)),
        **named,  # type: ignore[arg-type]
    )


def byar_rows(table: Table) -> list[harness.Row]:
    """Cumulative incidence of all men together, and the treatment's interaction."""
    _, risk = ours(table, table)
    peer = AalenJohansenFitter(calculate_variance=False, seed=0).fit(
        table.observed.time, table.observed.cause, 1
    )
    curve = peer.cumulative_density_
    expected = float(curve[curve.index <= YEARS].iloc[-1, 0])
    design, _, _ = design_of(table, interactions=True)
    _, _, p_value = fit_whole(design, 5, np.random.default_rng(0))
    assert p_value is not None
    return [
        harness.pairs_row(
            "byar-cif", [float(risk.mean())], [expected], reference="Aalen-Johansen", unit="risk"
        ),
        harness.pairs_row(
            "byar-treatment", [p_value], [cox_interaction(table)], reference="Cox", unit="p value"
        ),
    ]


def cox_interaction(table: Table) -> float:
    """Likelihood ratio test of the same interaction in lifelines' Cox model."""
    assert table.treated is not None
    columns = np.where(np.isnan(table.columns), np.nanmedian(table.columns, axis=0), table.columns)
    columns = (columns - columns.mean(axis=0)) / columns.std(axis=0)
    frame = pd.DataFrame(columns).assign(treated=table.treated)
    full = frame.join(pd.DataFrame(columns * table.treated[:, None]).add_prefix("by_"))
    values = []
    for each in (full, frame):
        each.columns = each.columns.map(str)
        model = CoxPHFitter().fit(
            each.assign(time=table.observed.time, event=table.observed.event), "time", "event"
        )
        values.append(model.log_likelihood_)
    return float(chi2.sf(2 * (values[0] - values[1]), columns.shape[1]))


def h2o_rows() -> list[harness.Row]:
    """Yes or no: the hazard model with one unit of time, beside logistic regression."""
    folder = shared_data()
    assert folder is not None
    frame = pd.read_csv(folder / "clinical" / "h2o_prostate380.csv")
    event = frame["CAPSULE"].to_numpy() == 1
    columns = frame[["AGE", "RACE", "DPROS", "DCAPS", "VOL", "GLEASON"]].assign(
        psa=np.log2(frame["PSA"].clip(lower=0.1))
    )
    table = _table("h2o", columns, pd.Series(np.full(len(event), YEARS)), event.astype(np.int64))

    def logistic(fit_on: Table, predict: Table) -> Prediction:
        centre, scale = fit_on.columns.mean(axis=0), fit_on.columns.std(axis=0)
        model = LogisticRegression(max_iter=1000).fit(
            (fit_on.columns - centre) / scale, fit_on.observed.event
        )
        risk = model.predict_proba((predict.columns - centre) / scale)[:, 1]
        return risk, risk

    found = held_out(table, {"ours": ours, "logistic": logistic}, repeats=1)
    risk, theirs = found["ours"][1], found["logistic"][1]
    named = {"reference": "logistic", "unit": "AUC"}
    return [
        compared(
            "h2o-auc",
            table.observed,
            lambda o, r: float(roc_auc_score(o.event, r)),
            risk,
            theirs,
            **named,
        ),
    ]


def figure(tables: dict[str, Table], found: dict[str, dict[str, Prediction]]) -> Figure:
    """Decision curves above, calibration below, one column a table."""
    picture = Figure(figsize=(4.6 * len(tables), 8), layout="constrained")
    axes = picture.subplots(2, len(tables))
    thresholds = np.linspace(0.02, 0.5, 49)
    for k, (name, table) in enumerate(tables.items()):
        for model, (_, risk) in found[name].items():
            curve = net_benefit(table.observed, risk, YEARS, thresholds)
            axes[0, k].plot(thresholds, curve, label=model)
            groups = calibration(table.observed, risk, YEARS)
            axes[1, k].plot(
                [one.predicted for one in groups],
                [one.observed for one in groups],
                "o-",
                label=model,
            )
        everyone = net_benefit(table.observed, np.ones(len(table.columns)), YEARS, thresholds)
        axes[0, k].plot(thresholds, everyone, "--", color="grey", label="everyone")
        axes[0, k].axhline(0, color="black", linewidth=0.8)
        axes[0, k].set_ylim(bottom=-0.05)
        axes[0, k].set(title=name, xlabel="threshold of the 5-year risk", ylabel="net benefit")
        limit = max(axes[1, k].get_xlim()[1], axes[1, k].get_ylim()[1])
        axes[1, k].plot([0, limit], [0, limit], "--", color="grey", linewidth=0.8)
        axes[1, k].set(xlabel="predicted 5-year risk", ylabel="observed")
        axes[0, k].legend()
    picture.suptitle("Held-out men. Research use only; not a diagnosis")
    return picture


def main() -> None:
    """Run the benchmark."""
    given = harness.arguments(__doc__ or "")
    tables, rows = read_tables(), []
    found: dict[str, dict[str, Prediction]] = {}
    for name, table in tables.items():
        models: dict[str, Model] = {"ours": ours, "cox": cox}
        if name == "byar" and shutil.which("Rscript"):
            models["fine-gray"] = fine_gray
        found[name] = held_out(table, models, repeats=1 if given.quick else 3)
        for peer in list(models)[1:]:
            rows += rows_of(table, found[name], peer)
    rows += [*byar_rows(tables["byar"]), *h2o_rows()]
    if given.json:
        figure(tables, found).savefig(Path(given.json).with_suffix(".png"), dpi=80)
    harness.report("risk_tables", rows, given, packages=("lifelines", "scikit-learn"))


if __name__ == "__main__":
    main()
