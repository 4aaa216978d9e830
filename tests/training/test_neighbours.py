"""A patch is read with its neighbours, and only with those."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from pipelines.annotations import PATTERNS
from training.encoder.embed import Bag
from training.slide.gleason import parse_label
from training.slide.held_out import choose_surroundings
from training.slide.labelled_slides import LabelledSlide
from training.slide.neighbours import Neighbours
from training.slide.slide_model import SlidePrediction

SIDE = 100.0


def _lattice(rows: int, columns: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    y, x = np.divmod(np.arange(rows * columns), columns)
    return (SIDE * x).astype(np.int32), (SIDE * y).astype(np.int32)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.8])
def test_the_mean_of_the_eight_around_a_patch_is_mixed_in(share: float) -> None:
    x, y = _lattice(5, 7)
    values = np.random.default_rng(0).random((35, 4), np.float32)
    values /= values.sum(axis=1, keepdims=True)
    grid = values.reshape(5, 7, 4)
    expected = np.empty_like(grid)
    for row in range(5):
        for column in range(7):
            window = grid[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2].reshape(-1, 4)
            around = (window.sum(axis=0) - grid[row, column]) / (len(window) - 1)
            expected[row, column] = (1 - share) * grid[row, column] + share * around
    found = Neighbours.of(x, y, SIDE).mixed(values, share)
    np.testing.assert_allclose(found, expected.reshape(-1, 4), atol=1e-6)
    np.testing.assert_allclose(found.sum(axis=1), 1.0, atol=1e-6)


def test_a_patch_without_neighbours_keeps_its_own() -> None:
    x, y = np.array([0, 1000, 1100]), np.array([0, 0, 0])
    values = np.eye(4, dtype=np.float32)[:3]
    found = Neighbours.of(x, y, SIDE).mixed(values, 1.0)
    np.testing.assert_array_equal(found, values[[0, 2, 1]])


def test_one_patch_is_a_slide() -> None:
    values = np.eye(4, dtype=np.float32)[:1]
    one = Neighbours.of(np.array([5]), np.array([7]), SIDE)
    np.testing.assert_array_equal(one.mixed(values, 0.8), values)


def _slide(patterns: npt.NDArray[np.int8]) -> LabelledSlide:
    x, y = _lattice(*patterns.shape)
    bag = Bag(
        slide_id="s",
        patch_side=SIDE,
        x=x,
        y=y,
        embeddings=np.zeros((patterns.size, 2), np.float32),
    )
    return LabelledSlide(
        name="s", case="c", score=parse_label("3+4"), bag=bag, patterns=patterns.ravel()
    )


def _noisy(slide: LabelledSlide, *, wrong: float) -> SlidePrediction:
    """Right for most patches, wrong for single ones."""
    random = np.random.default_rng(1)
    named = np.where(
        random.random(len(slide.patterns)) < wrong,
        random.integers(0, len(PATTERNS), len(slide.patterns)),
        slide.patterns,
    )
    return SlidePrediction(
        patch_probabilities=0.4 * np.eye(len(PATTERNS), dtype=np.float32)[named] + 0.15,
        attention=np.full(len(named), 1 / len(named), np.float32),
        embedding=np.zeros(2, np.float32),
        grade_group_probabilities=np.eye(6, dtype=np.float32)[2],
        cancer_probability=1.0,
    )


def test_neighbours_count_where_patterns_are_areas_and_not_where_they_alternate() -> None:
    areas = _slide(np.repeat(np.array([[1] * 10 + [2] * 10], np.int8), 20, axis=0))
    share, mixed = choose_surroundings([areas], {0: _noisy(areas, wrong=0.4)})
    assert share > 0
    right = (mixed[0].patch_probabilities.argmax(axis=1) == areas.patterns).mean()
    assert right > 0.95
    alternating = _slide((np.indices((20, 20)).sum(axis=0) % 2 + 1).astype(np.int8))
    share, _ = choose_surroundings([alternating], {0: _noisy(alternating, wrong=0.1)})
    assert share == 0.0


def test_without_labelled_patches_neighbours_do_not_count() -> None:
    slide = _slide(np.full((4, 4), 1, np.int8))
    unlabelled = replace(slide, patterns=np.full(16, -1, np.int8))
    assert choose_surroundings([unlabelled], {0: _noisy(slide, wrong=0.5)})[0] == 0.0
