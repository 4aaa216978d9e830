"""Stain normalisation against plain float64 oracles of the papers and against torchstain."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from torchstain.numpy.normalizers import NumpyMacenkoNormalizer

from pipelines.grid import PatchSpec, patch_grid
from pipelines.slides.errors import NoTissue
from pipelines.slides.geometry import Point, Size
from pipelines.slides.opening import open_slide
from pipelines.stain import (
    SAMPLED_PATCHES,
    MacenkoFit,
    ReinhardFit,
    StainFit,
    UnfitStain,
    fit_slide_stain,
    fit_stain,
    sample_patches,
)
from pipelines.synthetic.tissue import generate_tile
from pipelines.tissue import tissue_mask
from tests.support.shared_data import needs_shared_data, shared_data

FITS: dict[str, StainFit] = {
    "macenko": MacenkoFit(
        haematoxylin=(0.61, 0.74, 0.28), eosin=(0.2, 0.96, 0.2), maxima=(2.1, 1.15)
    ),
    "reinhard": ReinhardFit(
        mean=(8.797, -0.207, 0.0446), deviation=(0.494, 0.1404, 0.0346), glass=(238.0, 241.0, 235.0)
    ),
}


def macenko_oracle(pixels: NDArray[np.uint8], fit: MacenkoFit) -> NDArray[np.float64]:
    """Macenko 2009, sections 2 to 4: concentrations by least squares, the target's colours."""
    density = -np.log((pixels.astype(float) + 1) / 240)
    stains = np.array([fit.haematoxylin, fit.eosin])
    concentrations = np.linalg.lstsq(stains.T, density.T, rcond=None)[0].T
    scaled = concentrations / fit.maxima * (1.9705, 1.0308)
    return np.asarray(240 * np.exp(-scaled @ [[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]]))


def reinhard_oracle(pixels: NDArray[np.uint8], fit: ReinhardFit) -> NDArray[np.float64]:
    """Reinhard 2001, equations 4, 6, 10, 11, 8 and 9, with the cones at least 1 of 255; glass stays
    as it is."""
    cones = np.array([[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]])
    long, medium, short = np.log(np.maximum(cones @ pixels.astype(float).T, 1))
    lab = [
        (long + medium + short) / 3**0.5,
        (long + medium - 2 * short) / 6**0.5,
        (long - medium) / 2**0.5,
    ]
    mean, deviation = (8.74108109, -0.12440419, 0.0444982), (0.6135447, 0.10989545, 0.0286032)
    light, alpha, beta = (
        (lab[k] - fit.mean[k]) / fit.deviation[k] * deviation[k] + mean[k] for k in range(3)
    )
    light, alpha, beta = light / 3**0.5, alpha / 6**0.5, beta / 2**0.5
    changed = np.exp([light + alpha + beta, light + alpha - beta, light - 2 * alpha])
    absorbed = np.maximum(np.log(np.array(fit.glass) / np.maximum(pixels, 1)), 0).sum(
        axis=1, keepdims=True
    )
    share = np.clip((absorbed - 0.12) / 0.12, 0, 1)
    return np.asarray(share * (np.linalg.inv(cones) @ changed).T + (1 - share) * pixels)


def oracle(pixels: NDArray[np.uint8], fit: StainFit) -> NDArray[np.int64]:
    found = (
        macenko_oracle(pixels, fit) if isinstance(fit, MacenkoFit) else reinhard_oracle(pixels, fit)
    )  # type: ignore[arg-type]
    return np.clip(np.rint(found), 0, 255).astype(np.int64)


@pytest.mark.parametrize("method", FITS)
def test_every_colour_is_within_a_level_of_the_oracle(method: str) -> None:
    """Every eighth red with every green and blue, 2.1 million colours: off by a level at most, and
    only where rounding ties."""
    fit = FITS[method]
    levels = np.arange(256, dtype=np.uint8)
    wrong = 0
    for red in levels[::8]:
        colours = np.stack(np.meshgrid([red], levels, levels, indexing="ij"), axis=-1).reshape(
            -1, 3
        )
        normalised = fit.apply(colours.reshape(1, 256, 256, 3).copy()).reshape(-1, 3)
        off = np.abs(normalised - oracle(colours, fit))
        assert off.max() <= 1
        wrong += int((off > 0).sum())
    assert wrong / (3 * 32 * 256**2) < 1e-4


