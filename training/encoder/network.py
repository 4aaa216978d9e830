"""What every encoder network has in common: raw pixels in, tokens out, in one of two precisions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

Pooling = Literal["cls", "mean", "cls+mean"]
Colours = tuple[float, float, float]


@dataclass(frozen=True)
class Tokens:
    """What comes out of a network.

    Attributes:
        cls: class token [N, cls_dim]; of a convolutional network, the means of its middle feature
            maps.
        patches: one token a square [N, squares, dim], in reading order.
    """

    cls: Tensor
    patches: Tensor


class Network(nn.Module, ABC):
    """A network that turns images [N, H, W, 3] into tokens.

    Attributes:
        embed: its first layer, which takes the pixels and stays in float32: raw pixels are far
            from zero, where rounding costs most.
        cpu_batch: images a forward pass on a processor.
    """

    embed: nn.Module
    cpu_batch: int = 32

    @abstractmethod
    def forward(self, images: Tensor) -> Tokens:
        """Encode [N, H, W, 3], uint8 or float."""

    @abstractmethod
    def fold_normalisation(self, mean: Colours, std: Colours) -> None:
        """Change weights in place so that they take raw pixels 0..255 instead of `(pixel / 255 -
        mean) / std`.
        """


N = TypeVar("N", bound=Network)
N_co = TypeVar("N_co", bound=Network, covariant=True)


class NetworkConfig(Protocol[N_co]):
    """Architecture of a network: a frozen dataclass of plain values."""

    @property
    def dim(self) -> int:
        """Width of a token."""

    @property
    def cls_dim(self) -> int:
        """Width of `Tokens.cls`."""

    @property
    def patch(self) -> int:
        """Both sides of every image are multiples of it, px."""

    def build(self) -> N_co:
        """The network with weights as training starts with them."""


def random_network(config: NetworkConfig[N], *, seed: int) -> N:
    """A network as training starts with it; the same seed gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return config.build()


def pool(tokens: Tokens, pooling: Pooling) -> Tensor:
    """One embedding a sample from its tokens."""
    if pooling == "cls":
        return tokens.cls
    mean = tokens.patches.mean(dim=1)
    return mean if pooling == "mean" else torch.cat([tokens.cls, mean], dim=-1)


def half(network: N) -> N:
    """Change weights in place to bfloat16, except those that take the pixels."""
    network.to(torch.bfloat16)
    network.embed.to(torch.float32)
    return network


def rounded(network: N) -> N:
    """Make a float32 network compute as in bfloat16, in place.

    Weights and the results of all layers and blocks are rounded, sums within them are not, as in
    processors that have bfloat16. Emulating their instructions takes many times as long.
    """

    def to_bf16(_layer: nn.Module, _inputs: object, result: Tensor) -> Tensor:
        return result.bfloat16().float()

    with torch.no_grad():
        for name, weight in network.named_parameters():
            if not name.startswith("embed."):
                weight.copy_(weight.bfloat16())
    for layer in network.modules():
        if layer is not network:
            layer.register_forward_hook(to_bf16)
    return network
