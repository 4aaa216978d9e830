"""Whether self-supervised training helps: EfficientNet-Lite0 goes on learning from context.

    python -m tests.benchmarks.self_supervised [--json FILE] [--quick]

For each of three splits of the real tiles (a third of each class held out: a run of them in the
order of their names, in which tiles of one patient are likely to be neighbours), the recipe
`context` learns from the training part without labels, on one thread. Encoders along the way are
kept in `.bench/self_supervised` and not trained again. They are scored as baselines are: logistic
regression on patches of the training part, each as scanned and once with strong stain jitter;
balanced accuracy on patches of the held-out part, as scanned and with strong jitter. Tiles have no
patient ids, so the scores are optimistic for every row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pipelines.synthetic.synthesise import SynthConfig, tile_pool
from tests.benchmarks import harness
from tests.support.shared_data import shared_data
from training.encoder.architecture import EncoderConfig
from training.encoder.encoder import Encoder, load_encoder, random_like, save_encoder
from training.evaluation.baselines import colour_and_texture
from training.evaluation.tiles import resampled
from training.pictures import png
from training.pretrain.context.learner import ContextLearner
from training.pretrain.method import LearnerConfig
from training.pretrain.methods import method_of
from training.pretrain.recipes import context
from training.stain_augment import StainJitter, jitter_stains

FOLDER: Final = Path(".bench/self_supervised")
FOLDS: Final = 3
STRONG: Final = StainJitter(probability=1.0, amount=0.4, background=0.1)
TILE_MPP: Final = 0.23

Patches = NDArray[np.uint8]
Features = Callable[[Patches], NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class Split:
    """Tiles at 0.5 um: uint8 [345, 345, 3] each, with their class; `number` names the split."""

    number: int
    train: list[Patches]
    train_labels: NDArray[np.int64]
    test: list[Patches]
    test_labels: NDArray[np.int64]


def make_split(tiles: list[Patches], labels: NDArray[np.int64], *, number: int) -> Split:
    """Hold out the `number`-th of FOLDS runs of each class's tiles, in the order of their names."""
    held_out = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        held_out[np.array_split(members, FOLDS)[number]] = True
    return Split(
        number=number,
        train=[tiles[k] for k in np.flatnonzero(~held_out)],
        train_labels=labels[~held_out],
        test=[tiles[k] for k in np.flatnonzero(held_out)],
        test_labels=labels[held_out],
    )


def trained(split: Split, steps: int, *, every: int) -> Iterator[tuple[int, str]]:
    """Train on a split; yields steps and the folder of each encoder along the way."""
    recipe = replace(context(), steps=steps)
    kept = list(range(every, steps + 1, every))
    uris = {
        step: str(FOLDER / f"split-{split.number}-of-{steps}" / f"step-{step}") for step in kept
    }
    if not all((Path(uri) / "card.json").exists() for uri in uris.values()):
        learner = ContextLearner(LearnerConfig(recipe=recipe, seed=split.number))
        start = load_encoder(learner.method.teacher, precision="f32")
        random = np.random.default_rng(split.number)
        for step in range(1, steps + 1):
            batch = np.stack(
                [
                    split.train[k]
                    for k in random.integers(len(split.train), size=recipe.patches_per_step)
                ]
            )
            learner.step(torch.from_numpy(batch))
            if step in uris:
                network = method_of(recipe).network(recipe, learner.shared_state())
                config = EncoderConfig(
                    network=recipe.network, spec=start.spec, pooling=recipe.pooling
                )
                card = {"name": f"context, {step} steps"}
                save_encoder(uris[step], Encoder(network, config, card, precision="f32"))
    yield from uris.items()


def corners(tiles: list[Patches], size: int = 224) -> Patches:
    """The four corner patches of each tile."""
    ends = [(slice(size), slice(-size, None))] * 2
    return np.stack([tile[y, x] for tile in tiles for y in ends[0] for x in ends[1]])


