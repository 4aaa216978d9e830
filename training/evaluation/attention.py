"""What a slide model looks at, among tiles whose class is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from training.errors import SpecMismatch
from training.evaluation.scores import Features, Labels
from training.evaluation.subjects import Subject
from training.slide.slide_model import SlideModel, load_slide_model


@dataclass(frozen=True, kw_only=True)
class TileAttention:
    """Attention on labelled tiles that are one bag.

    Attributes:
        multiples: of each tile, as a multiple of the even share, float32 [N]; their mean is 1.
        labels: class of each tile, [N].
    """

    multiples: NDArray[np.float32]
    labels: Labels

    def by_class(self, classes: Sequence[str]) -> dict[str, float]:
        """Mean attention on the tiles of each class."""
        return {
            name: float(self.multiples[self.labels == label].mean())
            for label, name in enumerate(classes)
        }


@dataclass(frozen=True, kw_only=True)
class Attending:
    """A slide model and the subject whose features it takes."""

    model: SlideModel
    subject: Subject

    @classmethod
    def of(cls, uri: str, subjects: Sequence[Subject]) -> Self:
        """Load a slide model and find its encoder among the subjects.

        Raises:
            ModelNotFound: there is no slide model.
            SpecMismatch: it was fitted with none of the encoders.
        """
        model = load_slide_model(uri)
        fitted_with = str(model.card.get("encoder_hash", ""))
        for subject in subjects:
            if subject.given is not None and subject.hash == fitted_with:
                return cls(model=model, subject=subject)
        hashes = ", ".join(subject.hash[:12] for subject in subjects if subject.hash)
        raise SpecMismatch(
            "encoder",
            f"the slide model was fitted with {fitted_with[:12]}",
            f"given {hashes}",
            "score its encoder too",
        )

    def looked(self, features: Features, labels: Labels) -> TileAttention:
        """Attention on tiles of features [N, D], each the mean of its patches' embeddings."""
        shares = self.model.predict(features).attention
        return TileAttention(multiples=shares * np.float32(len(shares)), labels=labels)
