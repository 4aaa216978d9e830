"""The slide model: a bag is a set, the arithmetic is Ilse's, the fit is deterministic, and files
give the same model back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.cards import WEIGHTS
from training.errors import BrokenModel, InsufficientData, ModelNotFound, SpecMismatch
from training.slide import slide_model
from training.slide.gleason import GradingRules, area_shares
from training.slide.neighbours import Neighbours
from training.slide.pattern_head import fit_pattern_head
from training.slide.slide_model import (
    AttentionConfig,
    GatedAttention,
    SlideModel,
    fit_attention,
    group_probabilities,
    load_slide_model,
    save_slide_model,
)

SMALL = AttentionConfig(hidden=8, attention=4, epochs=40, learning_rate=1e-2)
SHARES = {
    0: (1, 0, 0, 0),
    1: (0.5, 0.5, 0, 0),
    2: (0.4, 0.4, 0.2, 0),
    3: (0.4, 0.2, 0.4, 0),
    4: (0.4, 0, 0.6, 0),
    5: (0.3, 0, 0.3, 0.4),
}
"""Patterns of a slide of each grade group."""


def slides(
    seed: int, count: int = 12, patches: int = 60, dimension: int = 16
) -> tuple[list[np.ndarray], list[np.ndarray], list[int]]:
    """Bags whose patches show their pattern, the patterns, and the grade groups."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(7).normal(size=(4, dimension)) * 1.5
    groups = [k % 6 for k in range(count)]
    patterns = [rng.choice(4, size=patches, p=SHARES[group]) for group in groups]
    bags = [
        (centres[pattern] + rng.normal(size=(patches, dimension))).astype(np.float32)
        for pattern in patterns
    ]
    return bags, patterns, groups


@pytest.fixture(scope="module")
def model() -> SlideModel:
    bags, patterns, groups = slides(0)
    return SlideModel(
        head=fit_pattern_head(np.concatenate(bags), np.concatenate(patterns)),
        attention=fit_attention(bags, groups, SMALL),
        confusion=np.full((4, 4), 0.02) + 0.92 * np.eye(4),
        rules=GradingRules(min_tumour_share=0.05, min_pattern_share=0.1),
        card={"encoder_hash": "e" * 64, "spec": {"size": 224}},
    )


def test_attention_is_that_of_the_paper_in_numpy() -> None:
    torch.manual_seed(0)
    net = GatedAttention(5, hidden=6, attention=3)
    bag = np.random.default_rng(0).normal(size=(9, 5)).astype(np.float32)
    with torch.inference_mode():
        attention, embedding, logits = (part.numpy() for part in net(torch.from_numpy(bag)))
    weights = {name: value.detach().numpy() for name, value in net.state_dict().items()}

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    hidden = np.maximum(linear("project", bag), 0)
    energy = linear(
        "attend", np.tanh(linear("content", hidden)) / (1 + np.exp(-linear("gate", hidden)))
    )[:, 0]
    softmax = np.exp(energy - energy.max()) / np.exp(energy - energy.max()).sum()
    thresholds = weights["first_threshold"] + np.append(
        0, np.log1p(np.exp(weights["gaps"])).cumsum()
    )
    np.testing.assert_allclose(attention, softmax, atol=1e-6)
    np.testing.assert_allclose(
        embedding, np.append(softmax @ hidden, hidden.mean(axis=0)), atol=1e-5
    )
    np.testing.assert_allclose(logits, linear("score", softmax @ hidden) - thresholds, atol=1e-5)


@given(st.floats(-20, 20), st.lists(st.floats(-20, 20), min_size=4, max_size=4))
def test_grade_group_probabilities_are_a_distribution_whatever_the_parameters(
    score: float, gaps: list[float]
) -> None:
    net = GatedAttention(3, hidden=2, attention=2)
    net.gaps.data = torch.tensor(gaps)
    found = group_probabilities(score - net.thresholds()).detach().numpy()
    assert found.shape == (6,)
    assert found.sum() == pytest.approx(1, abs=1e-5)
    assert (found >= -1e-6).all()


def test_grade_group_probabilities_by_hand() -> None:
    above = np.array([0.9, 0.7, 0.4, 0.3, 0.1])
    found = group_probabilities(torch.from_numpy(np.log(above / (1 - above)))).numpy()
    np.testing.assert_allclose(found, [0.1, 0.2, 0.3, 0.1, 0.2, 0.1], atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 80))