def real_tiles() -> list[NDArray[np.uint8]]:
    folder = shared_data()
    assert folder is not None
    files = sorted((folder / "tiles" / "gleason_arvaniti").rglob("*.jpg"))[::25]
    return [
        np.ascontiguousarray(np.asarray(Image.open(file).convert("RGB"))[:336, :336])
        for file in files
    ]


def test_generated_tissue_is_normalised_as_by_torchstain() -> None:
    agrees_with_torchstain(
        [
            generate_tile(name, np.random.default_rng(1), side=448)
            for name in ("benign", "gleason_4")
        ]
    )


@needs_shared_data
def test_real_tissue_is_normalised_as_by_torchstain() -> None:
    agrees_with_torchstain(real_tiles())


def agrees_with_torchstain(tiles: list[NDArray[np.uint8]]) -> None:
    assert tiles
    for tile in tiles:
        theirs = NumpyMacenkoNormalizer().normalize(tile, stains=False)[
            0
        ]  # drops the fraction, where we round
        ours = fit_stain(tile.reshape(-1, 3), method="macenko").apply(tile[None].copy())[0]
        assert np.abs(ours.astype(int) - theirs).max() <= 1


@pytest.mark.parametrize("method", FITS)
def test_a_patch_is_normalised_alike_in_any_batch_and_in_place(method: str) -> None:
    patches = np.stack(
        [
            generate_tile(name, np.random.default_rng(2), side=224)
            for name in ("benign", "gleason_3", "gleason_5")
        ]
    )
    out = np.empty_like(patches)
    assert FITS[method].apply(patches, out) is out
    alone = FITS[method].apply(patches[1:2].copy())
    np.testing.assert_array_equal(out[1], alone[0])
    assert FITS[method].apply(patches) is patches
    np.testing.assert_array_equal(patches, out)
    with pytest.raises(ValueError, match="C-contiguous"):
        FITS[method].apply(patches, np.empty((3, 448, 448, 3), np.uint8)[:, ::2, ::2])


@pytest.mark.parametrize("method", FITS)
def test_a_fit_survives_its_bytes(method: str) -> None:
    again = StainFit.from_bytes(FITS[method].to_bytes())
    assert again == FITS[method]
    assert hash(again) == hash(FITS[method])
    assert again.to_bytes() == FITS[method].to_bytes()
    assert len(again.to_bytes()) < 400


def test_known_stains_are_found_again() -> None:
    """Pixels mixed from two known stains give those stains back, whatever the solver's signs."""
    rng = np.random.default_rng(0)
    stains = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
    stains /= np.linalg.norm(stains, axis=1, keepdims=True)
    pure = rng.random((40_000, 1)) < 0.5
    amounts = np.where(pure, [1.0, 0.12], [0.12, 1.0]) * rng.uniform(0.8, 1.6, (40_000, 1))
    pixels = np.clip(np.rint(240 * np.exp(-amounts @ stains) - 1), 0, 255).astype(np.uint8)
    fit = fit_stain(pixels, method="macenko")
    assert isinstance(fit, MacenkoFit)
    ends = np.array([[1.0, 0.12], [0.12, 1.0]]) @ stains
    ends /= np.linalg.norm(ends, axis=1, keepdims=True)
    np.testing.assert_allclose([fit.haematoxylin, fit.eosin], ends, atol=0.02)


