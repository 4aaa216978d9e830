"""Published encoders against timm and transformers themselves, and the hub's client without a hub.

`make bench-encoders` installs them in an environment of their own and runs these tests.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.util import find_spec

import numpy as np
import pytest

from tests.support.published_format import REFERENCE, reference, stand_in_for_torchvision
from training.encoder.encoder import load_encoder
from training.encoder.published import PUBLISHED
from training.errors import WeightsUnavailable

pytestmark = pytest.mark.skipif(
    find_spec("timm") is None or find_spec("transformers") is None,
    reason="timm and transformers are not installed; make bench-encoders installs them",
)


@pytest.fixture(scope="module", autouse=True)
def torchvision() -> None:
    stand_in_for_torchvision()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_stored_reference_is_what_the_libraries_compute(name: str) -> None:
    stored = np.array(json.loads(REFERENCE.read_text())[name])
    np.testing.assert_allclose(reference(name), stored, atol=2e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "model", "options"),
    [
        ("uni", "vit_large_patch16_224", {}),
        ("virchow", "vit_huge_patch14_224", {}),
        ("h_optimus_0", "vit_giant_patch14_reg4_dinov2", {}),
        ("prov_gigapath", "vit_giant_patch14_dinov2", {"patch_size": 16}),
        ("h0_mini", "vit_base_patch14_reg4_dinov2", {}),
        ("kaiko_vits16", "vit_small_patch16_224", {}),
        ("kaiko_vits8", "vit_small_patch8_224", {}),
        ("kaiko_vitb16", "vit_base_patch16_224", {}),
        ("kaiko_vitb8", "vit_base_patch8_224", {}),
        ("kaiko_vitl14", "vit_large_patch14_reg4_dinov2", {}),
    ],
)
def test_a_row_has_the_size_of_timms_model(name: str, model: str, options: dict[str, int]) -> None:
    import timm
    import torch

    with torch.device("meta"):
        theirs = timm.create_model(model, num_classes=0, **options)
    row = PUBLISHED[name]
    assert theirs.embed_dim == row.dim
    assert len(theirs.blocks) == row.depth
    assert theirs.blocks[0].attn.num_heads == row.heads
    assert theirs.patch_embed.patch_size == (row.patch, row.patch)
    assert theirs.num_reg_tokens == row.registers


class _Gated(BaseHTTPRequestHandler):
    """Answers as the hub does to whoever has not accepted a licence."""

    def do_GET(self) -> None:
        self.send_response(403)
        self.send_header("X-Error-Code", "GatedRepo")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, *_arguments: object) -> None:
        """Nothing."""


@pytest.fixture
def gated_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from huggingface_hub import constants, hf_api

    server = HTTPServer(("127.0.0.1", 0), _Gated)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(hf_api.api, "endpoint", endpoint)
    yield
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_gated_model_without_consent_says_where_to_give_it(gated_hub: None) -> None:
    with pytest.raises(WeightsUnavailable, match=r"accept the licence at .*UNI and set"):
        load_encoder("uni")


def test_without_a_network_a_folder_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants, hf_api

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(hf_api.api, "endpoint", "http://127.0.0.1:9")
    with pytest.raises(WeightsUnavailable, match=r"can't be reached for uni.*uni=FOLDER"):
        load_encoder("uni")
