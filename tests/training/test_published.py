"""Published encoders: every row loads in its published format and computes what the reference
implementation does; what is not its weights is refused.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from tests.support.published_format import (
    REFERENCE,
    miniature,
    patches,
    published_state,
)
from training.encoder.encoder import (
    encoder_spec,
    encoder_terms,
    load_encoder,
    save_encoder,
)
from training.encoder.published import PUBLISHED
from training.errors import BrokenModel, ModelNotFound, WeightsUnavailable


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PUBLISHED:
        monkeypatch.setitem(PUBLISHED, name, miniature(name))


def _publish(folder: Path, name: str) -> str:
    folder.mkdir(exist_ok=True)
    safetensors.torch.save_file(published_state(name), folder / "model.safetensors")
    return f"{name}={folder}"


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_row_computes_what_its_reference_does(tmp_path: Path, name: str) -> None:
    encoder = load_encoder(_publish(tmp_path, name), precision="f32")
    expected = np.array(json.loads(REFERENCE.read_text())[name], np.float32)
    assert encoder.dimension == expected.shape[1] == PUBLISHED[name].dimension
    assert encoder.spec == encoder_spec(name)
    np.testing.assert_allclose(encoder.embed(patches(name)), expected, atol=2e-4)


def test_a_saved_copy_is_the_same_encoder(tmp_path: Path) -> None:
    encoder = load_encoder(_publish(tmp_path / "hub", "virchow2"), precision="f32")
    assert save_encoder(str(tmp_path / "copy"), encoder) == encoder.hash
    copy = load_encoder(str(tmp_path / "copy"), precision="f32")
    images = patches("virchow2")
    np.testing.assert_array_equal(copy.embed(images), encoder.embed(images))
    assert copy.card == encoder.card
    assert encoder_terms(str(tmp_path / "copy")).startswith("virchow2: licence CC-BY-NC-ND-4.0, no")


def test_weights_are_read_in_parts_and_from_bin_files(tmp_path: Path) -> None:
    state = published_state("phikon")
    whole = load_encoder(_publish(tmp_path / "whole", "phikon"), precision="f32").hash
    parts, torch_file = tmp_path / "parts", tmp_path / "bin"
    parts.mkdir()
    torch_file.mkdir()
    names = sorted(state)
    index: dict[str, str] = {}
    for number, chosen in enumerate((names[:9], names[9:]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        safetensors.torch.save_file({name: state[name] for name in chosen}, parts / file)
        index |= dict.fromkeys(chosen, file)
    (parts / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    torch.save(state, torch_file / "pytorch_model.bin")
    for folder in (parts, torch_file):
        assert load_encoder(f"phikon={folder}", precision="f32").hash == whole


class _Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("code in a weights file was run",)


def test_a_file_with_code_is_refused_and_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({**published_state("uni"), "more": _Code()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(BrokenModel, match="holds code in addition to weights, which is never run"):
        load_encoder(f"uni={tmp_path}")
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(_Code(), protocol=2))
    with pytest.raises(BrokenModel, match="holds code in addition to weights, which is never run"):
        load_encoder(f"uni={tmp_path}")
    assert "was run" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        ("virchow2", "tokens are 64 wide and of 14 px, not 64 and of 16 px"),
        ("phikon", "is not expected"),
        ("kaiko_vitb16", None),
    ],
)
def test_weights_of_another_architecture_are_refused(
    tmp_path: Path, other: str, difference: str | None
) -> None:
    folder = _publish(tmp_path, other).partition("=")[2]
    if difference is None:  # the same architecture: nothing tells them apart
        assert load_encoder(f"uni={folder}").dimension == 64
        return
    with pytest.raises(BrokenModel, match=f"not the weights of uni: .*{difference}; give those of"):
        load_encoder(f"uni={folder}")


@pytest.mark.parametrize("change", ["missing", "shape", "depth"])
def test_weights_that_do_not_fit_are_named(tmp_path: Path, change: str) -> None:
    state = published_state("uni")
    if change == "missing":
        del state["norm.weight"]
    elif change == "shape":
        state["blocks.1.attn.qkv.bias"] = torch.zeros(7)
    else:
        state |= {
            name.replace("blocks.1", "blocks.2"): value.clone()
            for name, value in state.items()
            if "blocks.1" in name
        }
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    named = {
        "missing": r"norm\.weight is missing",
        "shape": r"blocks\.1\.0\.branch\.qkv\.bias is \(7,\), not \(192,\)",
        "depth": r"blocks\.2\.attn\.proj\.bias is not expected",
    }
    with pytest.raises(BrokenModel, match=named[change]):
        load_encoder(f"uni={tmp_path}")


def test_damaged_and_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"has none of model\.safetensors, .* MahmoodLab"):
        load_encoder(f"uni={tmp_path}")
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(BrokenModel, match=r"model\.safetensors is not whole; copy it again"):
        load_encoder(f"uni={tmp_path}")


def test_without_the_hub_library_a_name_alone_says_what_to_do() -> None:
    with pytest.raises(WeightsUnavailable, match="huggingface_hub") as error:
        load_encoder("uni")
    assert "uni=FOLDER" in str(error.value)


def test_terms_are_known_before_weights() -> None:
    assert encoder_terms("uni") == (
        "uni: licence CC-BY-NC-ND-4.0, no commercial use (https://huggingface.co/MahmoodLab/UNI)"
    )
    assert encoder_terms("efficientnet_lite0") == (
        "efficientnet_lite0: licence Apache-2.0, commercial use allowed"
    )
