"""OPEN FIRST. Encoders: uint8 patches in, one embedding a patch out.

Everything needed to use an encoder is in its folder. `vit.py` is the network, `embed.py` embeds
whole slides, `probe.py` scores an encoder on labelled tiles.

The weights take raw pixels (normalisation is folded into the patch embedding). The PatchSpec that
the encoder was trained with is part of it: serving compares the two and refuses a mismatch. The
encoder's hash covers the weights and all that decides what they compute: architecture, pooling and
PatchSpec.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Final, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.grid import PatchSpec
from training.cards import Arrays, Card, load_model, require_entries, save_model
from training.encoder.vit import Tokens, VisionTransformer, ViTConfig, fold_normalisation, half
from training.errors import BrokenModel, SpecMismatch
from training.precision import Precision, PrecisionChoice, precision_for

KIND: Final = "encoder"

Pooling = Literal["cls", "cls+mean"]


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """What decides an embedding in addition to the weights.

    Attributes:
        network: architecture.
        spec: the patches it was trained on and takes.
        pooling: the class token alone, or followed by the mean of the patch tokens.
    """

    network: ViTConfig
    spec: PatchSpec
    pooling: Pooling = "cls+mean"

    def __post_init__(self) -> None:
        if self.spec.size % self.network.patch:
            raise SpecMismatch(
                "patch size",
                f"{self.spec.size} px",
                f"tokens of {self.network.patch} px",
                "choose a multiple of the token size",
            )

    @property
    def dimension(self) -> int:
        """Length of an embedding."""
        return self.network.dim * (2 if self.pooling == "cls+mean" else 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "network": asdict(self.network),
            "spec": self.spec.to_dict(),
            "pooling": self.pooling,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        return cls(
            network=ViTConfig(**values["network"]),
            spec=PatchSpec.from_dict(values["spec"]),
            pooling=values["pooling"],
        )


class Encoder:
    """A network that is ready to embed. Safe to share between threads."""

    def __init__(
        self,
        network: VisionTransformer,
        config: EncoderConfig,
        card: Card,
        *,
        device: str = "cpu",
        precision: PrecisionChoice = "auto",
    ) -> None:
        """Take over `network`, whose weights take raw pixels (`fold_normalisation`)."""
        self.config = config
        self.card = card
        self.device = torch.device(device)
        self.precision: Precision = precision_for(self.device, precision)
        network = network.eval().requires_grad_(False).to(self.device)
        self._network = half(network) if self.precision == "bf16" else network.float()

    @property
    def spec(self) -> PatchSpec:
        """The patches it takes."""
        return self.config.spec

    @property
    def dimension(self) -> int:
        """Length of an embedding."""
        return self.config.dimension

    @property
    def hash(self) -> str:
        """Names the encoder: SHA-256 of its weights and all that decides what they compute."""
        return str(self.card["hash"])

    @property
    def key(self) -> str:
        """Names its embeddings in their addresses: those of another precision are other numbers."""
        return f"{self.hash}-{self.precision}"

    @cached_property
    def batch_size(self) -> int:
        """Patches a forward pass: on the CPU more than 32 lose a third to memory traffic."""
        return 32 if self.device.type == "cpu" else 256

    def require(self, spec: PatchSpec) -> None:
        """Refuse patches that the encoder was not trained on.

        Raises:
            SpecMismatch: `spec` has another size or resolution; overlap and minimum tissue are
                free.
        """
        ours, theirs = (
            f"{each.size} px at {each.mpp:g} um per pixel" for each in (self.spec, spec)
        )
        if ours != theirs:
            raise SpecMismatch(
                "patch specification",
                ours,
                theirs,
                "prepare the slides with the encoder's own specification",
            )

    def embed(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embed patches.

        Args:
            patches: uint8 [N, size, size, 3], RGB.

        Returns:
            float32 [N, dimension].
        """
        size = self.spec.size
        if patches.dtype != np.uint8 or patches.shape[1:] != (size, size, 3):
            raise ValueError(
                f"patches are {patches.dtype} {patches.shape}; expected uint8 [N, {size}, {size}, "
                "3]"
            )
        out = np.empty((len(patches), self.dimension), np.float32)
        with torch.inference_mode():
            for start in range(0, len(patches), self.batch_size):
                part = patches[start : start + self.batch_size]
                images = torch.from_numpy(part if part.flags.writeable else part.copy()).to(
                    self.device
                )
                out[start : start + len(part)] = (
                    pool(self._network(images), self.config.pooling).float().cpu().numpy()
                )
        return out


def pool(tokens: Tokens, pooling: Pooling) -> Tensor:
    """One embedding a sample from its tokens."""
    if pooling == "cls":
        return tokens.cls
    return torch.cat([tokens.cls, tokens.patches.mean(dim=1)], dim=-1)


def save_encoder(
    uri: str, network: VisionTransformer, config: EncoderConfig, card: Mapping[str, Any]
) -> str:
    """Write weights that take raw pixels, and a card of `card` and `config`. Returns the encoder's
    hash.
    """
    return save_model(
        uri,
        _arrays(network, config),
        {**card, **config.to_dict(), "kind": KIND, "dimension": config.dimension},
    )


def load_encoder(uri: str, *, device: str = "cpu", precision: PrecisionChoice = "auto") -> Encoder:
    """The encoder at `uri`.

    Args:
        uri: folder that `save_encoder` or `acinus pretrain` wrote.
        device: of torch.
        precision: "auto" is bf16 where the device computes it fast, see `training.precision`.

    Raises:
        ModelNotFound: there is no encoder.
        BrokenModel: weights and card do not belong together.
    """
    arrays, card = load_model(uri, KIND)
    require_entries(uri, card, "network", "spec", "pooling")
    config = EncoderConfig.from_dict(card)
    if json.loads(arrays.pop("config").tobytes()) != json.loads(_config_bytes(config)):
        raise BrokenModel(
            f"{uri}: the card's architecture or PatchSpec is not the one that the weights were "
            "saved with"
        )
    network = VisionTransformer(config.network)
    network.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
    return Encoder(network, config, card, device=device, precision=precision)


def random_network(config: ViTConfig, *, seed: int) -> VisionTransformer:
    """A network as training starts with it; the same seed gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VisionTransformer(config)


def random_encoder(
    config: EncoderConfig,
    *,
    seed: int = 0,
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406),
    std: tuple[float, float, float] = (0.229, 0.224, 0.225),
    device: str = "cpu",
    precision: PrecisionChoice = "auto",
) -> Encoder:
    """The same architecture with random weights: what a trained encoder must beat."""
    network = random_network(config.network, seed=seed)
    fold_normalisation(network, mean, std)
    card: Card = {
        **config.to_dict(),
        "kind": KIND,
        "hash": f"random-{seed}",
        "name": f"random weights, seed {seed}",
    }
    return Encoder(network, config, card, device=device, precision=precision)


def _arrays(network: VisionTransformer, config: EncoderConfig) -> Arrays:
    """Weights, and the configuration with them, so that the hash covers it."""
    weights = {
        name: value.detach().float().cpu().numpy() for name, value in network.state_dict().items()
    }
    return {**weights, "config": np.frombuffer(_config_bytes(config), np.uint8)}


def _config_bytes(config: EncoderConfig) -> bytes:
    return json.dumps(config.to_dict(), sort_keys=True).encode()
