"""What a report is made from: the indexed slide, the models, and what they found on it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from app.reports import schemas
from app.reports.risk import GleasonFrom
from pipelines.grid import PatchSpec
from training.risk.covariates import Covariates
from training.risk.prediction import RiskPrediction
from training.slide.domain import Likeness
from training.slide.gleason import Grading
from training.slide.slide_model import SlidePrediction


@dataclass(frozen=True, kw_only=True)
class AnalysedSlide:
    """What later stages need to know of an indexed slide; its shard table is in the store.

    Attributes:
        slide_id: the slide's identity.
        vendor: format.
        width: pixels of level 0.
        height: pixels of level 0.
        mpp: micrometres per pixel of level 0.
        patch_side: side of a patch in level-0 pixels, as its pixels are read.
        n_patches: in all shards.
        n_shards: rows of the shard table.
        version: of the model set that the analysis started with.
        encoder_key: of the encoder that was running then, see `ModelSetFacts`.
    """

    slide_id: str
    vendor: str
    width: int
    height: int
    mpp: float
    patch_side: float
    n_patches: int
    n_shards: int
    version: str
    encoder_key: str


@dataclass(frozen=True, kw_only=True)
class ModelSetFacts:
    """What identifies a model set.

    Attributes:
        version: its name in a registry, which is the hash of all its files.
        spec: how slides are cut for it.
        encoder, slide_model, risk_model: name, version and hash.
        simulated_outcomes: whether the risk model was fitted on outcomes that a generator drew.
        encoder_key: names the embeddings of the encoder that is running, with its precision.
    """

    version: str
    spec: PatchSpec
    encoder: schemas.ModelFacts
    slide_model: schemas.ModelFacts
    risk_model: schemas.ModelFacts
    simulated_outcomes: bool
    encoder_key: str


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What the models say of one slide and one patient; N patches in the order of the shard table.

    Attributes:
        x: left edges in level-0 pixels, int32 [N].
        y: top edges in level-0 pixels, int32 [N].
        slide: patch probabilities, attention, the slide model's own grade group.
        grading: the grade by areas.
        area_errors: mean absolute errors of tumour extent (share) and of pattern 4 (percent of the
            tumour) on held-out slides, None where they are not known.
        likeness: to the slides that the models were fitted on; None where that is not known.
        risk: None where it cannot be given.
        covariates: that the risk was made from.
        risk_absent_because: why, as the end of a sentence.
        gleason_from: whose Gleason patterns the risk used.
    """

    x: npt.NDArray[np.int32]
    y: npt.NDArray[np.int32]
    slide: SlidePrediction
    grading: Grading
    area_errors: tuple[float | None, float | None]
    likeness: Likeness | None
    risk: RiskPrediction | None
    covariates: Covariates | None
    risk_absent_because: str | None
    gleason_from: GleasonFrom