def test_the_order_of_patches_does_not_matter(model: SlideModel, seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    bag = rng.normal(size=(count, 16)).astype(np.float32)
    order = rng.permutation(count)
    one, other = model.predict(bag), model.predict(bag[order])
    np.testing.assert_allclose(one.patch_probabilities[order], other.patch_probabilities, atol=1e-6)
    np.testing.assert_allclose(one.attention[order], other.attention, atol=1e-6)
    np.testing.assert_allclose(one.embedding, other.embedding, atol=1e-5)
    assert one.cancer_probability == pytest.approx(other.cancer_probability, abs=1e-5)
    assert one.attention.sum() == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(one.patch_probabilities.sum(axis=1), 1, atol=1e-5)
    assert one.grade_group_probabilities.sum() == pytest.approx(1, abs=1e-5)


def case(seed: int, sizes: Sequence[int]) -> list[tuple[np.ndarray, Neighbours]]:
    """Slides of these numbers of patches, each in one row."""
    rng = np.random.default_rng(seed)
    return [
        (
            rng.normal(size=(size, 16)).astype(np.float32),
            Neighbours.of(np.arange(size), np.zeros(size, int), 1.0),
        )
        for size in sizes
    ]


def test_a_case_is_one_bag_of_all_its_slides(model: SlideModel) -> None:
    mixing = replace(model, surroundings=0.5, group_temperature=1.5, patch_temperature=2.0)
    slides = case(0, [30, 1, 50])
    found = mixing.predict_case(slides)
    together = mixing.predict(np.concatenate([bag for bag, _ in slides]))
    assert found.whole.attention.sum() == pytest.approx(1, abs=1e-5)
    for name in ("attention", "embedding", "grade_group_probabilities"):
        np.testing.assert_allclose(
            getattr(found.whole, name), getattr(together, name), atol=1e-5, err_msg=name
        )
    for one, slide in zip(found.slides, slides, strict=True):
        alone = mixing.predict(*slide)
        np.testing.assert_array_equal(one.embedding, alone.embedding)
        np.testing.assert_array_equal(one.patch_probabilities, alone.patch_probabilities)
        assert one.attention.sum() == pytest.approx(1, abs=1e-5)
    sizes = np.array([30, 1, 50])
    areas = sizes @ [area_shares(one.patch_probabilities) for one in found.slides] / sizes.sum()
    np.testing.assert_allclose(area_shares(found.whole.patch_probabilities), areas, atol=1e-6)


def test_the_order_of_slides_does_not_matter(model: SlideModel) -> None:
    slides = case(1, [30, 7, 50])
    found, other = model.predict_case(slides), model.predict_case(slides[::-1])
    np.testing.assert_allclose(found.whole.embedding, other.whole.embedding, atol=1e-5)
    np.testing.assert_allclose(
        found.whole.grade_group_probabilities, other.whole.grade_group_probabilities, atol=1e-5
    )
    np.testing.assert_allclose(found.whole.attention[:30], other.whole.attention[-30:], atol=1e-6)
    assert model.grade(found.whole) == model.grade(other.whole)


def test_a_case_of_one_slide_is_that_slide(model: SlideModel) -> None:
    [slide] = case(2, [40])
    found, alone = model.predict_case([slide]), model.predict(*slide)
    for name in ("patch_probabilities", "attention", "embedding", "grade_group_probabilities"):
        np.testing.assert_array_equal(getattr(found.whole, name), getattr(alone, name))
        np.testing.assert_array_equal(getattr(found.slides[0], name), getattr(alone, name))


def test_new_slides_are_graded_and_attention_goes_to_tumour(model: SlideModel) -> None:
    bags, patterns, groups = slides(1, count=18)
    found = [model.predict(bag) for bag in bags]
    assert (
        np.mean([abs(one.grade_group - group) for one, group in zip(found, groups, strict=True)])
        < 1.0
    )
    benign = [
        one.cancer_probability for one, group in zip(found, groups, strict=True) if group == 0
    ]
    cancer = [one.cancer_probability for one, group in zip(found, groups, strict=True) if group > 0]
    assert max(benign) < np.median(cancer)
    lifts = [
        one.attention[shown > 0].sum() / (shown > 0).mean()
        for one, shown in zip(found, patterns, strict=True)
        if (shown > 0).any()
    ]
    assert np.median(lifts) > 1.1
    assert (
        np.mean(
            [
                abs(model.grade(one).grade_group - group)
                for one, group in zip(found, groups, strict=True)
            ]
        )
        < 0.5
    )


def test_the_same_seed_gives_the_same_weights_and_leaves_torch_alone() -> None:
    bags, _, groups = slides(2)
    torch.manual_seed(5)
    expected = torch.rand(1).item()
    torch.manual_seed(5)
    one, same, other = (
        fit_attention(bags, groups, SMALL, seed=seed).state_dict() for seed in (3, 3, 4)
    )
    assert torch.rand(1).item() == expected
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["project.weight"], other["project.weight"])


