"""What makes patches of unseen tissue be named right: layers, stain views, neighbours.

    python -m tests.benchmarks.patterns [--json FILE] [--quick]

Tiles: the mean over the three splits of `self_supervised`, EfficientNet-Lite0, a linear head.
`layers-last` and `layers-middle` are the last layer and the two middle blocks alone, against all
three. `stain-views` is a head that learns from two stain views too, against scanned patches only;
`...-jitter` is scored under strong stain jitter. `neighbours` is the demo's cohort: patches of the
three held-out slides read with their neighbours, against alone. All are balanced accuracies.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pipelines.annotations import UNLABELLED
from pipelines.prepare import PrepareConfig, prepare
from pipelines.synthetic.synthesise import SynthConfig, synthesise
from tests.benchmarks import harness
from tests.benchmarks.self_supervised import FOLDS, Split, corners, jittered, make_split, real_tiles
from training.encoder.encoder import Encoder, load_encoder
from training.encoder.lite0 import CONFIG, EFFICIENTNET_LITE0
from training.encoder.stain_views import stained
from training.slide.fit_slide import FitSlideConfig, fit_slide
from training.slide.labelled_slides import load_labelled_slides
from training.slide.slide_model import load_slide_model

MIDDLE = CONFIG.network.cls_dim
"""The first entries of an embedding are the middle blocks'."""


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
        ("stain-views", "views", "all"),
        ("stain-views-jitter", "views, jitter", "all, jitter"),
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
        ("all", slice(None), learnt),
        ("last", slice(MIDDLE, None), learnt),
        ("middle", slice(MIDDLE), learnt),
        ("views", slice(None), views),
    ):
        head = _head(features[:, columns], np.tile(labels, len(features) // len(labels)))
        found[name] = _balanced(truth, head.predict(seen[:, columns]))
        found[f"{name}, jitter"] = _balanced(truth, head.predict(strained[:, columns]))
    return found


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
    encoder = load_encoder(EFFICIENTNET_LITE0)
    folder, tiles, labels = real_tiles()
    count = 1 if given.quick else FOLDS
    splits = [make_split(tiles, labels, number=number) for number in range(count)]
    rows = list(tile_rows(splits, encoder))
    with tempfile.TemporaryDirectory() as scratch:
        rows.append(neighbours_row(folder, encoder, Path(scratch)))
    harness.report("patterns", rows, given, packages=("torch", "scikit-learn"))


if __name__ == "__main__":
    main()
