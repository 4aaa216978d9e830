"""Which pattern a patch shows: a linear softmax head on its embedding.

Standardisation is folded into the weights, so that the head is one matrix product in NumPy: what
serving runs is what was fitted. Classes are weighted to count equally: probabilities answer "which
pattern", under equal prevalence, and are not calibrated to the prevalence in any clinic. This
module does not know where embeddings or labels come from.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression

from pipelines.annotations import PATTERNS, UNLABELLED
from training.errors import InsufficientData
from training.threads import threads_for

_NEVER = -1e4
"""Logit of a pattern that no training patch showed: its probability is exactly 0 in float32, and
all arithmetic stays finite.
"""


@dataclass(frozen=True, kw_only=True)
class PatternHead:
    """Probabilities of PATTERNS from an embedding.

    Attributes:
        weight: float32 [4, D].
        bias: float32 [4].
    """

    weight: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]

    @property
    def dimension(self) -> int:
        """Size of the embeddings it takes."""
        return int(self.weight.shape[1])

    def probabilities(self, embeddings: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """float32 [N, 4] for embeddings [N, D]; each row sums to 1."""
        logits = embeddings @ self.weight.T + self.bias
        logits -= logits.max(axis=1, keepdims=True)
        odds = np.exp(logits)
        return np.asarray(odds / odds.sum(axis=1, keepdims=True), np.float32)


def fit_pattern_head(
    embeddings: npt.NDArray[np.float32],
    labels: npt.NDArray[np.integer],
    *,
    penalty: float = 30.0,
    iterations: int = 2000,
) -> PatternHead:
    """Fit by class-balanced cross-entropy with an L2 penalty (L-BFGS over all patches at once: no
    seed, no order).

    Args:
        embeddings: [N, D].
        labels: index into PATTERNS per patch; UNLABELLED patches are left out.
        penalty: strength of the L2 penalty on weights of standardised features (1 / C of
            scikit-learn).
        iterations: maximum of steps.

    Raises:
        InsufficientData: fewer than two patterns are labelled.
    """
    labelled = labels != UNLABELLED
    features, targets = embeddings[labelled].astype(np.float64), labels[labelled]
    present = np.unique(targets)
    if len(present) < 2:
        names = [PATTERNS[index] for index in present]
        raise InsufficientData(
            f"{len(targets)} labelled patches show {names or 'nothing'}: two patterns are needed; "
            "annotate more regions"
        )
    mean, scale = features.mean(axis=0), features.std(axis=0)
    scale = np.where(scale > 1e-8, scale, 1.0)
    model = LogisticRegression(
        C=1.0 / penalty, class_weight="balanced", max_iter=iterations, tol=1e-4
    )
    with threads_for(features.size):
        model.fit((features - mean) / scale, targets)
    coefficients, intercepts = model.coef_, model.intercept_
    if len(present) == 2:  # scikit-learn keeps only the second class's logit
        coefficients, intercepts = (
            np.vstack([np.zeros_like(coefficients), coefficients]),
            np.append(0.0, intercepts),
        )
    weight = np.zeros((len(PATTERNS), features.shape[1]))
    bias = np.full(len(PATTERNS), _NEVER)
    weight[present] = coefficients / scale
    bias[present] = intercepts - weight[present] @ mean
    return PatternHead(weight=weight.astype(np.float32), bias=bias.astype(np.float32))
