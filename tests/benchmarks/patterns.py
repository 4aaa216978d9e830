"""What makes patches of unseen tissue be named right: layers, stain views, neighbours.

    python -m tests.benchmarks.patterns [--json FILE] [--quick]

Tiles: the three splits of `self_supervised`, EfficientNet-Lite0, a linear head. `layers-last` and
`layers-middle` are the last layer and the two middle blocks alone, against all three.
`stain-views` is a head on the middle blocks that learns from two stain views too, against scanned
patches only; `...-jitter` is scored under strong stain jitter. `neighbours` is the demo's cohort:
patches of the three held-out slides read with their neighbours, against alone. All are balanced
accuracies. `three-or-four` is that of the same heads choosing between patterns 3 and 4 only: chance
is 0.5.

`lab-...` is cancer against benign in tiles of another laboratory and organ (PCam, lymph nodes), by
layers as above, area under the ROC curve: `lab-nodes` fitted on the prostate tiles and scored on
PCam, `lab-prostate` the other way, `lab-same` fitted on PCam and scored on other slides of it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pipelines.annotations import UNLABELLED
from pipelines.prepare import PrepareConfig, prepare
from pipelines.synthetic.synthesise import SynthConfig, synthesise
from tests.benchmarks import harness
from tests.benchmarks.self_supervised import (
    FOLDS,
    Patches,
    Split,
    corners,
    jittered,
    make_split,
    real_tiles,
)
from tests.support.shared_data import shared_data
from training.encoder.encoder import Encoder, load_encoder
from training.encoder.lite0 import CARD, CONFIG, EFFICIENTNET_LITE0, load_network
from training.encoder.stain_views import stained
from training.evaluation.tiles import read_tile, resampled
from training.slide.fit_slide import FitSlideConfig, fit_slide
from training.slide.labelled_slides import load_labelled_slides
from training.slide.slide_model import load_slide_model

MIDDLE = CONFIG.network.cls_dim
"""The first entries of a wide embedding are the middle blocks'."""
LAYERS = {"all": slice(None), "last": slice(MIDDLE, None), "middle": slice(MIDDLE)}
NODES = 800
"""Tiles of lymph nodes to learn from."""


def wide_encoder() -> Encoder:
    """EfficientNet-Lite0 that embeds with the middle blocks and the last layer."""
    return Encoder(load_network(), replace(CONFIG, pooling="cls+mean"), CARD)


def tile_rows(splits: list[Split], encoder: Encoder) -> Iterator[harness.Row]:
    found: dict[str, list[float]] = {}
    for split in splits:
        for name, score in _scores(split, encoder).items():
            found.setdefault(name, []).append(score)
    pairs = (
        ("layers-last", "last", "all"),
        ("layers-last-jitter", "last, jitter", "all, jitter"),
        ("layers-middle", "middle", "all"),
        ("layers-middle-jitter", "middle, jitter", "all, jitter"),
        ("three-or-four", "middle, 3 or 4", "all, 3 or 4"),
        ("stain-views", "views", "middle"),
        ("stain-views-jitter", "views, jitter", "middle, jitter"),
    )
    for case, ours, reference in pairs:
        named = {"reference": reference, "unit": "balanced accuracy"}
        yield harness.pairs_row(case, found[ours], found[reference], **named)


