"""The heatmap: positions, colours that the colour-blind can read, legend and scale bar."""

from __future__ import annotations

import io
from itertools import combinations

import numpy as np
import pytest
from PIL import Image
from skimage.color import deltaE_ciede2000, rgb2lab

from app.reports.heatmap import COLOURS, heatmap_png, overlay, pattern_raster, scale_bar

# Machado, Oliveira & Fernandes 2009, severity 1.0, on linear RGB.
COLOUR_BLINDNESS = {
    "none": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


def one_hot(pattern: int) -> np.ndarray:
    return np.eye(4, dtype=np.float32)[[pattern]]


@pytest.mark.parametrize("kind", COLOUR_BLINDNESS)
def test_colours_stay_apart(kind: str) -> None:
    colours = np.array(COLOURS) / 255
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.array(COLOUR_BLINDNESS[kind]).T, 0, 1)
    lab = rgb2lab(
        np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055)[None]
    )[0]
    for a, b in combinations(range(4), 2):
        assert deltaE_ciede2000(lab[a], lab[b]) > 12, (a, b)
    assert lab[1, 0] > lab[2, 0] > lab[3, 0], "the higher the pattern, the darker"


def test_a_patch_is_drawn_at_its_position() -> None:
    raster = pattern_raster(
        np.array([640]), np.array([320]), one_hot(2), side=320, scale=1 / 32, shape=(40, 60)
    )
    there = np.argwhere(~np.isnan(raster[..., 0]))
    assert there.min(axis=0).tolist() == [10, 20]
    assert there.max(axis=0).tolist() == [19, 29]
    assert raster[15, 25].tolist() == [0, 0, 1, 0]


def test_overlapping_patches_are_averaged_and_neighbours_leave_no_gap() -> None:
    x, y = np.array([0, 50, 101]), np.array([0, 0, 0])
    probabilities = np.concatenate([one_hot(0), one_hot(3), one_hot(3)])
    raster = pattern_raster(x, y, probabilities, side=100, scale=0.1, shape=(10, 30))
    assert raster[0, 7].tolist() == [0.5, 0, 0, 0.5]
    assert not np.isnan(raster[:, :20]).any()
    assert np.isnan(raster[:, 21:]).all()


def test_patches_far_smaller_than_a_pixel_are_still_seen() -> None:
    raster = pattern_raster(
        np.array([100]), np.array([100]), one_hot(1), side=10, scale=0.01, shape=(5, 5)
    )
    assert (~np.isnan(raster[..., 0])).sum() == 1


def test_certainty_shows_as_opacity_and_glass_stays_pale() -> None:
    thumbnail = np.full((10, 30, 3), 240, np.uint8)
    raster = np.full((10, 30, 4), np.nan, np.float32)
    raster[:, :10] = [0.1, 0.1, 0.4, 0.4001]
    raster[:, 10:20] = [0, 0, 0, 1]
    picture = overlay(thumbnail, raster).astype(int)
    faint, strong, glass = picture[5, 5], picture[5, 15], picture[5, 25]
    target = np.array(COLOURS[3])
    assert (
        np.abs(strong - target).sum() < np.abs(faint - target).sum() < np.abs(glass - target).sum()
    )
    assert glass.min() > 230


@pytest.mark.parametrize(
    ("width_um", "bar"), [(39_999, 5_000), (40_000, 10_000), (9_000, 2_000), (500, 100)]
)
def test_scale_bar_is_round_and_fits(width_um: float, bar: float) -> None:
    assert scale_bar(width_um) == bar


def test_the_scale_bar_has_the_length_it_says() -> None:
    thumbnail = np.full((200, 1000, 3), 240, np.uint8)
    picture = Image.open(
        io.BytesIO(heatmap_png(thumbnail, np.full((200, 1000, 4), np.nan, np.float32), mpp=10.0))
    )
    assert picture.size == (1000, 264)
    rows = np.asarray(picture.convert("L"))[200:, 700:]
    assert max((row < 60).sum() for row in rows) == pytest.approx(
        2000 / 10, abs=2
    )  # 10 mm wide: a bar of 2 mm


def test_a_narrow_slide_gets_room_for_its_legend() -> None:
    picture = Image.open(
        io.BytesIO(
            heatmap_png(
                np.full((300, 100, 3), 240, np.uint8), np.zeros((300, 100, 4), np.float32), mpp=10.0
            )
        )
    )
    assert picture.size == (1000, 1333 + 64)
