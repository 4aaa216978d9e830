"""Vision Transformers, our own and published ones: class token, registers, positional embeddings
that stretch to any crop.

Images come as [N, H, W, 3] (channels last, the way patches are stored), as uint8 or float. What the
numbers mean is decided by the patch-embedding weights alone: during training they expect normalised
values, after `fold_normalisation` raw uint8 pixels. The network knows no loss and no slide.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.encoder.network import Colours, Network, Tokens


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """Architecture of a `VisionTransformer`.

    Attributes:
        size: image side in px for which the positional embeddings are stored; other sizes
            interpolate them.
        patch: side in px of one token's square; both sides of every image must be multiples of it.
        dim: width of a token.
        depth: number of blocks.
        heads: attention heads a block; divides `dim`.
        mlp_ratio: hidden width of the MLP / `dim`.
        registers: extra tokens without a position in the image (Darcet et al. 2024); they are
            dropped at the output.
        layer_scale: initial value of the learned scale on each residual branch, None for none.
        drop_path: probability that a sample skips a residual branch during training; grows linearly
            from 0 at the first block.
        hidden: width of the MLP after its activation, if `mlp_ratio` does not give it.
        gated: whether the MLP is SwiGLU (Shazeer 2020) instead of GELU.
        epsilon: of the layer norms.
        antialias: whether shrinking the positional embeddings averages them.
        rope: base of rotary position embeddings (as in DINOv3) in addition to the stored ones, None
            for none.
        pooler: width of the class token after attentional pooling (as in CoCa) of all tokens, None
            for none.
    """

    size: int = 224
    patch: int = 16
    dim: int = 384
    depth: int = 12
    heads: int = 6
    mlp_ratio: float = 4.0
    registers: int = 4
    layer_scale: float | None = 1e-5
    drop_path: float = 0.0
    hidden: int | None = None
    gated: bool = False
    epsilon: float = 1e-6
    antialias: bool = True
    rope: float | None = None
    pooler: int | None = None

    def __post_init__(self) -> None:
        if self.size % self.patch:
            raise ValueError(
                f"image size {self.size} px is not a multiple of the token size {self.patch} px"
            )
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} is not a multiple of {self.heads} heads")

    @property
    def grid(self) -> int:
        """Tokens along one side of an image of `size`."""
        return self.size // self.patch

    @property
    def cls_dim(self) -> int:
        """Width of the class token."""
        return self.pooler or self.dim

    def build(self) -> VisionTransformer:
        """The network with random weights."""
        return VisionTransformer(self)


class Rotation:
    """Rotary embedding of the positions of squares, by angles [squares, dim of a head].

    As DINOv3: a square's centre in [-1, 1] along both axes times 2 pi and frequencies that fall
    from 1 to 1 / base. Class token and registers are not turned.
    """

    def __init__(self, rows: int, columns: int, per_head: int, base: float) -> None:
        y, x = (
            (torch.arange(side, dtype=torch.float32) + 0.5) / side * 2 - 1
            for side in (rows, columns)
        )
        centres = torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1).flatten(0, 1)
        frequencies = base ** -torch.arange(0, 1, 4 / per_head)
        angles = (2 * math.pi * centres[:, :, None] * frequencies).flatten(1).tile(2)
        self.cos, self.sin = angles.cos(), angles.sin()

    def __call__(self, values: Tensor) -> Tensor:
        """Turn queries or keys [N, heads, T, dim of a head]."""
        others, squares = torch.split(
            values, [values.shape[2] - len(self.cos), len(self.cos)], dim=2
        )
        first, second = squares.chunk(2, dim=-1)
        turned = torch.cat([-second, first], dim=-1)
        squares = squares * self.cos.to(squares) + turned * self.sin.to(squares)
        return torch.cat([others, squares], dim=2)


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.dim, 3 * config.dim)
        self.project = nn.Linear(config.dim, config.dim)

    def forward(self, tokens: Tensor, rotation: Rotation | None = None) -> Tensor:
        """Attend within each sample of [N, T, dim]."""
        n, t, dim = tokens.shape
        q, k, v = self._heads(self.qkv(tokens)).chunk(3, dim=1)
        if rotation is not None:
            q, k = rotation(q), rotation(k)
        mixed = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.project(mixed.transpose(1, 2).reshape(n, t, dim))
        return out

    def first(self, tokens: Tensor) -> Tensor:
        """What `forward` gives the first token, [N, 1, dim], without computing the others."""
        n, _, dim = tokens.shape
        weight, bias = self.qkv.weight, self.qkv.bias
        q = self._heads(F.linear(tokens[:, :1], weight[:dim], bias[:dim]))
        k, v = self._heads(F.linear(tokens, weight[dim:], bias[dim:])).chunk(2, dim=1)
        mixed = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.project(mixed.transpose(1, 2).reshape(n, 1, dim))
        return out

    def _heads(self, values: Tensor) -> Tensor:
        """[N, T, C * dim] as [N, C * heads, T, dim / heads]."""
        n, t, width = values.shape
        per_head = self.project.in_features // self.heads
        return values.view(n, t, width // per_head, per_head).transpose(1, 2)


class Residual(nn.Module):
    """Norm, branch, optional layer scale and stochastic depth, added to the input."""

    def __init__(self, branch: nn.Module, config: ViTConfig, drop: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.dim, eps=config.epsilon)
        self.branch = branch
        self.scale = (
            None
            if config.layer_scale is None
            else nn.Parameter(torch.full((config.dim,), config.layer_scale))
        )
        self.drop = drop

    def forward(self, tokens: Tensor, *positions: Rotation | None) -> Tensor:
        """Tokens [N, T, dim] plus the branch's change to them."""
        return self._added(tokens, self.branch(self.norm(tokens), *positions))

    def first(self, tokens: Tensor) -> Tensor:
        """What `forward` gives the first token, [N, 1, dim]; the branch is `Attention`."""
        assert isinstance(self.branch, Attention)
        return self._added(tokens[:, :1], self.branch.first(self.norm(tokens)))

    def _added(self, tokens: Tensor, change: Tensor) -> Tensor:
        if self.scale is not None:
            change = change * self.scale
        if self.training and self.drop > 0.0:
            keep = torch.rand(len(tokens), 1, 1, device=tokens.device) >= self.drop
            change = change * (keep / (1.0 - self.drop)).to(change.dtype)
        return tokens + change


