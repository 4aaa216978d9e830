"""OPEN FIRST. Encoders: uint8 patches in, one embedding a patch out.

    load_encoder(name or URI)   an encoder that is ready to embed
    encoder_spec, encoder_terms its patches and its licence, without its weights
    save_encoder(URI, encoder)  everything needed to use it, in a folder

`network.py` is what all networks have in common, `vit.py` and `efficientnet.py` are networks,
`architecture.py` is what decides an embedding in addition to the weights, `lite0.py` is the default
encoder, `published.py` the table of others (`published_weights.py`, `published_source.py`: how they
are loaded), `embed.py` embeds whole slides.

The weights take raw pixels. The PatchSpec that the encoder was trained with is part of it: serving
compares the two and refuses a mismatch. The encoder's hash covers the weights and all that decides
what they compute: architecture, pooling and PatchSpec.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines import storage
from pipelines.grid import PatchSpec
from training.cards import Arrays, load_card, load_model, require_entries, save_model, weights_hash
from training.encoder import lite0
from training.encoder.architecture import ARCHITECTURES, EncoderConfig
from training.encoder.lite0 import EFFICIENTNET_LITE0
from training.encoder.network import Colours, Network, half, pool, random_network
from training.encoder.published import PUBLISHED, PublishedEncoder
from training.encoder.published_source import read_weights
from training.encoder.published_weights import config_of, network_of
from training.errors import BrokenModel, SpecMismatch
from training.precision import Precision, PrecisionChoice, precision_for

KIND: Final = "encoder"


class Encoder:
    """A network that is ready to embed. Safe to share between threads."""

    def __init__(
        self,
        network: Network,
        config: EncoderConfig,
        card: Mapping[str, Any],
        *,
        device: str = "cpu",
        precision: PrecisionChoice = "auto",
    ) -> None:
        """Take over `network`, whose weights take raw pixels (`fold_normalisation`)."""
        self.config = config
        self.card = {**card, **config.to_dict(), "kind": KIND, "dimension": config.dimension}
        if "hash" not in card:
            self.card["hash"] = weights_hash(_arrays(network, config))
        self.device = torch.device(device)
        self.precision: Precision = precision_for(self.device, precision)
        network = network.eval().requires_grad_(False).to(self.device)
        self.network = half(network) if self.precision == "bf16" else network.float()

    @property
    def name(self) -> str:
        """For people; the hash is what identifies it."""
        return str(self.card.get("name", self.hash))

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
        """Patches a forward pass: on the CPU, more lose a third to memory traffic."""
        return self.network.cpu_batch if self.device.type == "cpu" else 256

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
                    pool(self.network(images), self.config.pooling).float().cpu().numpy()
                )
        return out


def save_encoder(uri: str, encoder: Encoder) -> str:
    """Write an encoder as a folder that `load_encoder` takes. Returns its hash.

    Raises:
        ValueError: its weights were rounded to bf16; load it with the precision "f32".
    """
    if encoder.precision != "f32":
        raise ValueError(
            f"weights in {encoder.precision} are rounded; load the encoder in f32 to save it"
        )
    return save_model(uri, _arrays(encoder.network, encoder.config), encoder.card)


def load_encoder(
    name_or_uri: str, *, device: str = "cpu", precision: PrecisionChoice = "auto"
) -> Encoder:
    """An encoder that is ready to embed.

    Args:
        name_or_uri: "efficientnet_lite0"; the name of a published encoder, whose weights are then
            had from the hub, or NAME=FOLDER with a copy of them; or the folder that `save_encoder`
            or `acinus pretrain` wrote.
        device: of torch.
        precision: "auto" is bf16 where the device computes it fast, see `training.precision`.

    Raises:
        ModelNotFound: there is no encoder.
        BrokenModel: weights and card do not belong together, or weights are not those of the name.
        WeightsUnavailable: the hub does not give them.
    """
    if name_or_uri == EFFICIENTNET_LITE0:
        return Encoder(
            lite0.load_network(), lite0.CONFIG, lite0.CARD, device=device, precision=precision
        )
    if (found := _published(name_or_uri)) is not None:
        row, folder = found
        network = network_of(row, read_weights(row, folder))
        return Encoder(
            network, config_of(row, network), _card(row), device=device, precision=precision
        )
    arrays, card = load_model(name_or_uri, KIND)
    config = _config(name_or_uri, card)
    if json.loads(arrays.pop("config").tobytes()) != json.loads(_config_bytes(config)):
        raise BrokenModel(
            f"{name_or_uri}: the card's architecture or PatchSpec is not the one that the weights "
            "were saved with"
        )
    own = config.network.build()
    own.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
    return Encoder(own, config, card, device=device, precision=precision)


def on_all_machines(name_or_uri: str) -> str:
    """The same encoder as processes in other folders name it: a path becomes a URI."""
    if name_or_uri == EFFICIENTNET_LITE0 or name_or_uri in PUBLISHED:
        return name_or_uri
    if (found := _published(name_or_uri)) is not None:
        row, folder = found
        return f"{row.name}={storage.as_uri(folder or '')}"
    return storage.as_uri(name_or_uri)


def encoder_spec(name_or_uri: str) -> PatchSpec:
    """The patches that an encoder takes, without loading its weights.

    Raises:
        ModelNotFound: there is no encoder.
        BrokenModel: its card is damaged.
    """
    if name_or_uri == EFFICIENTNET_LITE0:
        return lite0.CONFIG.spec
    if (found := _published(name_or_uri)) is not None:
        return found[0].spec
    return _config(name_or_uri, load_card(name_or_uri, KIND)).spec


def encoder_terms(name_or_uri: str) -> str | None:
    """What the licence of an encoder allows, for people, without loading its weights; None if its
    card names none.

    Raises:
        ModelNotFound: there is no encoder.
        BrokenModel: its card is damaged.
    """
    if (found := _published(name_or_uri)) is not None:
        return found[0].terms
    card = lite0.CARD if name_or_uri == EFFICIENTNET_LITE0 else load_card(name_or_uri, KIND)
    if "licence" not in card:
        return None
    use = "commercial use allowed" if card.get("commercial_use") else "no commercial use"
    return f"{card['name']}: licence {card['licence']}, {use}"


def random_like(encoder: Encoder, *, seed: int) -> Encoder:
    """The same architecture with random weights: what a trained encoder must beat."""
    return random_encoder(
        encoder.config, seed=seed, device=str(encoder.device), precision=encoder.precision
    )


def random_encoder(
    config: EncoderConfig,
    *,
    seed: int = 0,
    mean: Colours = (0.485, 0.456, 0.406),
    std: Colours = (0.229, 0.224, 0.225),
    device: str = "cpu",
    precision: PrecisionChoice = "auto",
) -> Encoder:
    """An encoder with random weights."""
    network = random_network(config.network, seed=seed)
    network.fold_normalisation(mean, std)
    card = {"name": f"random weights, seed {seed}"}
    return Encoder(network, config, card, device=device, precision=precision)


def _published(name_or_uri: str) -> tuple[PublishedEncoder, str | None] | None:
    """Row and folder of NAME or NAME=FOLDER; None if there is no such name."""
    name, _, folder = name_or_uri.partition("=")
    return (PUBLISHED[name], folder or None) if name in PUBLISHED else None


def _card(row: PublishedEncoder) -> dict[str, Any]:
    return {
        "name": row.name,
        "intended_use": "research use only, not a diagnosis",
        "method": f"published encoder, {row.family}",
        "normalisation": "folded into the patch embedding: takes uint8 RGB",
        "licence": row.licence,
        "commercial_use": row.commercial,
        "source": f"https://huggingface.co/{row.hub}",
    }


def _config(uri: str, card: Mapping[str, Any]) -> EncoderConfig:
    require_entries(uri, card, "network", "spec", "pooling")
    if (name := card.get("architecture")) not in (None, *ARCHITECTURES):
        raise BrokenModel(f"{uri}: this version knows no architecture {name!r}; update acinus")
    return EncoderConfig.from_dict(card)


def _arrays(network: Network, config: EncoderConfig) -> Arrays:
    """Weights, and the configuration with them, so that the hash covers it."""
    weights = {
        name: value.detach().float().cpu().numpy() for name, value in network.state_dict().items()
    }
    return {**weights, "config": np.frombuffer(_config_bytes(config), np.uint8)}


def _config_bytes(config: EncoderConfig) -> bytes:
    return json.dumps(config.to_dict(), sort_keys=True).encode()
