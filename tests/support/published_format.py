"""Published encoders in miniature: random weights under the names and in the shapes in which the
real ones are published, for every row of the table.

`python -m tests.support.published_format` writes what timm and transformers compute with them to
`published_reference.json`; it needs both, as `make bench-encoders` installs them. The suite
compares our networks with that file. Numbers of CONCH v1.5 are timm's for its trunk, and plain
NumPy's for its pooler.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.encoder.published import PUBLISHED, PublishedEncoder

REFERENCE = Path(__file__).with_suffix("").with_name("published_reference.json")
DIM, HIDDEN, DEPTH, HEADS, POOLED = 64, 128, 2, 4, 40
WITHOUT_CLASS_POSITION = frozenset(
    {"uni2_h", "h_optimus_0", "h_optimus_1", "h0_mini", "kaiko_vitl14"}
)
"""timm's `no_embed_class`: only squares have a position."""
WITHOUT_LAYER_SCALE = frozenset({"phikon", "kaiko_vits16", "kaiko_vits8", "kaiko_vitb16"})
STORED_AT_518 = frozenset({"kaiko_vitl14", *(name for name in PUBLISHED if "dinov2" in name)})


def miniature(name: str) -> PublishedEncoder:
    """The row of `name` with a small network."""
    row = PUBLISHED[name]
    pooler = POOLED if row.pooler else None
    return replace(row, dim=DIM, depth=DEPTH, heads=HEADS, pooler=pooler)


def published_state(name: str) -> dict[str, Tensor]:
    """Random weights of `miniature(name)` as they would be published."""
    row = miniature(name)
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    state = {}
    for weight, shape in sorted(_shapes(name, row).items()):
        values = rng.normal(size=shape)
        if "norm" in weight or weight.startswith("ln_") or ".ln_" in weight:
            values = 0.1 * values + float(weight.endswith("weight"))
        elif "gamma" in weight or "lambda" in weight:
            values = 0.3 * values
        else:
            values = values / np.sqrt(shape[-1] if len(shape) > 1 else 10.0)
        state[weight] = torch.tensor(values, dtype=torch.float32)
    return state


def patches(name: str) -> NDArray[np.uint8]:
    """Two images that the encoder takes."""
    size = PUBLISHED[name].spec.size
    return np.random.default_rng(7).integers(0, 256, (2, size, size, 3), np.uint8)


def grid(name: str) -> int:
    """Positions along one side, as stored."""
    row = PUBLISHED[name]
    return (518 if name in STORED_AT_518 else row.spec.size) // row.patch


def _shapes(name: str, row: PublishedEncoder) -> dict[str, tuple[int, ...]]:
    if row.family in ("timm", "conch"):
        return _timm_shapes(name, row)
    return _transformers_shapes(name, row)


def _linear(name: str, outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, width: int = DIM) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _timm_shapes(name: str, row: PublishedEncoder) -> dict[str, tuple[int, ...]]:
    prefix = 0 if name in WITHOUT_CLASS_POSITION else 1 + row.registers
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, DIM),
        "pos_embed": (1, grid(name) ** 2 + prefix, DIM),
        "patch_embed.proj.weight": (DIM, 3, row.patch, row.patch),
        "patch_embed.proj.bias": (DIM,),
        **_norm("norm"),
    }
    if row.registers:
        shapes["reg_token"] = (1, row.registers, DIM)
    for k in range(DEPTH):
        block = f"blocks.{k}"
        shapes |= _norm(f"{block}.norm1") | _norm(f"{block}.norm2")
        shapes |= _linear(f"{block}.attn.qkv", 3 * DIM, DIM)
        shapes |= _linear(f"{block}.attn.proj", DIM, DIM)
        shapes |= _linear(f"{block}.mlp.fc1", HIDDEN * (2 if row.gated else 1), DIM)
        shapes |= _linear(f"{block}.mlp.fc2", DIM, HIDDEN)
        if name not in WITHOUT_LAYER_SCALE:
            shapes |= {f"{block}.ls1.gamma": (DIM,), f"{block}.ls2.gamma": (DIM,)}
    if row.family == "timm":
        return shapes
    pool = "attn_pool_contrast"
    return {
        **{f"trunk.{weight}": shape for weight, shape in shapes.items()},
        f"{pool}.query": (1, POOLED),
        f"{pool}.to_q.weight": (POOLED, POOLED),
        f"{pool}.to_kv.weight": (2 * POOLED, DIM),
        f"{pool}.to_out.weight": (POOLED, POOLED),
        **_norm(f"{pool}.ln_k"),
        **_norm(f"{pool}.ln_q", POOLED),
        **_norm("ln_contrast", POOLED),
    }


