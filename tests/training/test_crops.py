"""Views of patches: what they show, that they are resized without aliasing, and that a generator
decides all of it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from training.pretrain.crops import CropConfig, View, blurring, multi_crop, resampling
from training.stain_augment import (
    STAINS,
    StainJitter,
    change_density,
    jitter_stains,
    stain_change,
)

CALM = StainJitter(probability=0.0)
CONFIG = CropConfig(
    global_views=View(size=32, scale=(0.3, 1.0), count=2, blur=(1.0, 0.0)),
    local_views=View(size=16, scale=(0.05, 0.3), count=3),
)


def _patches(n: int = 4, side: int = 64) -> torch.Tensor:
    return torch.randint(
        0, 256, (n, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


def test_shapes_and_determinism() -> None:
    crops = multi_crop(_patches(), CONFIG, torch.Generator().manual_seed(3))
    again = multi_crop(_patches(), CONFIG, torch.Generator().manual_seed(3))
    other = multi_crop(_patches(), CONFIG, torch.Generator().manual_seed(4))
    assert crops.global_views.shape == (2, 4, 32, 32, 3)
    assert crops.local_views.shape == (3, 4, 16, 16, 3)
    assert torch.equal(crops.global_views, again.global_views)
    assert torch.equal(crops.local_views, again.local_views)
    assert not torch.equal(crops.global_views, other.global_views)
    assert not torch.equal(crops.global_views[0], crops.global_views[1])


def test_uint8_and_float_patches_give_the_same_views() -> None:
    one = multi_crop(_patches(), CONFIG, torch.Generator().manual_seed(0)).global_views
    two = multi_crop(_patches().float(), CONFIG, torch.Generator().manual_seed(0)).global_views
    assert torch.equal(one, two)


def test_no_small_views_are_an_empty_tensor() -> None:
    config = replace(CONFIG, local_views=replace(CONFIG.local_views, count=0))
    assert multi_crop(_patches(), config, torch.Generator()).local_views.shape == (0, 4, 16, 16, 3)


@pytest.mark.parametrize(
    ("start", "length", "size"), [(0, 64, 16), (10, 40, 32), (5, 24, 24), (8, 12, 20)]
)
def test_resampling_is_antialiased_bilinear(start: int, length: int, size: int) -> None:
    image = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    crop = image[:, :, start : start + length, start : start + length]
    expected = F.interpolate(
        crop, size=(size, size), mode="bilinear", antialias=True, align_corners=False
    )[0, 0]
    begin, extent = torch.tensor([float(start)]), torch.tensor([float(length)])
    matrix = resampling(begin, extent, torch.tensor([False]), size=size, source=64)[0]
    ours = matrix @ image[0, 0] @ matrix.T
    margin = max(
        1, round(64 / size)
    )  # at its edge our filter sees the tissue beyond the crop, the reference ends there
    inner = slice(margin, size - margin)
    torch.testing.assert_close(ours[inner, inner], expected[inner, inner], rtol=1e-4, atol=1e-4)


def test_a_flip_mirrors_the_crop() -> None:
    start, length = torch.tensor([7.0]), torch.tensor([30.0])
    plain = resampling(start, length, torch.tensor([False]), size=10, source=64)
    flipped = resampling(start, length, torch.tensor([True]), size=10, source=64)
    torch.testing.assert_close(flipped, plain.flip(1))


def test_blur_keeps_means_and_reduces_contrast() -> None:
    kernel = blurring(torch.tensor([0.0, 2.0]), 32)
    torch.testing.assert_close(kernel[0], torch.eye(32))
    torch.testing.assert_close(kernel.sum(dim=2), torch.ones(2, 32))
    noise = torch.rand(32, 32, generator=torch.Generator().manual_seed(0))
    assert (kernel[1] @ noise @ kernel[1].T).std() < 0.3 * noise.std()


def test_a_whole_patch_without_augmentation_is_one_of_its_eight_symmetries() -> None:
    config = replace(
        CONFIG,
        global_views=View(size=64, scale=(1.0, 1.0), count=6, aspect=1.0, blur=(0.0,)),
        stain=CALM,
    )
    patch = _patches(1)
    views = multi_crop(patch, config, torch.Generator().manual_seed(0)).global_views[:, 0]
    pixels = (views * torch.tensor(config.std) + torch.tensor(config.mean)) * 255.0
    symmetries = [
        torch.rot90(turned, k, (0, 1))
        for turned in (patch[0].float(), patch[0].float().transpose(0, 1))
        for k in range(4)
    ]
    matches = [
        [torch.allclose(view, symmetry, rtol=0, atol=1.1) for symmetry in symmetries]
        for view in pixels
    ]
    assert all(sum(row) == 1 for row in matches)
    assert len({row.index(True) for row in matches}) > 2


def test_crops_show_the_window_that_was_drawn() -> None:
    """A patch whose pixel values are coordinates shows how much of it a crop covers."""
    ramp = torch.arange(64.0)
    patch = (
        torch.stack(
            [ramp[:, None].expand(64, 64), ramp[None, :].expand(64, 64), torch.zeros(64, 64)],
            dim=-1,
        )[None]
        * 4.0
    )
    config = replace(
        CONFIG,
        global_views=View(size=32, scale=(0.25, 0.25), count=40, aspect=1.0, blur=(0.0,)),
        stain=CALM,
    )
    views = multi_crop(
        patch.expand(1, -1, -1, -1), config, torch.Generator().manual_seed(0)
    ).global_views[:, 0]
    pixels = (views * torch.tensor(config.std) + torch.tensor(config.mean)) * 255.0 / 4.0
    extent = pixels.amax(dim=(1, 2)) - pixels.amin(dim=(1, 2))
    torch.testing.assert_close(
        extent[:, :2], torch.full((40, 2), 31.0), rtol=0, atol=0.6
    )  # a quarter of the area: half a side
    assert pixels.amin(dim=(1, 2))[:, :2].std() > 5.0


def test_bad_scales_are_refused() -> None:
    with pytest.raises(ValueError, match="crop scale"):
        View(size=32, scale=(0.5, 0.2), count=2)


def test_stain_change_scales_each_stain_by_itself() -> None:
    stains = np.array(STAINS) / np.linalg.norm(STAINS, axis=1, keepdims=True)
    amounts = np.array([[0.6, 0.3, 0.1], [0.2, 0.9, 0.0]])
    factor, background = np.array([1.3, 0.8, 1.1]), np.array([0.02, -0.01, 0.03])
    rgb = np.exp(-(amounts @ stains))
    expected = np.exp(-((amounts * factor + background) @ stains))
    matrix, shift = stain_change(torch.tensor(factor)[None], torch.tensor(background)[None])
    views = torch.tensor(rgb.T.reshape(1, 3, 1, 2), dtype=torch.float32)
    ours = change_density(views, matrix, shift).reshape(3, 2).T.numpy()
    np.testing.assert_allclose(ours, expected, rtol=1e-4)


def test_stain_jitter_is_drawn_per_view_and_stays_in_range() -> None:
    views = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    jittered = jitter_stains(
        views,
        StainJitter(probability=1.0, amount=0.5, background=0.2),
        torch.Generator().manual_seed(0),
    )
    assert jittered.min() >= 0.0
    assert jittered.max() <= 1.0
    change = (jittered - views).flatten(1).mean(dim=1)
    assert len(set(change.tolist())) == 6
    calm = jitter_stains(views, CALM, torch.Generator().manual_seed(0))
    torch.testing.assert_close(calm, views.clamp(min=1 / 256), rtol=1e-4, atol=1e-4)


def test_grey_views_keep_their_structure_only() -> None:
    views = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    grey = jitter_stains(views, StainJitter(probability=0.0, grey=1.0), torch.Generator())
    torch.testing.assert_close(grey[:, 0], grey[:, 1])
    torch.testing.assert_close(
        grey[:, 0], views.clamp(min=1 / 256).log().mean(dim=1).exp(), rtol=1e-4, atol=1e-4
    )
