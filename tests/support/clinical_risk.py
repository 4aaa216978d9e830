"""A risk model of clinical variables alone, fitted by the product's own functions on drawn men.

Half of them had short-term ADT, drawn at random; it halves the hazard of metastasis.
"""

from __future__ import annotations

import numpy as np

from pipelines import storage
from training.cards import versions
from training.model_set import RISK_MODEL
from training.risk.covariates import T_STAGES, Covariates
from training.risk.fitting import Patients, RiskModelConfig, fit_risk_model
from training.risk.risk_model import save_risk_model

MEN = 600


def make_clinical_risk_model(
    out: str, *, simulated_outcomes: bool = False, seed: int = 0, image: int = 0
) -> str:
    """Fit the model and write it below `out`, as the only part of a model set; returns its URI.

    Args:
        out: folder of the set.
        simulated_outcomes: what the card says.
        seed: of the men.
        image: numbers in a slide embedding; with 0 the model takes none.
    """
    random = np.random.default_rng(seed)
    men = [
        Covariates(
            age=float(random.uniform(50, 80)),
            psa=float(np.clip(random.lognormal(2, 0.7), 0.5, 100)),
            t_stage=str(random.choice(T_STAGES)),
            primary=int(random.choice([3, 4, 5], p=[0.6, 0.3, 0.1])),
            secondary=int(random.choice([3, 4, 5], p=[0.5, 0.4, 0.1])),
            positive_cores=int(random.integers(1, 13)),
            total_cores=12,
        )
        for _ in range(MEN)
    ]
    treated = random.random(MEN) < 0.5
    metastasis = np.array([0.012 * 2.2 ** (one.primary - 3) for one in men if one.primary])
    rates = np.stack([metastasis * np.where(treated, 0.5, 1.0), np.full(MEN, 0.004)], axis=1)
    rates = np.hstack([rates, np.full((MEN, 1), 0.02)])
    times = random.exponential(1 / rates)
    first = times.argmin(axis=1)
    time = np.minimum(times.min(axis=1), 13.0)
    model = fit_risk_model(
        Patients(
            covariates=men,
            time=time,
            cause=np.where(time < 13.0, first + 1, 0),
            embeddings=random.normal(size=(MEN, image)),
            treated=treated,
            treatment="short-term ADT",
            randomised=True,
        ),
        card={
            "name": "test clinical risk model",
            "encoder_hash": "",
            "slide_model_hash": "",
            "simulated_outcomes": simulated_outcomes,
            "versions": versions("acinus"),
        },
        config=RiskModelConfig(components=min(image, 2), replicas=20),
    )
    save_risk_model(storage.join(out, RISK_MODEL), model)
    return storage.as_uri(out)