def _transformers_shapes(name: str, row: PublishedEncoder) -> dict[str, tuple[int, ...]]:
    v3 = row.family == "dinov3"
    embed = "embeddings.patch_embeddings" + ("" if v3 else ".projection")
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.cls_token": (1, 1, DIM),
        f"{embed}.weight": (DIM, 3, row.patch, row.patch),
        f"{embed}.bias": (DIM,),
        **_norm("norm" if v3 else "layernorm"),
    }
    if row.family != "vit":
        shapes["embeddings.mask_token"] = (1, 1, DIM) if v3 else (1, DIM)
    if not v3:
        shapes["embeddings.position_embeddings"] = (1, grid(name) ** 2 + 1, DIM)
    if row.registers:
        shapes["embeddings.register_tokens"] = (1, row.registers, DIM)
    for k in range(DEPTH):
        shapes |= _transformers_block(row, f"layer.{k}" if v3 else f"encoder.layer.{k}")
    return shapes


def _transformers_block(row: PublishedEncoder, block: str) -> dict[str, tuple[int, ...]]:
    norms, attention, out, mlp, keys = {
        "vit": (
            ("layernorm_before", "layernorm_after"),
            "attention.attention.",
            "attention.output.dense",
            {"intermediate.dense": (HIDDEN, DIM), "output.dense": (DIM, HIDDEN)},
            ("query", "key", "value"),
        ),
        "dinov2": (
            ("norm1", "norm2"),
            "attention.attention.",
            "attention.output.dense",
            {"mlp.weights_in": (2 * HIDDEN, DIM), "mlp.weights_out": (DIM, HIDDEN)}
            if row.gated
            else {"mlp.fc1": (HIDDEN, DIM), "mlp.fc2": (DIM, HIDDEN)},
            ("query", "key", "value"),
        ),
        "dinov3": (
            ("norm1", "norm2"),
            "attention.",
            "attention.o_proj",
            {"mlp.up_proj": (HIDDEN, DIM), "mlp.down_proj": (DIM, HIDDEN)}
            | ({"mlp.gate_proj": (HIDDEN, DIM)} if row.gated else {}),
            ("q_proj", "k_proj", "v_proj"),
        ),
    }[row.family]
    shapes: dict[str, tuple[int, ...]] = {}
    for norm in norms:
        shapes |= _norm(f"{block}.{norm}")
    for part in keys:
        shapes |= _linear(f"{block}.{attention}{part}", DIM, DIM)
    shapes |= _linear(f"{block}.{out}", DIM, DIM)
    for part, (outputs, inputs) in mlp.items():
        shapes |= _linear(f"{block}.{part}", outputs, inputs)
    if row.family == "dinov3":
        del shapes[f"{block}.attention.k_proj.bias"]
    if row.family != "vit":
        shapes |= {f"{block}.layer_scale{k}.lambda1": (DIM,) for k in (1, 2)}
    return shapes


def reference(name: str) -> NDArray[np.float32]:
    """What the reference implementation makes of `patches(name)`."""
    row, state = miniature(name), published_state(name)
    mean, std = (torch.tensor(each) for each in row.normalisation)
    images = ((torch.from_numpy(patches(name)) / 255 - mean) / std).permute(0, 3, 1, 2)
    with torch.inference_mode():
        if row.family in ("timm", "conch"):
            tokens = _timm_tokens(name, row, state, images)
        else:
            tokens = _transformers_tokens(name, row, state, images)
        if row.pooler:
            return _pooled(state, tokens.double().numpy())
        cls = tokens[:, 0]
        if row.pooling == "cls+mean":
            cls = torch.cat([cls, tokens[:, 1 + row.registers :].mean(dim=1)], dim=1)
        return cls.numpy()


def _timm_tokens(
    name: str, row: PublishedEncoder, state: dict[str, Tensor], images: Tensor
) -> Tensor:
    from timm.layers import Mlp, SwiGLUPacked
    from timm.models.vision_transformer import VisionTransformer

    model = VisionTransformer(
        img_size=grid(name) * row.patch,
        patch_size=row.patch,
        embed_dim=DIM,
        depth=DEPTH,
        num_heads=HEADS,
        mlp_ratio=HIDDEN * (2 if row.gated else 1) / DIM,
        init_values=None if name in WITHOUT_LAYER_SCALE else 1.0,
        reg_tokens=row.registers,
        no_embed_class=name in WITHOUT_CLASS_POSITION,
        num_classes=0,
        dynamic_img_size=True,
        mlp_layer=SwiGLUPacked if row.gated else Mlp,
        act_layer=torch.nn.SiLU if row.gated else torch.nn.GELU,
    ).eval()
    trunk = {weight.removeprefix("trunk."): value for weight, value in state.items()}
    wanted = model.state_dict().keys()
    model.load_state_dict(
        {
            weight: value
            for weight, value in trunk.items()
            if row.family == "timm" or weight in wanted
        }
    )
    tokens: Tensor = model.forward_features(images)
    return tokens


