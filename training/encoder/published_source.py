"""Where the weights of a published encoder come from: a folder, an S3 prefix, or the Hugging Face
hub. They are read as numbers: a file that holds code is refused.
"""

from __future__ import annotations

import importlib
import io
import json
import pickle
from pathlib import Path
from typing import Final

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from pipelines import storage
from training.encoder.published import PublishedEncoder
from training.errors import BrokenModel, ModelNotFound, WeightsUnavailable

INDEX: Final = "model.safetensors.index.json"
FILES: Final = ("model.safetensors", INDEX, "pytorch_model.bin", "pytorch_model_vision.bin")


def read_weights(row: PublishedEncoder, folder: str | None) -> dict[str, Tensor]:
    """Weights by the names they were published with.

    Args:
        row: of the table.
        folder: with a copy of the hub's files; None for the hub itself.

    Raises:
        ModelNotFound: the folder has none of the files.
        BrokenModel: a file is damaged, or holds more than weights.
        WeightsUnavailable: the hub can't be reached, or does not give them.
    """
    source = _from_hub(row) if folder is None else folder
    for name in FILES:
        try:
            content = storage.read_bytes(storage.join(source, name))
        except FileNotFoundError:
            continue
        if name != INDEX:
            return _parsed(source, name, content)
        parts = sorted(set(json.loads(content)["weight_map"].values()))
        state: dict[str, Tensor] = {}
        for part in parts:
            state |= _parsed(source, part, storage.read_bytes(storage.join(source, part)))
        return state
    raise ModelNotFound(
        f"{source} has none of {', '.join(FILES)}; copy the files of {row.hub} there"
    )


def _parsed(source: str, name: str, content: bytes) -> dict[str, Tensor]:
    try:
        if name.endswith(".safetensors"):
            return safetensors.torch.load(content)
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except SafetensorError:
        raise BrokenModel(f"{source}: {name} is not whole; copy it again") from None
    except pickle.UnpicklingError:
        raise BrokenModel(
            f"{source}: {name} is damaged or holds code in addition to weights, which is never "
            "run; get the model as safetensors"
        ) from None
    except (RuntimeError, EOFError):
        raise BrokenModel(f"{source}: {name} is not whole; copy it again") from None
    if not isinstance(state, dict) or not all(isinstance(each, Tensor) for each in state.values()):
        raise BrokenModel(f"{source}: {name} is not a table of weights; get the published file")
    return state


def _from_hub(row: PublishedEncoder) -> str:
    """A local folder with the hub's files; asks the hub only for what its cache lacks."""
    try:
        hub = importlib.import_module("huggingface_hub")
        errors = importlib.import_module("huggingface_hub.errors")
    except ModuleNotFoundError:
        raise WeightsUnavailable(
            f"the weights of {row.name} are on the Hugging Face hub, and huggingface_hub is not "
            f"installed; pip install huggingface_hub, or give a folder: {row.name}=FOLDER"
        ) from None
    try:
        folder = str(hub.snapshot_download(row.hub, allow_patterns=["*.safetensors", INDEX]))
        if not any(Path(folder, name).exists() for name in FILES):  # an older model
            folder = str(hub.snapshot_download(row.hub, allow_patterns=[*FILES]))
        return folder
    except errors.RepositoryNotFoundError as error:  # also what a gated one says
        gated = isinstance(error, errors.GatedRepoError)
        raise WeightsUnavailable(
            f"the hub does not give {row.name} to you: accept the licence at "
            f"https://huggingface.co/{row.hub} and set HF_TOKEN to a token that may read it"
            + ("" if gated or row.gated_access else ", or check that it still exists")
        ) from None
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError):
        raise WeightsUnavailable(
            f"the Hugging Face hub can't be reached for {row.name}; check the network, or give a "
            f"folder with a copy of {row.hub}: {row.name}=FOLDER"
        ) from None
