"""EfficientNet-Lite0: a convolutional network small enough for one machine without a GPU.

Tan and Le 2019 (EfficientNet), in the Lite form of tensorflow/tpu: no squeeze-and-excitation,
ReLU6, stem and head not scaled. The network is written here because torchvision, which timm needs,
has no wheel for torch's CPU build on the package index.

Batch normalisation is folded into the convolutions. Of the images' normalisation the scale is
folded into the first one, and the mean is subtracted before its padding, which is TensorFlow's
"SAME": border pixels come out as in the original.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.encoder.network import Colours, Network, Tokens

STAGES: Final = (
    # expansion, channels, blocks, stride, kernel
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
STEM: Final = 32
BATCH_NORM_EPSILON: Final = 1e-3


@dataclass(frozen=True, kw_only=True)
class EfficientNetConfig:
    """Architecture of an `EfficientNet`: Lite0.

    Attributes:
        middle: the blocks, counted from 0, whose mean features go into `Tokens.cls`.
    """

    middle: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "middle", tuple(self.middle))  # JSON has lists

    @property
    def dim(self) -> int:
        """Channels of the last layer."""
        return 1280

    @property
    def cls_dim(self) -> int:
        """Channels of the middle blocks."""
        channels = [channels for _, channels, blocks, _, _ in STAGES for _ in range(blocks)]
        return sum(channels[block] for block in self.middle)

    @property
    def patch(self) -> int:
        """Images of any side are taken."""
        return 1

    def build(self) -> EfficientNet:
        """The network with random weights."""
        return EfficientNet(self)


class SameConv(nn.Conv2d):
    """A convolution with TensorFlow's padding: as many outputs as inputs / stride, rounded up."""

    def forward(self, input: Tensor) -> Tensor:
        """Convolve [N, C, H, W]."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        if stride == 1:
            return F.conv2d(input, self.weight, self.bias, 1, kernel // 2, 1, self.groups)
        padding: list[int] = []
        for side in (input.shape[3], input.shape[2]):
            total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
            padding += [total // 2, total - total // 2]
        padded = F.pad(input, padding)
        return F.conv2d(padded, self.weight, self.bias, stride, 0, 1, self.groups)


class Stem(SameConv):
    """The first convolution: takes raw pixels.

    Attributes:
        grey: the pixel that normalises to zero, which the padding stands for.
    """

    def __init__(self) -> None:
        super().__init__(3, STEM, 3, stride=2)
        self.grey = nn.Buffer(torch.zeros(3))

    def forward(self, input: Tensor) -> Tensor:
        """Convolve [N, 3, H, W], float32."""
        return super().forward(input - self.grey[:, None, None])


class Block(nn.Module):
    """Inverted residual: expand, convolve each channel, project; added to the input where shapes
    allow.
    """

    def __init__(self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expand = SameConv(inputs, hidden, 1) if expansion > 1 else None
        self.depthwise = SameConv(hidden, hidden, kernel, stride=stride, groups=hidden)
        self.project = SameConv(hidden, outputs, 1)
        self.adds = stride == 1 and inputs == outputs

    def forward(self, features: Tensor) -> Tensor:
        """Features [N, C, H, W]."""
        hidden = features if self.expand is None else _relu6(self.expand(features))
        out: Tensor = self.project(_relu6(self.depthwise(hidden)))
        return out + features if self.adds else out


class EfficientNet(Network):
    """EfficientNet-Lite0 without its classifier. Its tokens are the positions of the last feature
    map; instead of a class token there are the means of middle feature maps.

    Eight images fit the caches: 1.2 to 1.5 times the images a second of 32 (AMD Zen 4, one thread,
    also held to AVX2).
    """

    embed: Stem
    cpu_batch = 8

    def __init__(self, config: EfficientNetConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = Stem()
        blocks, inputs = [], STEM
        for expansion, channels, repeats, stride, kernel in STAGES:
            for k in range(repeats):
                blocks.append(Block(inputs, channels, expansion, kernel, stride if k == 0 else 1))
                inputs = channels
        self.blocks = nn.Sequential(*blocks)
        self.head = SameConv(inputs, config.dim, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> Tokens:
        """Encode [N, H, W, 3]; any H and W."""
        pixels = images.permute(0, 3, 1, 2).to(self.embed.weight.dtype)
        features = _relu6(self.embed(pixels)).to(self.head.weight.dtype)
        middle = [features.new_zeros(len(features), 0)]
        for number, block in enumerate(self.blocks):
            features = block(features)
            if number in self.config.middle:
                middle.append(features.mean(dim=(2, 3)))
        features = _relu6(self.head(features))
        tokens = features.permute(0, 2, 3, 1).flatten(1, 2)
        return Tokens(cls=torch.cat(middle, dim=1), patches=tokens)

    @torch.no_grad()
    def fold_normalisation(self, mean: Colours, std: Colours) -> None:
        """Change the stem in place so that it takes raw pixels."""
        scale = torch.tensor(std, dtype=torch.float64)[:, None, None]
        self.embed.grey.copy_(255.0 * torch.tensor(mean, dtype=torch.float64))
        self.embed.weight.copy_(self.embed.weight.double() / (255.0 * scale))


def _relu6(features: Tensor) -> Tensor:
    return F.hardtanh(features, 0.0, 6.0, inplace=True)


def folded(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of an `EfficientNet` from those of the package `efficientnet_lite_pytorch`, each
    batch normalisation folded into its convolution; pixels still are to be normalised.

    Raises:
        KeyError: a weight is missing.
    """
    weights: dict[str, Tensor] = {"embed.grey": torch.zeros(3)}

    def fold(name: str, convolution: str, norm: str) -> None:
        part = {
            each: state[f"{norm}.{each}"].double()
            for each in ("weight", "bias", "running_mean", "running_var")
        }
        scale = part["weight"] / torch.sqrt(part["running_var"] + BATCH_NORM_EPSILON)
        kernel = state[f"{convolution}.weight"].double() * scale[:, None, None, None]
        weights[f"{name}.weight"] = kernel.float()
        weights[f"{name}.bias"] = (part["bias"] - part["running_mean"] * scale).float()

    fold("embed", "_conv_stem", "_bn0")
    for k in range(sum(repeats for _, _, repeats, _, _ in STAGES)):
        theirs = f"_blocks.{k}"
        if k > 0:
            fold(f"blocks.{k}.expand", f"{theirs}._expand_conv", f"{theirs}._bn0")
        fold(f"blocks.{k}.depthwise", f"{theirs}._depthwise_conv", f"{theirs}._bn1")
        fold(f"blocks.{k}.project", f"{theirs}._project_conv", f"{theirs}._bn2")
    fold("head", "_conv_head", "_bn1")
    return weights
