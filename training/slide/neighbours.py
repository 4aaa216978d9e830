"""What surrounds a patch. A growth pattern rarely ends after a tenth of a millimetre: the mean of
the neighbouring patches' probabilities is evidence for a patch's own pattern.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from scipy.spatial import cKDTree

SHARES: Final = (0.0, 0.5, 0.8)
"""Weights of the neighbours' mean that are tried on held-out slides; the smallest that is as good
is taken.
"""
REACH: Final = 1.5
"""Patches whose positions differ by less than this many sides on both axes are neighbours."""


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """The neighbours of each of a slide's N patches.

    Attributes:
        mean: [N, N], sparse: takes values of the patches to the mean over each one's neighbours;
            a patch without neighbours is its own.
    """

    mean: csr_array

    @classmethod
    def of(cls, x: npt.NDArray[np.integer], y: npt.NDArray[np.integer], side: float) -> Self:
        """Neighbours by position.

        Args:
            x: left edges in level-0 pixels, [N].
            y: top edges, [N].
            side: of a patch in level-0 pixels.
        """
        points = np.stack([x, y], axis=1).astype(np.float64) / side
        pairs = cKDTree(points).query_pairs(REACH - 1e-6, p=np.inf, output_type="ndarray")
        first, second = np.concatenate([pairs, pairs[:, ::-1]]).T
        counts = np.bincount(first, minlength=len(points))
        alone = np.flatnonzero(counts == 0)
        rows, columns = np.append(first, alone), np.append(second, alone)
        weights = 1.0 / np.maximum(counts, 1)[rows]
        return cls(mean=csr_array((weights, (rows, columns)), shape=(len(points),) * 2))

    def mixed(
        self, probabilities: npt.NDArray[np.float32], share: float
    ) -> npt.NDArray[np.float32]:
        """Each patch's probabilities [N, K], `share` of them its neighbours' mean."""
        surrounding = self.mean @ probabilities
        return np.asarray((1.0 - share) * probabilities + share * surrounding, np.float32)
