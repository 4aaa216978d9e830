"""The table of published encoders: one row says all that is known of one without its weights.

Facts are from the models' cards and code on the Hugging Face hub, and from TRIDENT and eva, which
load most of them. The number of positions and whether there is a layer scale are read from the
weights (`published_weights.py`). Encoders trained at several resolutions, or on photographs, are
given the one that pathology uses most, 0.5 um per pixel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from pipelines.grid import PatchSpec
from training.encoder.network import Colours, Pooling

Family = Literal["timm", "vit", "dinov2", "dinov3", "conch"]
IMAGENET: Final[tuple[Colours, Colours]] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF: Final[tuple[Colours, Colours]] = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
BIOPTIMUS: Final[tuple[Colours, Colours]] = (
    (0.707223, 0.578729, 0.703617),
    (0.211883, 0.230117, 0.177517),
)
HIBOU: Final[tuple[Colours, Colours]] = ((0.7068, 0.5755, 0.722), (0.195, 0.2316, 0.1816))
NON_COMMERCIAL: Final = "CC-BY-NC-ND-4.0"


@dataclass(frozen=True, kw_only=True)
class PublishedEncoder:
    """One row.

    Attributes:
        name: for `--encoder`.
        hub: repository on the Hugging Face hub.
        family: whose names the weights have: timm's VisionTransformer, ViTModel, Dinov2Model
            (with or without registers) or DINOv3ViTModel of transformers, or CONCH v1.5's tower.
        dim: width of a token.
        depth: number of blocks.
        heads: attention heads a block.
        patch: side of a token's square, px.
        gated: whether the MLP is SwiGLU instead of GELU.
        registers: tokens without a position.
        spec: patches that it takes.
        normalisation: mean and standard deviation of pixels / 255.
        pooling: how its tokens become one embedding, as its authors advise.
        epsilon: of the layer norms.
        antialias: whether shrinking the positional embeddings averages them.
        rope: base of rotary position embeddings, None for none.
        pooler: width after attentional pooling, None for none.
        licence: of the weights.
        commercial: whether it allows commercial use.
        gated_access: whether the hub asks for a token and consent to the licence.
    """

    name: str
    hub: str
    family: Family
    dim: int
    depth: int
    heads: int
    patch: int
    licence: str
    commercial: bool
    gated_access: bool
    gated: bool = False
    registers: int = 0
    spec: PatchSpec = PatchSpec(size=224, mpp=0.5)
    normalisation: tuple[Colours, Colours] = IMAGENET
    pooling: Pooling = "cls"
    epsilon: float = 1e-6
    antialias: bool = True
    rope: float | None = None
    pooler: int | None = None

    @property
    def dimension(self) -> int:
        """Length of an embedding."""
        return (self.pooler or self.dim) + (self.dim if self.pooling == "cls+mean" else 0)

    @property
    def terms(self) -> str:
        """What its licence allows, for people, before it is loaded."""
        use = "commercial use allowed" if self.commercial else "no commercial use"
        return f"{self.name}: licence {self.licence}, {use} (https://huggingface.co/{self.hub})"


def _giant(name: str, hub: str, *, licence: str, commercial: bool) -> PublishedEncoder:
    """H-optimus: ViT-g/14 with registers."""
    return PublishedEncoder(
        name=name,
        hub=hub,
        family="timm",
        dim=1536,
        depth=40,
        heads=24,
        patch=14,
        gated=True,
        registers=4,
        normalisation=BIOPTIMUS,
        licence=licence,
        commercial=commercial,
        gated_access=True,
    )


def _virchow(
    name: str, hub: str, *, registers: int, licence: str, commercial: bool
) -> PublishedEncoder:
    """Virchow: ViT-H/14; its embedding is class token and mean."""
    return PublishedEncoder(
        name=name,
        hub=hub,
        family="timm",
        dim=1280,
        depth=32,
        heads=16,
        patch=14,
        gated=True,
        registers=registers,
        pooling="cls+mean",
        licence=licence,
        commercial=commercial,
        gated_access=True,
    )


def _kaiko(
    name: str, hub: str, *, dim: int, depth: int, heads: int, patch: int, registers: int = 0
) -> PublishedEncoder:
    return PublishedEncoder(
        name=f"kaiko_{name}",
        hub=f"1aurent/{hub}.kaiko_ai_towards_large_pathology_fms",
        family="timm",
        dim=dim,
        depth=depth,
        heads=heads,
        patch=patch,
        registers=registers,
        normalisation=HALF,
        licence="kaiko non-commercial",
        commercial=False,
        gated_access=False,
    )


def _hibou(
    name: str, hub: str, *, dim: int, depth: int, heads: int, gated_access: bool
) -> PublishedEncoder:
    return PublishedEncoder(
        name=name,
        hub=hub,
        family="dinov2",
        dim=dim,
        depth=depth,
        heads=heads,
        patch=14,
        gated=True,
        registers=4,
        normalisation=HIBOU,
        licence="Apache-2.0",
        commercial=True,
        gated_access=gated_access,
    )


def _dinov2(size: str, *, dim: int, depth: int, heads: int, registers: bool) -> PublishedEncoder:
    suffix = "-with-registers" if registers else ""
    return PublishedEncoder(
        name=f"dinov2_{size}" + ("_registers" if registers else ""),
        hub=f"facebook/dinov2{suffix}-{size}",
        family="dinov2",
        dim=dim,
        depth=depth,
        heads=heads,
        patch=14,
        gated=size == "giant",
        registers=4 if registers else 0,
        antialias=registers,
        licence="Apache-2.0",
        commercial=True,
        gated_access=False,
    )


def _dinov3(size: str, *, dim: int, depth: int, heads: int) -> PublishedEncoder:
    return PublishedEncoder(
        name=f"dinov3_{size}",
        hub=f"facebook/dinov3-{size}-pretrain-lvd1689m",
        family="dinov3",
        dim=dim,
        depth=depth,
        heads=heads,
        patch=16,
        gated=size == "vith16plus",
        registers=4,
        epsilon=1e-5,
        rope=100.0,
        licence="DINOv3 License",
        commercial=True,
        gated_access=True,
    )


_ROWS: Final = (
    PublishedEncoder(
        name="uni",
        hub="MahmoodLab/UNI",
        family="timm",
        dim=1024,
        depth=24,
        heads=16,
        patch=16,
        licence=NON_COMMERCIAL,
        commercial=False,
        gated_access=True,
    ),
    PublishedEncoder(
        name="uni2_h",
        hub="MahmoodLab/UNI2-h",
        family="timm",
        dim=1536,
        depth=24,
        heads=24,
        patch=14,
        gated=True,
        registers=8,
        licence=NON_COMMERCIAL,
        commercial=False,
        gated_access=True,
    ),
    _virchow("virchow", "paige-ai/Virchow", registers=0, licence="Apache-2.0", commercial=True),
    _virchow(
        "virchow2", "paige-ai/Virchow2", registers=4, licence=NON_COMMERCIAL, commercial=False
    ),
    _giant("h_optimus_0", "bioptimus/H-optimus-0", licence="Apache-2.0", commercial=True),
    _giant("h_optimus_1", "bioptimus/H-optimus-1", licence=NON_COMMERCIAL, commercial=False),
    PublishedEncoder(
        name="h0_mini",
        hub="bioptimus/H0-mini",
        family="timm",
        dim=768,
        depth=12,
        heads=12,
        patch=14,
        gated=True,
        registers=4,
        normalisation=BIOPTIMUS,
        licence=NON_COMMERCIAL,
        commercial=False,
        gated_access=True,
    ),
    PublishedEncoder(
        name="prov_gigapath",
        hub="prov-gigapath/prov-gigapath",
        family="timm",
        dim=1536,
        depth=40,
        heads=24,
        patch=16,
        gated=True,
        licence="Apache-2.0, access for non-commercial research",
        commercial=False,
        gated_access=True,
    ),
    PublishedEncoder(
        name="phikon",
        hub="owkin/phikon",
        family="vit",
        dim=768,
        depth=12,
        heads=12,
        patch=16,
        epsilon=1e-12,
        antialias=False,
        licence="Owkin non-commercial",
        commercial=False,
        gated_access=False,
    ),
    PublishedEncoder(
        name="phikon_v2",
        hub="owkin/phikon-v2",
        family="dinov2",
        dim=1024,
        depth=24,
        heads=16,
        patch=16,
        antialias=False,
        licence="Owkin non-commercial",
        commercial=False,
        gated_access=False,
    ),
    PublishedEncoder(
        name="midnight_12k",
        hub="kaiko-ai/midnight",
        family="dinov2",
        dim=1536,
        depth=40,
        heads=24,
        patch=14,
        gated=True,
        antialias=False,
        normalisation=HALF,
        pooling="cls+mean",
        licence="MIT",
        commercial=True,
        gated_access=False,
    ),
    _hibou("hibou_b", "histai/hibou-b", dim=768, depth=12, heads=12, gated_access=False),
    _hibou("hibou_l", "histai/hibou-L", dim=1024, depth=24, heads=16, gated_access=True),
    _kaiko("vits16", "vit_small_patch16_224", dim=384, depth=12, heads=6, patch=16),
    _kaiko("vits8", "vit_small_patch8_224", dim=384, depth=12, heads=6, patch=8),
    _kaiko("vitb16", "vit_base_patch16_224", dim=768, depth=12, heads=12, patch=16),
    _kaiko("vitb8", "vit_base_patch8_224", dim=768, depth=12, heads=12, patch=8),
    _kaiko(
        "vitl14",
        "vit_large_patch14_reg4_224",
        dim=1024,
        depth=24,
        heads=16,
        patch=14,
        registers=4,
    ),
    PublishedEncoder(
        name="conch_v1_5",
        hub="MahmoodLab/conchv1_5",
        family="conch",
        dim=1024,
        depth=24,
        heads=16,
        patch=16,
        spec=PatchSpec(size=448, mpp=0.5 * 512 / 448),
        pooler=768,
        licence=NON_COMMERCIAL,
        commercial=False,
        gated_access=True,
    ),
    *(
        _dinov2(size, dim=dim, depth=depth, heads=heads, registers=registers)
        for registers in (False, True)
        for size, dim, depth, heads in (
            ("small", 384, 12, 6),
            ("base", 768, 12, 12),
            ("large", 1024, 24, 16),
            ("giant", 1536, 40, 24),
        )
    ),
    _dinov3("vits16", dim=384, depth=12, heads=6),
    _dinov3("vitb16", dim=768, depth=12, heads=12),
    _dinov3("vitl16", dim=1024, depth=24, heads=16),
    _dinov3("vith16plus", dim=1280, depth=32, heads=20),
)
PUBLISHED: Final = {row.name: row for row in _ROWS}
"""By name."""
