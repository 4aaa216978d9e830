"""EfficientNet-Lite0 written plainly: batch normalisation as a layer of its own, images normalised
first, contiguous memory. What the product's network must compute, and is compared with in speed.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files

import torch
import torch.nn.functional as F
from torch import Tensor

from training.encoder.efficientnet import STAGES
from training.encoder.lite0 import FILE, MIDDLE, PACKAGE


def published_weights() -> dict[str, Tensor]:
    """The package's weights."""
    with files(PACKAGE).joinpath(FILE).open("rb") as file:
        state: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    return state


def embed(state: Mapping[str, Tensor], images: Tensor) -> Tensor:
    """Embeddings of uint8 [N, H, W, 3]: means of the middle blocks, then of the last layer."""
    features = (images.permute(0, 3, 1, 2).float().contiguous() - 127) / 128

    def convolve(features: Tensor, name: str, norm: str, *, stride: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        kernel = weight.shape[2]
        groups = features.shape[1] if weight.shape[1] == 1 else 1
        before_after = []
        for side in (features.shape[3], features.shape[2]):
            total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
            before_after += [total // 2, total - total // 2]
        out = F.conv2d(F.pad(features, before_after), weight, None, stride, 0, 1, groups)
        parts = [state[f"{norm}.{each}"] for each in ("running_mean", "running_var")]
        scale_shift = [state[f"{norm}.{each}"] for each in ("weight", "bias")]
        return F.batch_norm(out, *parts, *scale_shift, eps=1e-3)

    features = F.relu6(convolve(features, "_conv_stem", "_bn0", stride=2))
    means, number = [], 0
    for expansion, _, repeats, first_stride, _ in STAGES:
        for k in range(repeats):
            block, stride = f"_blocks.{number}", first_stride if k == 0 else 1
            hidden = features
            if expansion > 1:
                hidden = F.relu6(convolve(hidden, f"{block}._expand_conv", f"{block}._bn0"))
            hidden = convolve(hidden, f"{block}._depthwise_conv", f"{block}._bn1", stride=stride)
            out = convolve(F.relu6(hidden), f"{block}._project_conv", f"{block}._bn2")
            features = out + features if k > 0 else out
            if number in MIDDLE:
                means.append(features.mean(dim=(2, 3)))
            number += 1
    last = F.relu6(convolve(features, "_conv_head", "_bn1"))
    return torch.cat([*means, last.mean(dim=(2, 3))], dim=1)