def _transformers_tokens(
    name: str, row: PublishedEncoder, state: dict[str, Tensor], images: Tensor
) -> Tensor:
    import tempfile

    import safetensors.torch
    import transformers

    options: dict[str, Any] = {
        "hidden_size": DIM,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": HEADS,
        "intermediate_size": HIDDEN,
        "patch_size": row.patch,
        "image_size": grid(name) * row.patch,
        "layer_norm_eps": row.epsilon,
    }
    if row.family == "vit":
        model, config = transformers.ViTModel, transformers.ViTConfig(**options)
    elif row.family == "dinov3":
        model = transformers.DINOv3ViTModel
        config = transformers.DINOv3ViTConfig(
            **options,
            num_register_tokens=4,
            use_gated_mlp=row.gated,
            hidden_act="silu" if row.gated else "gelu",
        )
    else:
        # The width of SwiGLU is 2 / 3 of ratio * dim.
        ratio = 3 if row.gated else 2
        options |= {"mlp_ratio": ratio, "use_swiglu_ffn": row.gated}
        if row.registers:
            model = transformers.Dinov2WithRegistersModel
            config = transformers.Dinov2WithRegistersConfig(**options, num_register_tokens=4)
        else:
            model, config = transformers.Dinov2Model, transformers.Dinov2Config(**options)
    with tempfile.TemporaryDirectory() as folder:
        safetensors.torch.save_file(state, f"{folder}/model.safetensors", {"format": "pt"})
        config.architectures = [model.__name__]
        config.save_pretrained(folder)
        extra = {"add_pooling_layer": False} if row.family == "vit" else {}
        made, info = model.from_pretrained(folder, output_loading_info=True, **extra)
    assert not info["missing_keys"], info
    assert not info["unexpected_keys"], info
    # Only ViT is asked to interpolate; the others always do where sizes differ.
    more = {"interpolate_pos_encoding": True} if row.family == "vit" else {}
    tokens: Tensor = made.eval()(images, **more).last_hidden_state
    return tokens


def _pooled(state: dict[str, Tensor], tokens: NDArray[np.float64]) -> NDArray[np.float32]:
    """CONCH v1.5's attentional pooling of tokens [N, T, DIM], in NumPy."""
    pool = {weight: value.double().numpy() for weight, value in state.items()}

    def norm(values: NDArray[np.float64], name: str) -> NDArray[np.float64]:
        centred = values - values.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt(centred.var(axis=-1, keepdims=True) + 1e-5)
        return np.asarray(scaled * pool[f"{name}.weight"] + pool[f"{name}.bias"])

    prefix = "attn_pool_contrast"
    q = norm(pool[f"{prefix}.query"], f"{prefix}.ln_q") @ pool[f"{prefix}.to_q.weight"].T
    k, v = np.split(norm(tokens, f"{prefix}.ln_k") @ pool[f"{prefix}.to_kv.weight"].T, 2, axis=-1)
    out = np.zeros((len(tokens), POOLED))
    width = POOLED // 8
    for head in range(8):
        part = slice(head * width, (head + 1) * width)
        scores = k[..., part] @ q[0, part] / np.sqrt(width)
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        weights /= weights.sum(axis=1, keepdims=True)
        out[:, part] = np.einsum("nt,ntc->nc", weights, v[..., part])
    return norm(out @ pool[f"{prefix}.to_out.weight"].T, "ln_contrast").astype(np.float32)


def stand_in_for_torchvision() -> None:
    """Declare the operators that torchvision lacks next to a torch without CUDA."""
    for operator in ("nms", "qnms"):
        _LIBRARY.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


_LIBRARY = torch.library.Library("torchvision", "FRAGMENT")


def main() -> None:
    """Write the reference's embeddings of every row."""
    stand_in_for_torchvision()
    document = {
        name: [[round(float(value), 6) for value in row] for row in reference(name)]
        for name in PUBLISHED
    }
    REFERENCE.write_text(json.dumps(document) + "\n")


if __name__ == "__main__":
    main()