def test_normalising_moves_the_stain_to_the_target() -> None:
    """Reinhard gives tissue the target's statistics; after Macenko a fit finds its stains."""
    tile = generate_tile("gleason_4", np.random.default_rng(5), side=448)
    darker = np.clip(tile.astype(float) * (0.9, 0.8, 0.95), 0, 255).astype(np.uint8)[None]
    again = fit_stain(
        fit_stain(darker.reshape(-1, 3), method="reinhard").apply(darker.copy()).reshape(-1, 3),
        method="reinhard",
    )
    assert isinstance(again, ReinhardFit)
    np.testing.assert_allclose(again.mean, (8.741, -0.1244, 0.0445), atol=0.02)
    stained = fit_stain(darker.reshape(-1, 3), method="macenko").apply(darker.copy())
    found = fit_stain(stained.reshape(-1, 3), method="macenko")
    assert isinstance(found, MacenkoFit)
    target = np.array([[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]])
    assert np.abs(np.array([found.haematoxylin, found.eosin]) - target).max() < 0.06


def test_reinhard_leaves_glass_as_it_is_and_lets_nothing_jump() -> None:
    """Without that, stain of little spread turns glass cyan."""
    glass = (240.0, 238.0, 242.0)
    tile = generate_tile("gleason_4", np.random.default_rng(5), side=448)
    fit = fit_stain(tile.reshape(-1, 3), method="reinhard", glass=glass)
    noise = np.random.default_rng(0).normal(0, 1.5, (1, 64, 64, 3))
    empty = np.clip(np.rint(glass + noise), 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(fit.apply(empty.copy()), empty)
    fading = np.rint(np.linspace(glass, (215, 190, 214), 64)).astype(np.uint8)[None, None]
    steps = np.abs(np.diff(fit.apply(fading.copy()).astype(int), axis=2))
    assert steps.max() <= 8


@pytest.mark.parametrize("method", FITS)
def test_what_can_not_be_fitted_is_refused(method: str) -> None:
    with pytest.raises(UnfitStain):
        fit_stain(np.full((100, 3), 100, np.uint8), method=method)
    with pytest.raises(UnfitStain):
        fit_stain(np.full((20_000, 3), (180, 90, 160), np.uint8), method=method)


@pytest.mark.parametrize("method", FITS)
def test_a_slide_is_fitted_the_same_each_time(method: str, generated_slide: Path) -> None:
    fits = []
    for _ in range(2):
        with open_slide(str(generated_slide)) as slide:
            thumbnail = slide.thumbnail(512)
            tissue = tissue_mask(
                slide.name, thumbnail, mpp=slide.mpp * slide.size.width / thumbnail.shape[1]
            )
            grid = patch_grid(slide, tissue, PatchSpec(size=112, mpp=1.0))
            fits.append(fit_slide_stain(slide.name, sample_patches(slide, grid), method=method))
    assert fits[0].to_bytes() == fits[1].to_bytes()


def test_patches_are_sampled_as_they_are_read(generated_slide: Path) -> None:
    """Spread over the whole lattice, and shrunk while they are decoded if patches are."""
    with open_slide(str(generated_slide)) as slide:
        everywhere = np.ones((64, 64), bool)
        grid = patch_grid(slide, everywhere, PatchSpec(size=112, mpp=0.5))
        sampled = sample_patches(slide, grid)
        assert sampled.shape == (SAMPLED_PATCHES, grid.read_size, grid.read_size, 3)
        last = slide.read_region(
            Point(int(grid.x[-1]), int(grid.y[-1])),
            grid.level.index,
            Size(grid.read_size, grid.read_size),
        )
        np.testing.assert_array_equal(sampled[-1], last)
        shrunk = dataclasses.replace(grid, scale=2, read_size=grid.read_size // 2)
        np.testing.assert_allclose(
            sample_patches(slide, shrunk)[-1, 3, 5], last[6:8, 10:12].mean(axis=(0, 1)), atol=0.5
        )


def test_a_slide_with_too_little_tissue_is_named(generated_slide: Path) -> None:
    with open_slide(str(generated_slide)) as slide:
        grid = patch_grid(
            slide, np.ones((64, 64), bool), PatchSpec(size=112, mpp=1.0)
        )  # the first is the margin: glass
        places = ("x", "y", "read_x", "read_y", "column", "row")
        corner = dataclasses.replace(grid, **{name: getattr(grid, name)[:1] for name in places})
        with pytest.raises(NoTissue, match=r"slide-002.*macenko stain fit"):
            fit_slide_stain(slide.name, sample_patches(slide, corner), method="macenko")