def _scores(split: Split, encoder: Encoder) -> dict[str, float]:
    train, test = corners(split.train), corners(split.test)
    labels, truth = np.repeat(split.train_labels, 4), np.repeat(split.test_labels, 4)
    learnt, seen = encoder.embed(train), encoder.embed(test)
    strained = encoder.embed(jittered(test, seed=2))
    views = np.concatenate([learnt, *(encoder.embed(stained(train, k)) for k in (1, 2))])
    found = {}
    for name, columns, features in (
        *((name, columns, learnt) for name, columns in LAYERS.items()),
        ("views", LAYERS["middle"], views),
    ):
        head = _head(features[:, columns], np.tile(labels, len(features) // len(labels)))
        found[name] = _balanced(truth, head.predict(seen[:, columns]))
        found[f"{name}, jitter"] = _balanced(truth, head.predict(strained[:, columns]))
        between = (truth == 1) | (truth == 2)
        odds = head.decision_function(seen[between][:, columns])
        found[f"{name}, 3 or 4"] = _balanced(truth[between], 1 + odds[:, 1:3].argmax(axis=1))
    return found


def laboratory_rows(
    tiles: list[Patches], labels: NDArray[np.int64], encoder: Encoder
) -> Iterator[harness.Row]:
    """Cancer in tiles of another laboratory."""
    prostate, cancer = encoder.embed(corners(tiles)), np.repeat(labels, 4) > 0
    (nodes, tumour), (others, theirs) = (_lymph_nodes(part, encoder) for part in ("train", "valid"))
    for case, learnt, truth, seen, expected in (
        ("lab-nodes", prostate, cancer, others, theirs),
        ("lab-prostate", nodes, tumour, prostate, cancer),
        ("lab-same", nodes, tumour, others, theirs),
    ):
        areas = {}
        for name, columns in LAYERS.items():
            scores = _head(learnt[:, columns], truth).decision_function(seen[:, columns])
            areas[name] = [float(roc_auc_score(expected, scores))]
        for name in ("last", "middle"):
            named = {"reference": "all", "unit": "area under the ROC curve"}
            yield harness.pairs_row(f"{case}-{name}", areas[name], areas["all"], **named)


def _lymph_nodes(part: str, encoder: Encoder) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Embeddings of PCam's tiles (96 px, 93 um), as wide as a patch, and whether they are tumour;
    equally many of both."""
    data = shared_data()
    assert data is not None
    files = [sorted((data / "tiles" / "pcam_subset" / part / kind).iterdir()) for kind in "01"]
    count = min(NODES // 2, *map(len, files))
    chosen = [kind[k * len(kind) // count] for kind in files for k in range(count)]
    patches = np.stack([resampled(read_tile(path), mpp=224 / 96, wanted=1.0) for path in chosen])
    return encoder.embed(patches), np.repeat([False, True], count)


def _head(features: NDArray[np.float32], labels: NDArray[np.int64]) -> LogisticRegression:
    head = make_pipeline(
        StandardScaler(), LogisticRegression(C=1 / 30, max_iter=1000, class_weight="balanced")
    )
    return head.fit(features, labels)


def _balanced(truth: NDArray[np.integer], named: NDArray[np.integer]) -> float:
    return float(balanced_accuracy_score(truth, named))


def neighbours_row(tiles: str, encoder: Encoder, folder: Path) -> harness.Row:
    synth = SynthConfig(
        out=str(folder / "slides"), slides=12, test_slides=3, tiles=tiles, core_length=10
    )
    cohort = str(folder / "cohort")
    prepare(PrepareConfig(manifest=synthesise(synth), out=cohort))
    model = str(folder / "model")
    fit_slide(FitSlideConfig(data=cohort, encoder=EFFICIENTNET_LITE0, out=model, stain_views=0))
    fitted = load_slide_model(model)
    ours, alone = [], []
    for slide in load_labelled_slides(cohort, encoder, split="test").slides:
        known = slide.patterns != UNLABELLED
        for scores, neighbours in ((ours, slide.neighbours), (alone, None)):
            found = fitted.predict(slide.bag.embeddings, neighbours).patch_probabilities
            named = found.argmax(axis=1)[known]
            present = np.unique(slide.patterns[known])
            recalls = [(named[slide.patterns[known] == k] == k).mean() for k in present]
            scores.append(float(np.mean(recalls)))
    named = {"reference": "alone", "unit": "balanced accuracy"}
    return harness.pairs_row("neighbours", ours, alone, **named)  # type: ignore[arg-type]


def main() -> None:
    """Run the benchmark."""
    given = harness.arguments(__doc__ or "")
    torch.set_num_threads(2)
    encoder, wide = load_encoder(EFFICIENTNET_LITE0), wide_encoder()
    folder, tiles, labels = real_tiles()
    count = 1 if given.quick else FOLDS
    splits = [make_split(tiles, labels, number=number) for number in range(count)]
    rows = [*tile_rows(splits, wide), *laboratory_rows(tiles, labels, wide)]
    with tempfile.TemporaryDirectory() as scratch:
        rows.append(neighbours_row(folder, encoder, Path(scratch)))
    harness.report("patterns", rows, given, packages=("torch", "scikit-learn"))


if __name__ == "__main__":
    main()
