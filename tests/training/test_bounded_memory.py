"""Fitting on more bags than there is memory for."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.test_fit_slide import slides_of
from training.encoder.embed import Bag
from training.slide import held_out, slide_model
from training.slide.held_out import FitConfig, fit_parts, labelled_patches
from training.slide.labelled_slides import LabelledSlide
from training.slide.mapped_rows import MappedRows
from training.slide.slide_model import AttentionConfig, fit_attention

PATCHES, DIMENSION = 3000, 64
LABELS = ("benign", "3+3", "4+4", "5+5")


def cohort(count: int) -> list[LabelledSlide]:
    """Slides whose embeddings are in a file, of one pattern each."""
    disk, rng = MappedRows(count * PATCHES, DIMENSION), np.random.default_rng(0)
    slides = []
    for k, template in enumerate(slides_of([(f"c{k}", LABELS[k % 4]) for k in range(count)])):
        values = rng.standard_normal((PATCHES, DIMENSION), np.float32) + k % 4
        x = np.arange(PATCHES, dtype=np.int32)
        bag = Bag(slide_id=f"{k}", patch_side=1.0, x=x, y=x, embeddings=disk.keep(values))
        patterns = np.full(PATCHES, k % 4, np.int8)
        slides.append(replace(template, bag=bag, patterns=patterns))
    return slides


def own_bytes() -> int:
    """Memory of this process that is not of a file."""
    [line] = [
        line for line in Path("/proc/self/status").read_text().splitlines() if "RssAnon" in line
    ]
    return 1024 * int(line.split()[1])


@contextmanager
def peak() -> Iterator[list[int]]:
    """The largest growth of own memory inside the block."""
    found, start, ended = [0], own_bytes(), threading.Event()

    def watch() -> None:
        while not ended.is_set():
            found[0] = max(found[0], own_bytes() - start)
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield found
    finally:
        ended.set()
        watcher.join()


def test_fitting_takes_a_fraction_of_what_the_bags_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_out, "MAX_HEAD_VALUES", 2**17)
    monkeypatch.setattr(slide_model, "MAX_STEP_VALUES", 2**17)
    config = AttentionConfig(hidden=8, attention=4, epochs=2, patches_per_step=32)
    fit = FitConfig(penalty=30.0, attention=config, seed=0)
    fit_parts(cohort(8), fit)  # libraries take memory of their own once
    slides = cohort(300)
    held = sum(slide.bag.embeddings.nbytes for slide in slides)
    with peak() as found:
        fit_parts(slides, fit)
    assert found[0] < held / 8


def test_the_head_learns_from_as_many_patches_of_each_pattern() -> None:
    slides = [*cohort(4), *cohort(1)]
    embeddings, patterns = labelled_patches(slides, max_values=400 * DIMENSION)
    assert np.bincount(patterns).tolist() == [100, 100, 100, 100]
    again, _ = labelled_patches(slides, max_values=400 * DIMENSION)
    np.testing.assert_array_equal(embeddings, again)
    everything, _ = labelled_patches(slides)
    assert len(everything) == 5 * PATCHES


def test_steps_in_parts_learn_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    bags = [slide.bag.embeddings[:20] for slide in cohort(8)]
    config = AttentionConfig(hidden=8, attention=4, epochs=5, dropout=0.0)
    groups = [0, 1, 4, 5] * 2
    whole = fit_attention(bags, groups, config)
    monkeypatch.setattr(slide_model, "MAX_STEP_VALUES", 1)
    parts = fit_attention(bags, groups, config)
    for bag in map(torch.from_numpy, bags):
        for one, other in zip(whole(bag), parts(bag), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_a_file_that_is_full_says_so() -> None:
    disk = MappedRows(2, 3)
    disk.keep(np.ones((2, 3), np.float32))
    with pytest.raises(ValueError, match="3 rows in a file for 2"):
        disk.keep(np.ones((1, 3), np.float32))
