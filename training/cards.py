"""A model as it is stored: `model.safetensors` for the numbers and `card.json` for what they mean.
Nothing is ever unpickled.

The card records kind, PatchSpec, hashes of everything the model depends on, seed, versions, data
and metrics. A model's hash is the SHA-256 of its weights file and names it everywhere. This module
does not know what any model computes.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load, save

from pipelines import storage
from training.errors import BrokenModel, ModelNotFound

WEIGHTS: Final = "model.safetensors"
CARD: Final = "card.json"

Arrays = Mapping[str, npt.NDArray[Any]]
Card = dict[str, Any]


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python and of the named packages, for a card."""
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }


def save_model(uri: str, arrays: Arrays, card: Mapping[str, Any]) -> str:
    """Write weights, then the card (which must name its `kind`): a model without a card is not
    there yet. Returns the hash.
    """
    weights = _serialised(arrays)
    digest = hashlib.sha256(weights).hexdigest()
    text = json.dumps(
        {**card, "kind": card["kind"], "hash": digest}, indent=2, sort_keys=True, allow_nan=False
    )
    storage.write_bytes(storage.join(uri, WEIGHTS), weights)
    storage.write_bytes(storage.join(uri, CARD), text.encode())
    return digest


def weights_hash(arrays: Arrays) -> str:
    """The hash that a model of these weights has, wherever it is saved."""
    return hashlib.sha256(_serialised(arrays)).hexdigest()


def load_card(uri: str, kind: str) -> Card:
    """The card of the model at `uri`.

    Raises:
        ModelNotFound: there is none, or it is of another kind.
        BrokenModel: the card is not a JSON object.
    """
    try:
        card: Any = json.loads(storage.read_bytes(storage.join(uri, CARD)))
    except FileNotFoundError:
        raise ModelNotFound(
            f"{uri} holds no {CARD}: there is no {kind} here; fit one, or give the folder of one"
        ) from None
    except ValueError:
        raise BrokenModel(f"{uri}: {CARD} is not JSON; copy the whole folder again") from None
    if not isinstance(card, dict):
        raise BrokenModel(f"{uri}: {CARD} is not a JSON object; copy the whole folder again")
    if card.get("kind") != kind:
        raise ModelNotFound(
            f"{uri} holds a {card.get('kind')!r}, not a {kind!r}; give the folder of one"
        )
    return card


def require_entries(uri: str, card: Mapping[str, Any], *names: str) -> None:
    """Refuse a card without these entries.

    Raises:
        BrokenModel: names those that are missing.
    """
    if missing := [name for name in names if name not in card]:
        raise BrokenModel(
            f"{uri}: {CARD} lacks {', '.join(missing)}; copy the folder again or fit the model anew"
        )


def load_model(uri: str, kind: str) -> tuple[dict[str, npt.NDArray[Any]], Card]:
    """Weights and card of the model at `uri`.

    Raises:
        ModelNotFound: there is none, or it is of another kind.
        BrokenModel: the weights are not those that the card describes.
    """
    card = load_card(uri, kind)
    try:
        weights = storage.read_bytes(storage.join(uri, WEIGHTS))
    except FileNotFoundError:
        raise BrokenModel(f"{uri} holds a card but no {WEIGHTS}; copy the whole folder") from None
    if (digest := hashlib.sha256(weights).hexdigest()) != card.get("hash"):
        raise BrokenModel(
            f"{uri}: {WEIGHTS} has SHA-256 {digest}, its card says {card.get('hash')}; copy both "
            "files of one model"
        )
    return load(weights), card


def _serialised(arrays: Arrays) -> bytes:
    return save({name: np.ascontiguousarray(array) for name, array in sorted(arrays.items())})
