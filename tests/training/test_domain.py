"""Slides unlike those fitted on: by their patches, by their colours, and how often wrongly."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipelines.fingerprint import Fingerprint
from training.slide.domain import Domain, Likeness, fit_domain

DIMENSION = 6
LOOK = Fingerprint(
    vendor="aperio",
    scanner="",
    mpp=0.5,
    glass=(),
    mean=(70.0, 20.0, -15.0),
    deviation=(9.0, 5.0, 4.0),
    haematoxylin=(),
    eosin=(),
    maxima=(),
)


def bag(rng: np.random.Generator, *, shift: float = 0.0) -> np.ndarray:
    """60 patches of a slide whose own mean varies a little."""
    slide = 0.2 * rng.normal(size=DIMENSION)
    return (rng.normal(size=(60, DIMENSION)) + slide + shift).astype(np.float32)


def look(rng: np.random.Generator) -> Fingerprint:
    mean = np.array(LOOK.mean) + 2.0 * rng.normal(size=3)
    return replace(LOOK, mean=tuple(mean.tolist()))


def domain_of(seed: int, slides: int = 40) -> Domain:
    rng = np.random.default_rng(seed)
    found = fit_domain(
        [bag(rng) for _ in range(slides)],
        [look(rng) for _ in range(slides)],
        [list(range(fold, slides, 5)) for fold in range(5)],
    )
    assert found is not None
    return found


def test_mahalanobis_distance_by_hand() -> None:
    domain = Domain.of([bag(np.random.default_rng(0))], [None])
    one = np.random.default_rng(1).normal(size=(1, DIMENSION)).astype(np.float32)
    precision = domain.whitening.T @ domain.whitening
    offset = (one - domain.centre)[0]
    expected = offset @ precision @ offset / DIMENSION
    assert domain.distances(one, None) == (pytest.approx(expected, rel=1e-4), 0.0)


def test_few_slides_like_those_of_training_are_taken_for_others() -> None:
    outside = 0
    for seed in range(10):
        domain, rng = domain_of(seed), np.random.default_rng(1000 + seed)
        outside += sum(not domain.likeness(bag(rng), look(rng)).inside for _ in range(40))
        assert domain.false_alarms == pytest.approx(2 / 41)
    assert 0.02 < outside / 400 < 0.09


def test_the_limit_of_few_slides_is_their_largest_score() -> None:
    assert domain_of(0, slides=9).false_alarms == pytest.approx(0.1)


def checked(*, shift: float = 0.0, redder: float = 0.0) -> Likeness:
    rng = np.random.default_rng(5)
    mean = (LOOK.mean[0], LOOK.mean[1] + redder, LOOK.mean[2])
    return domain_of(0).likeness(bag(rng, shift=shift), replace(LOOK, mean=mean))


def test_other_patches_are_noticed() -> None:
    found = checked(shift=2.0)
    assert not found.inside
    assert found.score > found.limit
    assert "its patches are" in found.reason
    assert "colour" not in found.reason


def test_another_stain_is_noticed() -> None:
    found = checked(redder=25.0)
    assert not found.inside
    assert "CIELAB units" in found.reason
    assert "patches are" not in found.reason


def test_a_slide_like_them_is_inside_with_or_without_fingerprint() -> None:
    assert checked().inside
    assert domain_of(0).likeness(bag(np.random.default_rng(5)), None).inside


def test_parts_give_the_same_domain_back() -> None:
    domain = domain_of(0)
    again = Domain.from_parts(domain.arrays(), domain.facts())
    assert again.facts() == domain.facts()
    rng = np.random.default_rng(3)
    unseen = bag(rng), look(rng)
    assert again.likeness(*unseen) == domain.likeness(*unseen)


def test_nothing_is_claimed_where_nothing_can_be_held_out() -> None:
    rng = np.random.default_rng(0)
    assert fit_domain([bag(rng)], [None], []) is None