def test_predicting_changes_nothing(model: SlideModel) -> None:
    bag = slides(3)[0][0]
    first, second = model.predict(bag), model.predict(bag)
    np.testing.assert_array_equal(first.embedding, second.embedding)
    assert not model.attention.training


def test_a_saved_model_predicts_the_same(model: SlideModel, tmp_path: Path) -> None:
    saved = save_slide_model(str(tmp_path / "model"), model)
    loaded = load_slide_model(str(tmp_path / "model"))
    bag = slides(4)[0][5]
    ours, theirs = model.predict(bag), loaded.predict(bag)
    for name in ("patch_probabilities", "attention", "embedding", "grade_group_probabilities"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    assert model.grade(ours) == loaded.grade(theirs)
    assert loaded.hash == saved.hash
    assert len(loaded.hash) == 64
    assert loaded.card["encoder_hash"] == "e" * 64
    assert save_slide_model(str(tmp_path / "again"), loaded).hash == saved.hash


def test_a_model_that_is_not_there_or_not_whole_says_so(model: SlideModel, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="there is no slide-model here"):
        load_slide_model(str(tmp_path))
    save_slide_model(str(tmp_path), model)
    weights = tmp_path / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(BrokenModel, match="its card says"):
        load_slide_model(str(tmp_path))
    weights.unlink()
    with pytest.raises(BrokenModel, match="copy the whole folder"):
        load_slide_model(str(tmp_path))


def test_bags_that_cannot_be_are_refused(model: SlideModel) -> None:
    with pytest.raises(SpecMismatch, match=r"takes \[N, 16\] against the bag is \[5, 15\]"):
        model.predict(np.zeros((5, 15), np.float32))
    with pytest.raises(ValueError, match="a bag of 0 embeddings"):
        model.predict(np.zeros((0, 16), np.float32))
    with pytest.raises(ValueError, match="all finite"):
        model.predict(np.full((3, 16), np.nan, np.float32))
    with pytest.raises(ValueError, match="a bag of 0 embeddings"):
        model.predict_case([*case(0, [3]), (np.zeros((0, 16), np.float32), None)])
    with pytest.raises(ValueError, match="a case of 0 slides"):
        model.predict_case([])


def test_slides_of_a_case_are_learnt_from_together_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if all their patches were one more slide of the highest grade group."""
    monkeypatch.setattr(slide_model, "_some_patches", lambda slides, _: torch.cat([*slides]))
    bags, _, groups = slides(5, count=6)
    exact = replace(SMALL, epochs=5, dropout=0.0)
    found = fit_attention(bags, groups, exact, cases=[[1, 5], [0, 2, 3]])
    more = [np.concatenate([bags[k] for k in case]) for case in ([1, 5], [0, 2, 3])]
    expected = fit_attention([*bags, *more], [*groups, 5, 3], exact)
    alone = fit_attention(bags, groups, exact)
    bag = torch.from_numpy(more[0])
    with torch.inference_mode():
        together, other, without = (one(bag)[2] for one in (found, expected, alone))
    assert (together - other).abs().max() < 0.2 * (together - without).abs().max()


def test_patches_of_a_case_are_drawn_from_all_its_slides() -> None:
    parts = [torch.arange(5.0)[:, None], torch.arange(5.0, 8.0)[:, None]]
    assert slide_model._some_patches(parts, 100).ravel().sort().values.tolist() == [*range(8)]
    assert len(slide_model._some_patches(parts, 6).unique()) == 6
    torch.manual_seed(0)
    drawn = slide_model._some_patches(parts[:1], 3)
    torch.manual_seed(0)
    assert drawn.ravel().tolist() == torch.randperm(5)[:3].tolist()


def test_one_grade_group_is_not_enough() -> None:
    bags, _, _ = slides(0, count=3)
    with pytest.raises(
        InsufficientData, match="two different grade groups are needed; add slides of"
    ):
        fit_attention(bags, [2, 2, 2], SMALL)
