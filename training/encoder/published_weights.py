"""From the weights of a published encoder to our Vision Transformer: other names, the same numbers.

A family is a table of names. What a row of `published.py` does not say is read from the weights:
the grid of the positions, the width of the MLP, whether there is a layer scale.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NoReturn

import torch
from torch import Tensor

from training.encoder.architecture import EncoderConfig
from training.encoder.published import PublishedEncoder
from training.encoder.vit import VisionTransformer, ViTConfig
from training.errors import BrokenModel


@dataclass(frozen=True, kw_only=True)
class Names:
    """What a family calls the parts of a Vision Transformer.

    Attributes:
        model: by our names, outside of the blocks.
        block: prefix of a block, with its number as {}.
        within: by our names, within a block; several names are put one after the other.
        ignored: beginnings of names that an embedding does not need.
    """

    model: Mapping[str, str]
    block: str
    within: Mapping[str, str | tuple[str, ...]]
    ignored: tuple[str, ...] = ()


def _separate(prefix: str) -> tuple[str, ...]:
    return tuple(f"{prefix}.{part}" for part in ("query", "key", "value"))


TIMM: Final = Names(
    model={
        "embed": "patch_embed.proj",
        "cls": "cls_token",
        "registers": "reg_token",
        "positions": "pos_embed",
        "norm": "norm",
    },
    block="blocks.{}.",
    within={
        "0.norm": "norm1",
        "0.branch.qkv": "attn.qkv",
        "0.branch.project": "attn.proj",
        "0.scale": "ls1.gamma",
        "1.norm": "norm2",
        "1.branch.0": "mlp.fc1",
        "1.branch.2": "mlp.fc2",
        "1.scale": "ls2.gamma",
    },
    ignored=("head.", "mask_token"),
)
HUGGING_FACE: Final = {
    "embed": "embeddings.patch_embeddings.projection",
    "cls": "embeddings.cls_token",
    "registers": "embeddings.register_tokens",
    "positions": "embeddings.position_embeddings",
    "norm": "layernorm",
}
FAMILIES: Final[dict[str, Names]] = {
    "timm": TIMM,
    "vit": Names(
        model=HUGGING_FACE,
        block="encoder.layer.{}.",
        within={
            "0.norm": "layernorm_before",
            "0.branch.qkv": _separate("attention.attention"),
            "0.branch.project": "attention.output.dense",
            "1.norm": "layernorm_after",
            "1.branch.0": "intermediate.dense",
            "1.branch.2": "output.dense",
        },
        ignored=("pooler.", "classifier.", "embeddings.mask_token"),
    ),
    "dinov2": Names(
        model=HUGGING_FACE,
        block="encoder.layer.{}.",
        within={
            "0.norm": "norm1",
            "0.branch.qkv": _separate("attention.attention"),
            "0.branch.project": "attention.output.dense",
            "0.scale": "layer_scale1.lambda1",
            "1.norm": "norm2",
            "1.branch.0": "mlp.fc1",
            "1.branch.2": "mlp.fc2",
            "1.scale": "layer_scale2.lambda1",
        },
        ignored=("embeddings.mask_token",),
    ),
    "dinov3": Names(
        model={
            "embed": "embeddings.patch_embeddings",
            "cls": "embeddings.cls_token",
            "registers": "embeddings.register_tokens",
            "norm": "norm",
        },
        block="layer.{}.",
        within={
            "0.norm": "norm1",
            "0.branch.qkv": ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
            "0.branch.project": "attention.o_proj",
            "0.scale": "layer_scale1.lambda1",
            "1.norm": "norm2",
            "1.branch.0": "mlp.up_proj",
            "1.branch.2": "mlp.down_proj",
            "1.scale": "layer_scale2.lambda1",
        },
        ignored=("embeddings.mask_token", "rope_embeddings."),
    ),
}
GATED: Final[dict[str, dict[str, str | tuple[str, ...]]]] = {
    "timm": {},
    "dinov2": {"1.branch.0": "mlp.weights_in", "1.branch.2": "mlp.weights_out"},
    "dinov3": {"1.branch.0": ("mlp.gate_proj", "mlp.up_proj")},
}
"""What differs within a block whose MLP is SwiGLU."""
POOLER: Final = {
    "pooler.query": "attn_pool_contrast.query",
    "pooler.norm_tokens": "attn_pool_contrast.ln_k",
    "pooler.norm_query": "attn_pool_contrast.ln_q",
    "pooler.to_query": "attn_pool_contrast.to_q",
    "pooler.to_key_value": "attn_pool_contrast.to_kv",
    "pooler.to_out": "attn_pool_contrast.to_out",
    "pooler.norm_out": "ln_contrast",
}
FAMILIES["conch"] = Names(
    model={name: f"trunk.{theirs}" for name, theirs in TIMM.model.items()} | POOLER,
    block=f"trunk.{TIMM.block}",
    within=TIMM.within,
    ignored=("trunk.head.",),
)


def network_of(row: PublishedEncoder, state: Mapping[str, Tensor]) -> VisionTransformer:
    """Our network with published weights; it takes raw pixels.

    Args:
        row: of the table.
        state: weights by the names they were published with.

    Raises:
        BrokenModel: the weights are of another architecture; names what differs.
    """
    weights = _renamed(row, state)
    config = _config(row, weights)
    _fit_positions(config, weights)
    network = VisionTransformer(config)
    wanted = {name: value.shape for name, value in network.state_dict().items()}
    for name in sorted(wanted.keys() ^ weights.keys()):
        _refuse(row, f"{name} is {'missing' if name in wanted else 'not expected'}")
    for name, shape in wanted.items():
        if weights[name].shape != shape:
            _refuse(row, f"{name} is {tuple(weights[name].shape)}, not {tuple(shape)}")
    network.load_state_dict(weights)
    network.fold_normalisation(*row.normalisation)
    return network


def config_of(row: PublishedEncoder, network: VisionTransformer) -> EncoderConfig:
    """What decides its embeddings in addition to the weights."""
    return EncoderConfig(network=network.config, spec=row.spec, pooling=row.pooling)


def _renamed(row: PublishedEncoder, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    names = FAMILIES[row.family]
    parts = dict[str, str | tuple[str, ...]](names.model)
    within = {**names.within, **(GATED[row.family] if row.gated else {})}
    for k in range(row.depth):
        for ours, theirs in within.items():
            each = (theirs,) if isinstance(theirs, str) else theirs
            prefix = names.block.format(k)
            parts[f"blocks.{k}.{ours}"] = tuple(prefix + name for name in each)
    weights, used = {}, set()
    for ours, theirs in parts.items():
        each = (theirs,) if isinstance(theirs, str) else theirs
        for suffix in ("", ".weight", ".bias"):
            keys = [name + suffix for name in each]
            if present := [state[key].float() for key in keys if key in state]:
                like = torch.zeros_like(present[0])  # DINOv3 has no bias of keys
                tensors = [state.get(key, like).float() for key in keys]
                weights[ours + suffix] = torch.cat(tensors) if len(keys) > 1 else present[0]
                used.update(keys)
    for name in sorted(state.keys() - used):
        if not name.startswith(names.ignored):
            _refuse(row, f"{name} is not expected")
    return weights


def _config(row: PublishedEncoder, weights: Mapping[str, Tensor]) -> ViTConfig:
    for name in ("embed.weight", "cls", "blocks.0.1.branch.2.weight"):
        if name not in weights:
            _refuse(row, f"{name} is missing")
    dim, _, side, _ = weights["embed.weight"].shape
    if (dim, side) != (row.dim, row.patch):
        _refuse(row, f"tokens are {dim} wide and of {side} px, not {row.dim} and of {row.patch} px")
    grid = row.spec.size // row.patch
    if row.rope is None:
        if "positions" not in weights:
            _refuse(row, "positions is missing")
        count = weights["positions"].shape[1]
        squares = [count - prefix for prefix in (0, 1, 1 + row.registers) if count > prefix]
        grids = [math.isqrt(each) for each in squares if math.isqrt(each) ** 2 == each]
        if not grids:
            _refuse(row, f"{count} positions are not a square grid")
        grid = grids[0]
    return ViTConfig(
        size=grid * row.patch,
        patch=row.patch,
        dim=row.dim,
        depth=row.depth,
        heads=row.heads,
        registers=row.registers,
        layer_scale=1.0 if "blocks.0.0.scale" in weights else None,
        hidden=weights["blocks.0.1.branch.2.weight"].shape[1],
        gated=row.gated,
        epsilon=row.epsilon,
        antialias=row.antialias,
        rope=row.rope,
        pooler=row.pooler,
    )


def _fit_positions(config: ViTConfig, weights: dict[str, Tensor]) -> None:
    """Our layout: a token's square is [side, side, RGB]; there are positions of the class token
    (zero if it has none) and of the squares; those of registers are added to these.
    """
    weights["embed.weight"] = weights["embed.weight"].permute(0, 2, 3, 1).flatten(1)
    weights.setdefault("registers", torch.zeros(1, 0, config.dim))
    squares = config.grid**2
    stored = weights.get("positions", torch.zeros(1, squares, config.dim))
    prefix, positions = torch.split(stored, [stored.shape[1] - squares, squares], dim=1)
    if prefix.shape[1] > 1:
        weights["registers"] = weights["registers"] + prefix[:, 1:]
    cls = prefix[:, :1] if prefix.shape[1] else torch.zeros(1, 1, config.dim)
    weights["positions"] = torch.cat([cls, positions], dim=1)


def _refuse(row: PublishedEncoder, difference: str) -> NoReturn:
    raise BrokenModel(
        f"these are not the weights of {row.name}: {difference}; give those of {row.hub}"
    )
