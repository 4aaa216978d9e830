"""Patches as other laboratories would have stained them, for fitting: a head that has seen a patch
under several stains reads slides of other laboratories better (Tellez et al. 2019).
"""

from __future__ import annotations

import zlib
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from training.encoder.encoder import Encoder
from training.stain_augment import StainJitter, jitter_stains

JITTER: Final = StainJitter(probability=1.0, amount=0.4, background=0.1)
"""Strong. Patches of unseen prostate tiles, a head without and with two such views
(`python -m tests.benchmarks.patterns`): 0.83 and 0.80 as scanned, 0.76 and 0.78 under other stains.
"""
_CHUNK: Final = 64


class StainView(Encoder):
    """An encoder whose patches are stained differently before it embeds them.

    Attributes:
        number: of the view; the same patches always get the same stains in the same view.
    """

    def __init__(self, encoder: Encoder, number: int) -> None:
        self.__dict__.update(encoder.__dict__)
        self.number = number

    @property
    def key(self) -> str:
        """Other than the encoder's own: these are other embeddings."""
        return f"{super().key}-stain{self.number}"

    def embed(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embed patches [N, size, size, 3], each under a stain of its own; float32 [N, D]."""
        return super().embed(stained(patches, self.number))


def stain_view(encoder: Encoder, number: int) -> Encoder:
    """The encoder under other stains; as it is for number 0."""
    return StainView(encoder, number) if number else encoder


def stained(patches: NDArray[np.uint8], number: int) -> NDArray[np.uint8]:
    """Patches [N, H, W, 3] under other stains, drawn by their content and the view's number."""
    seed = 1_000_003 * zlib.crc32(np.ascontiguousarray(patches).data) + number
    generator = torch.Generator().manual_seed(seed)
    out = np.empty_like(patches)
    for start in range(0, len(patches), _CHUNK):
        part = torch.from_numpy(patches[start : start + _CHUNK].copy())
        views = part.permute(0, 3, 1, 2).contiguous().float() / 255.0
        jittered = jitter_stains(views, JITTER, generator).mul_(255.0).round_().to(torch.uint8)
        out[start : start + _CHUNK] = jittered.permute(0, 2, 3, 1).numpy()
    return out