def jittered(patches: Patches, *, seed: int) -> Patches:
    """Patches under other stains."""
    views = torch.from_numpy(patches).permute(0, 3, 1, 2).float() / 255.0
    generator = torch.Generator().manual_seed(seed)
    parts = [jitter_stains(part, STRONG, generator) for part in views.split(64)]
    return (255.0 * torch.cat(parts)).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def score(features: Features, split: Split, *, forest: bool = False) -> tuple[float, float]:
    """Balanced accuracy on held-out patches: as scanned, and with strong stain jitter."""
    train, test = corners(split.train), corners(split.test)
    learnt = np.concatenate([features(train), features(jittered(train, seed=1))])
    model = (
        RandomForestClassifier(100, class_weight="balanced", random_state=0)
        if forest
        else make_pipeline(
            StandardScaler(), LogisticRegression(C=0.01, max_iter=1000, class_weight="balanced")
        )
    )
    model.fit(learnt, np.tile(np.repeat(split.train_labels, 4), 2))
    truth = np.repeat(split.test_labels, 4)
    scanned, strained = (
        balanced_accuracy_score(truth, model.predict(features(patches)))
        for patches in (test, jittered(test, seed=2))
    )
    return float(scanned), float(strained)


def curve(split: Split, *, steps: int, every: int) -> dict[str, tuple[float, float]]:
    """Scores of baselines, start and encoders along the way."""
    start = load_encoder(context_teacher(), precision="f32")
    found = {
        "colour + LBP": score(colour_and_texture, split, forest=True),
        "random weights": score(random_like(start, seed=0).embed, split),
        "0": score(start.embed, split),
    }
    for step, uri in trained(split, steps, every=every):
        found[str(step)] = score(load_encoder(uri, precision="f32").embed, split)
        print(f"split {split.number}, {step} steps: {found[str(step)]}", flush=True)
    return found


def context_teacher() -> str:
    """Name of the encoder that training starts from."""
    return context().method.teacher  # type: ignore[union-attr]


def draw(curves: list[dict[str, tuple[float, float]]]) -> bytes:
    """PNG: balanced accuracy over steps, with the baselines as lines."""
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    steps = [name for name in curves[0] if name.isdigit()]
    for k, (axes, title) in enumerate(
        zip(panels, ("as scanned", "under strong stain jitter"), strict=True)
    ):
        values = np.array([[found[step][k] for step in steps] for found in curves])
        for row in values:
            axes.plot([int(step) for step in steps], row, color="#1f5f99", alpha=0.3)
        axes.plot([int(step) for step in steps], values.mean(axis=0), color="#1f5f99", marker="o")
        for name, colour in (("colour + LBP", "#c0504d"), ("random weights", "#7f7f7f")):
            mean = np.mean([found[name][k] for found in curves])
            axes.axhline(mean, color=colour, linestyle="--", label=name)
        axes.set_title(title)
        axes.set_xlabel("steps of learning from context (0: ImageNet's weights)")
    panels[0].set_ylabel("balanced accuracy on held-out tiles' patches")
    panels[0].legend()
    return png(figure)


def real_tiles() -> tuple[str, list[Patches], NDArray[np.int64]]:
    """The folder of the real tiles, the tiles at 0.5 um, and their classes; of each class first the
    demo's training part, then the rest, both in the order of their names.
    """
    data = shared_data()
    if data is None:
        raise SystemExit("this benchmark needs the real tiles: set ACINUS_SHARED_DATA")
    folder = str(data / "tiles" / "gleason_arvaniti")
    config = SynthConfig(out="unused", tiles=folder)
    tiles, labels = [], []
    for pool in (tile_pool(config, split) for split in ("train", "test")):
        for label, pattern in enumerate(pool):
            tiles += [resampled(tile, mpp=TILE_MPP, wanted=0.5) for tile in pool[pattern]]
            labels += [label] * len(pool[pattern])
    return folder, tiles, np.array(labels)


def main() -> None:
    """Run the benchmark."""
    given = harness.arguments(__doc__ or "")
    torch.set_num_threads(1)
    _, tiles, labels = real_tiles()
    splits, steps, every = (1, 20, 10) if given.quick else (3, 120, 40)
    make = partial(make_split, tiles, labels)
    curves = [curve(make(number=number), steps=steps, every=every) for number in range(splits)]
    (FOLDER / "curve.png").write_bytes(draw(curves))
    rows = []
    for name in curves[0]:
        for k, kind in enumerate(("scanned", "jitter")):
            ours, start = ([found[which][k] for found in curves] for which in (name, "0"))
            named = {"reference": "start", "unit": "balanced accuracy"}
            rows.append(harness.pairs_row(f"{name}, {kind}", ours, start, **named))
    harness.report("self_supervised", rows, given, packages=("torch", "scikit-learn"))


if __name__ == "__main__":
    main()
