"""What decides an embedding in addition to the weights: the network's architecture, the patches it
takes, and how its tokens become one embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, Self

from pipelines.grid import PatchSpec
from training.encoder.efficientnet import EfficientNetConfig
from training.encoder.network import Pooling
from training.encoder.vit import ViTConfig
from training.errors import SpecMismatch

VIT: Final = "vit"
ARCHITECTURES: Final = {VIT: ViTConfig, "efficientnet_lite0": EfficientNetConfig}
"""By the name in the card; a card without a name is of a Vision Transformer."""
ADDED: Final = {
    each.name: each.default
    for each in fields(ViTConfig)
    if each.name in ("hidden", "gated", "epsilon", "antialias", "rope", "pooler")
}
"""Options that came later, with what they mean if missing: they are written only where they are
used, so that encoders without them keep their hash.
"""


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """What decides an embedding in addition to the weights.

    Attributes:
        network: architecture.
        spec: the patches it was trained on and takes.
        pooling: the class token, the mean of the patch tokens, or one followed by the other.
    """

    network: ViTConfig | EfficientNetConfig
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
        cls = self.network.cls_dim if self.pooling != "mean" else 0
        return cls + (self.network.dim if self.pooling != "cls" else 0)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        [name] = [name for name, kind in ARCHITECTURES.items() if type(self.network) is kind]
        return {
            "network": {
                name: value
                for name, value in asdict(self.network).items()
                if name not in ADDED or value != ADDED[name]
            },
            "spec": self.spec.to_dict(),
            "pooling": self.pooling,
            **({} if name == VIT else {"architecture": name}),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`.

        Raises:
            KeyError: the architecture is not in the table.
        """
        return cls(
            network=ARCHITECTURES[values.get("architecture", VIT)](**values["network"]),
            spec=PatchSpec.from_dict(values["spec"]),
            pooling=values["pooling"],
        )
