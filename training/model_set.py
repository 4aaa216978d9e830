"""The three models that make one report: encoder, slide model, risk model; and whether they belong
together.

A set is a folder with one folder a model. The slide model was fitted on embeddings of one encoder,
the risk model on the slide embeddings of one slide model: their cards name those by hash, and a set
whose names do not match is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pipelines import storage
from pipelines.grid import PatchSpec
from training.encoder.encoder import Encoder, load_encoder
from training.errors import SpecMismatch
from training.precision import PrecisionChoice
from training.risk.risk_model import RiskModel, load_risk_model
from training.slide.slide_model import SlideModel, load_slide_model

ENCODER: Final = "encoder"
SLIDE_MODEL: Final = "slide_model"
RISK_MODEL: Final = "risk_model"


@dataclass(frozen=True, kw_only=True)
class ModelSet:
    """Models that were made for each other; checked when made. A risk model without image goes with
    any.

    Attributes:
        encoder: patches -> embeddings.
        slide_model: embeddings of a slide -> patterns, grade group, slide embedding.
        risk_model: slide embedding and clinical variables -> risk.

    Raises:
        SpecMismatch: they were not; names both values.
    """

    encoder: Encoder
    slide_model: SlideModel
    risk_model: RiskModel

    def __post_init__(self) -> None:
        self.encoder.require(self.spec)
        slide, risk = self.slide_model, self.risk_model
        _same(
            "encoder",
            self.encoder.hash,
            slide.card["encoder_hash"],
            "the slide model",
            "fit the slide model on this encoder",
        )
        if not risk.needs_image:
            return
        _same(
            "encoder",
            self.encoder.hash,
            risk.card["encoder_hash"],
            "the risk model",
            "fit the risk model on this encoder",
        )
        _same(
            "slide model",
            slide.hash,
            risk.card["slide_model_hash"],
            "the risk model",
            "fit the risk model on this slide model",
        )

    @property
    def spec(self) -> PatchSpec:
        """How slides are cut for this set: as those the slide model was fitted on."""
        return PatchSpec.from_dict(self.slide_model.card["spec"])


def load_model_set(
    uri: str,
    *,
    encoder: str | None = None,
    device: str = "cpu",
    precision: PrecisionChoice = "auto",
) -> ModelSet:
    """The models in the folders ENCODER, SLIDE_MODEL and RISK_MODEL below `uri`.

    Args:
        uri: folder or URI of the set.
        encoder: of `load_encoder`, for a set without ENCODER.
        device: of the encoder; the other two run on the CPU.
        precision: of the encoder, see `load_encoder`.

    Raises:
        ModelNotFound: one is not there.
        BrokenModel: one's weights are not those its card describes.
        SpecMismatch: they do not belong together.
    """
    return ModelSet(
        encoder=load_encoder(
            encoder or storage.join(uri, ENCODER), device=device, precision=precision
        ),
        slide_model=load_slide_model(storage.join(uri, SLIDE_MODEL)),
        risk_model=load_risk_model(storage.join(uri, RISK_MODEL)),
    )


def _same(what: str, ours: str, theirs: str, holder: str, remedy: str) -> None:
    if ours != theirs:
        raise SpecMismatch(
            f"{what} hash", f"the set holds {ours}", f"{holder} was fitted on {theirs}", remedy
        )