class SwiGLU(nn.Module):
    """The first half of the channels, through SiLU, times the second half."""

    def forward(self, values: Tensor) -> Tensor:
        """Halve the channels of [..., 2 * C]."""
        gate, linear = values.chunk(2, dim=-1)
        return F.silu(gate) * linear


def _mlp(config: ViTConfig) -> nn.Sequential:
    hidden = config.hidden or round(config.dim * config.mlp_ratio)
    if config.gated:
        return nn.Sequential(
            nn.Linear(config.dim, 2 * hidden), SwiGLU(), nn.Linear(hidden, config.dim)
        )
    return nn.Sequential(nn.Linear(config.dim, hidden), nn.GELU(), nn.Linear(hidden, config.dim))


class AttentionalPooler(nn.Module):
    """One learned query that attends to all tokens (Yu et al. 2022, CoCa)."""

    HEADS = 8

    def __init__(self, context: int, width: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(1, width))
        self.norm_tokens, self.norm_query = nn.LayerNorm(context), nn.LayerNorm(width)
        self.to_query = nn.Linear(width, width, bias=False)
        self.to_key_value = nn.Linear(context, 2 * width, bias=False)
        self.to_out = nn.Linear(width, width, bias=False)
        self.norm_out = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Pool [N, T, context] to [N, width]."""
        n, width = len(tokens), self.query.shape[1]
        query = self.to_query(self.norm_query(self.query)).expand(n, 1, -1)
        q, k, v = (
            part.view(n, -1, self.HEADS, width // self.HEADS).transpose(1, 2)
            for part in (query, *self.to_key_value(self.norm_tokens(tokens)).chunk(2, dim=-1))
        )
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, width)
        pooled: Tensor = self.norm_out(self.to_out(mixed))
        return pooled


class VisionTransformer(Network):
    """The encoder network. Construct under `torch.random.fork_rng` with a seed for reproducible
    weights.
    """

    embed: nn.Linear

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Linear(3 * config.patch**2, config.dim)
        self.cls = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.registers = nn.Parameter(torch.zeros(1, config.registers, config.dim))
        self.positions = nn.Parameter(torch.zeros(1, 1 + config.grid**2, config.dim))
        drops = torch.linspace(0.0, config.drop_path, config.depth).tolist()
        self.blocks = nn.ModuleList(
            nn.Sequential(
                Residual(Attention(config), config, drop), Residual(_mlp(config), config, drop)
            )
            for drop in drops
        )
        self.norm = nn.LayerNorm(config.dim, eps=config.epsilon)
        self.pooler = AttentionalPooler(config.dim, config.pooler) if config.pooler else None
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.positions, std=0.02)
        nn.init.normal_(self.cls, std=1e-6)
        nn.init.normal_(self.registers, std=1e-6)

    def tokens_of(self, images: Tensor) -> Tensor:
        """Cut [N, H, W, 3] into squares and embed each: [N, H/patch * W/patch, dim]."""
        n, height, width, channels = images.shape
        side = self.config.patch
        if height % side or width % side or channels != 3:
            raise ValueError(
                f"images of shape {tuple(images.shape)}: expected [N, H, W, 3] with H and W "
                f"multiples of {side}"
            )
        squares = images.view(n, height // side, side, width // side, side, 3).permute(
            0, 1, 3, 2, 4, 5
        )
        flat = squares.reshape(n, (height // side) * (width // side), side * side * 3)
        embedded: Tensor = self.embed(flat.to(self.embed.weight.dtype))
        return embedded.to(self.cls.dtype)

    def positions_for(self, rows: int, columns: int) -> Tensor:
        """Positional embeddings [1, 1 + rows * columns, dim], bicubically stretched from the stored
        grid where it differs.
        """
        grid = self.config.grid
        if (rows, columns) == (grid, grid):
            return self.positions
        stored = self.positions[:, 1:].float()
        matrix = _stretch(grid, rows, columns, self.config.antialias).to(stored)
        return torch.cat(
            [self.positions[:, :1], (matrix @ stored[0])[None].to(self.positions.dtype)], dim=1
        )

    def forward(self, images: Tensor) -> Tokens:
        """Encode [N, H, W, 3]; any H and W that are multiples of the token size."""
        tokens, rotation = self._embedded(images), self._rotation(images)
        for block in self.blocks:
            attention, mlp = block.children()
            tokens = mlp(attention(tokens, rotation))
        tokens = self.norm(tokens)
        return Tokens(
            cls=tokens[:, 0] if self.pooler is None else self.pooler(tokens),
            patches=tokens[:, 1 + self.config.registers :],
        )

    def class_tokens(self, images: Tensor) -> Tensor:
        """The class tokens [N, dim] of `forward` alone.

        Nothing but attention reads the other tokens of the last block, so that it computes one
        token instead of all: a fifth
        less work with 4 blocks, 7 % less with 12. Sums of other shapes round differently, in the
        last digits.
        """
        tokens = self._embedded(images)
        for block in self.blocks[:-1]:
            tokens = block(tokens)
        attention, mlp = self.blocks[-1].children()
        assert isinstance(attention, Residual)
        cls: Tensor = self.norm(mlp(attention.first(tokens)))
        return cls[:, 0]

    def _rotation(self, images: Tensor) -> Rotation | None:
        config = self.config
        if config.rope is None:
            return None
        rows, columns = (side // config.patch for side in images.shape[1:3])
        return _rotation(rows, columns, config.dim // config.heads, config.rope)

    @torch.no_grad()
    def fold_normalisation(self, mean: Colours, std: Colours) -> None:
        """Change the patch embedding in place so that it takes raw pixels."""
        squares = self.config.patch**2
        weight = self.embed.weight.double()
        scale = torch.tensor(std, dtype=torch.float64).repeat(squares)
        shift = torch.tensor(mean, dtype=torch.float64).repeat(squares)
        self.embed.bias.copy_(self.embed.bias.double() - (weight / scale) @ shift)
        self.embed.weight.copy_(weight / (255.0 * scale))

    def _embedded(self, images: Tensor) -> Tensor:
        """Class token, registers and squares with their positions, [N, 1 + registers + squares,
        dim].
        """
        n, height, width, _ = images.shape
        squares = self.tokens_of(images)
        positions = self.positions_for(height // self.config.patch, width // self.config.patch)
        squares = squares + positions[:, 1:]
        cls = (self.cls + positions[:, :1]).expand(n, -1, -1)
        return torch.cat([cls, self.registers.expand(n, -1, -1), squares], dim=1)


@lru_cache(maxsize=16)
def _rotation(rows: int, columns: int, per_head: int, base: float) -> Rotation:
    return Rotation(rows, columns, per_head, base)


@lru_cache(maxsize=16)
def _stretch(grid: int, rows: int, columns: int, antialias: bool) -> Tensor:
    """The linear map [rows * columns, grid * grid] of a bicubic resize of a grid of embeddings."""
    basis = torch.eye(grid * grid).view(1, grid * grid, grid, grid)
    resized = F.interpolate(
        basis, size=(rows, columns), mode="bicubic", antialias=antialias, align_corners=False
    )
    return resized.view(grid * grid, rows * columns).T.contiguous()
