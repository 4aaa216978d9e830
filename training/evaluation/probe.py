"""OPEN FIRST. What encoders know of labelled tissue, side by side: `acinus probe`.

    probe(config)
      find_tiles         a class is a folder of tiles; groups.csv says which belong together;
                         or dataset_tiles, a published set with its official split
      subjects           the encoders, each one's architecture with random weights, colour + LBP
      embed              one pass over the tiles: each subject's features, also of shifted tiles
      score              linear probe, nearest neighbours, few examples: same folds for all
      probe.json, probe.html, probe.png

Tiles are resampled to each encoder's own resolution and cut into its patches, and the embeddings of
a tile's patches are averaged. Nothing of an encoder is trained. Scores follow the protocol of eva
(kaiko-ai/eva: frozen encoder, linear head, balanced accuracy) with a penalised logistic regression
in place of its gradient descent, which on a few hundred tiles finds the same head in a second.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Final

import numpy as np
from sklearn.metrics import confusion_matrix

from pipelines import storage
from pipelines.slides.resolution import PLAUSIBLE_MPP
from pipelines.stain import METHODS
from training.encoder.architecture import EncoderConfig
from training.encoder.encoder import load_encoder, random_like
from training.encoder.lite0 import EFFICIENTNET_LITE0
from training.errors import InsufficientData
from training.evaluation.attention import Attending
from training.evaluation.baselines import COLOUR_AND_TEXTURE, colour_and_texture
from training.evaluation.datasets import dataset, dataset_tiles
from training.evaluation.figures import (
    attention_figure,
    few_shot_figure,
    neighbours_figure,
    scores_figure,
    spread,
)
from training.evaluation.page import write_page
from training.evaluation.scores import (
    SURE,
    Features,
    Folds,
    Labels,
    Model,
    Score,
    few_shots,
    forest,
    linear,
    nearest,
    predictions,
    probability_better,
    score_of,
)
from training.evaluation.stain_choice import StainChoice, choose_stain, named_views
from training.evaluation.subjects import CLEAN, SHIFTS, STAIN, Subject, TileFeatures, View
from training.evaluation.tiles import (
    UNREADABLE,
    TileFolder,
    TileSource,
    find_tiles,
    read_tile,
    tile_name,
)
from training.limits import MAX_SEED, require_range

UNGROUPED: Final = (
    "Tiles are split at random, without patient ids: tiles of one patient can be on both sides of "
    "a split, so these scores are optimistic. If an encoder was pretrained on slides that show the "
    "same tissue, it has seen these tiles without their labels."
)
GROUPED: Final = "Tiles of one group (groups.csv) are never on both sides of a split."
SCORES: Final = "Scores"
TILE_MPP: Final = 0.23
"""Micrometres per pixel of a scanner at 40x, unless something else is known."""


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """What to score.

    Attributes:
        tiles: local folder with one folder of tiles a class; or with the unpacked archive of
            `dataset`.
        encoders: names, folders or URIs.
        out: folder or URI that report, page and picture are written to.
        dataset: name of a published set; its official split takes the place of folds.
        tile_mpp: micrometres per pixel of the tiles, which image files do not carry; None for the
            published set's, or TILE_MPP.
        folds: of the stratified cross-validation.
        repeats: times the cross-validation is repeated with other folds.
        neighbours: of kNN; fewer where the tiles to learn from are fewer.
        penalty: strength of the linear probe's L2 penalty (1 / C of scikit-learn).
        shifts: whether tiles are embedded once more under other stains and at other scales.
        stains: methods of stain normalisation that each encoder is scored with, also under other
            stains; the best is named.
        slide_model: folder or URI of one that was fitted with one of the encoders: what it looks at
            is shown.
        seed: of the folds, the random weights and the bootstrap.

    Raises:
        ValueError: a value that no probe can have; names the field, the value and its range.
    """

    tiles: str
    out: str
    encoders: tuple[str, ...] = (EFFICIENTNET_LITE0,)
    dataset: str | None = None
    tile_mpp: float | None = None
    folds: int = 5
    repeats: int = 2
    neighbours: int = 20
    penalty: float = 30.0
    shifts: bool = False
    stains: tuple[str, ...] = ()
    slide_model: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.encoders or len(set(self.encoders)) < len(self.encoders):
            raise ValueError(f"encoders are {self.encoders}; give each of one or more once")
        if set(self.stains) - set(METHODS) or len(set(self.stains)) < len(self.stains):
            raise ValueError(f"stains are {self.stains}; give each of {', '.join(METHODS)} once")
        require_range("tile_mpp", self.mpp, *PLAUSIBLE_MPP, unit="micrometres per pixel")
        require_range("folds", self.folds, 2)
        require_range("repeats", self.repeats, 1)
        require_range("neighbours", self.neighbours, 1)
        require_range("penalty", self.penalty, 1e-6)
        require_range("seed", self.seed, 0, MAX_SEED - self.repeats)

    @property
    def mpp(self) -> float:
        """Micrometres per pixel of the tiles."""
        if self.tile_mpp is not None:
            return self.tile_mpp
        return TILE_MPP if self.dataset is None else dataset(self.dataset).mpp


@dataclass(frozen=True, kw_only=True)
class Shift:
    """What a shift of the tiles does to an encoder.

    Attributes:
        accuracy: balanced accuracy on shifted tiles of a linear probe that learnt from unshifted.
        cosine: mean cosine between the embeddings of a tile before and after.
    """

    accuracy: float
    cosine: float


@dataclass(frozen=True, kw_only=True)
class ProbeRow:
    """One subject's scores.

    Attributes:
        name: for people.
        encoder: as it was given; None for a baseline.
        hash: of the encoder; None for colour + LBP.
        linear: of the linear probe; of the forest for colour + LBP.
        knn: of nearest neighbours.
        shots: balanced accuracy by number of examples of each class.
        shifts: by name of the shift; empty if they were not asked for.
        confusion: of `linear`, rows are truth; sums over all repeats.
        not_better_than: baselines that this encoder does not beat; empty for a baseline.
        stain: how its slides should be prepared; None for a baseline and where it was not asked.
    """

    name: str
    encoder: str | None
    hash: str | None
    linear: Score
    knn: Score
    shots: dict[int, float]
    shifts: dict[str, Shift]
    confusion: list[list[int]]
    not_better_than: list[str] = field(default_factory=list)
    stain: StainChoice | None = None


@dataclass(frozen=True, kw_only=True)
class ProbeReport:
    """What the probe found.

    Attributes:
        rows: encoders and baselines, the highest linear score first.
        best: the encoder, as it was given, with the highest linear score.
        classes: names, in the order of the confusion matrices.
        tiles: number of tiles per class.
        groups: number of groups; None where they are not known.
        chance: balanced accuracy of guessing.
        dataset: name of the published set, None for other tiles.
        attention: of the slide model on the tiles of each class, 1 being the even share; None
            without a slide model.
        page, picture: URIs of the HTML page and of the PNG.
        failed: a sentence for each tile that could not be read; it is in no score.
        ignored: hidden files with a tile's suffix, such as the `._` files of macOS; no tiles.
        caveat: how far to trust the scores.
    """

    rows: list[ProbeRow]
    best: str
    classes: list[str]
    tiles: list[int]
    groups: int | None
    chance: float
    dataset: str | None
    attention: dict[str, float] | None
    page: str
    picture: str
    failed: list[str]
    ignored: list[str]
    caveat: str


def probe(
    config: ProbeConfig, *, on_tile: Callable[[int, int], None] = lambda _done, _total: None
) -> ProbeReport:
    """Score encoders and baselines; write `probe.json`, `probe.html` and `probe.png` to `out`.

    Args:
        config: what to score.
        on_tile: called with the number of tiles that are embedded and their total.

    Raises:
        ModelNotFound: there is no such encoder.
        InsufficientData: there are fewer than two classes, or fewer readable tiles in a class than
            folds.
        SpecMismatch: the slide model was fitted with another encoder.
    """
    subjects = _subjects(config)
    attention = Attending.of(config.slide_model, subjects) if config.slide_model else None
    tiles = _tiles(config)
    features, kept, failed = _embed(tiles, subjects, config, on_tile)
    labels = np.array(tiles.labels, np.int64)[kept]
    _require_enough(labels, tiles, kept, config, failed)
    folds = _folds(labels, tiles, kept, config)
    named = {
        subject.name: named_views(features[subject.name], folds, _head(subject, config))
        for subject in subjects
    }
    rows = sorted(
        (_row(subject, features[subject.name], named, folds, config) for subject in subjects),
        key=lambda row: -row.linear.mean,
    )
    best = next(row for row in rows if row.encoder is not None)
    assert best.encoder is not None
    looked = None
    if attention is not None:
        looked = attention.looked(features[attention.subject.name][View()], labels)
    report = ProbeReport(
        rows=rows,
        best=best.encoder,
        classes=tiles.classes,
        tiles=np.bincount(labels).tolist(),
        groups=None if tiles.groups is None else len(np.unique(folds.units)),
        chance=1.0 / len(tiles.classes),
        dataset=config.dataset,
        attention=None if looked is None else looked.by_class(tiles.classes),
        page=storage.join(config.out, "probe.html"),
        picture=storage.join(config.out, "probe.png"),
        failed=failed,
        ignored=tiles.ignored,
        caveat=_caveat(folds, tiles, config),
    )
    paths = [tiles.paths[k] for k in kept]
    figures = _figures(report, features[best.name][View()], labels, paths)
    if looked is not None:
        figures["What the slide model looks at"] = attention_figure(looked, tiles.classes, paths)
    _write(report, config, figures)
    return report


def _subjects(config: ProbeConfig) -> list[Subject]:
    """Encoders as they were given, one of random weights for each architecture, colour + LBP."""
    subjects: list[Subject] = []
    architectures: list[EncoderConfig] = []
    for given in config.encoders:
        encoder = load_encoder(given)
        subjects.append(Subject.of(encoder, given, taken=[each.name for each in subjects]))
        if encoder.config not in architectures:
            architectures.append(encoder.config)
            random = random_like(encoder, seed=config.seed)
            name = f"random weights of {subjects[-1].name}"
            subjects.append(
                Subject(name=name, embed=random.embed, spec=random.spec, batch=random.batch_size)
            )
    plain = Subject(name=COLOUR_AND_TEXTURE, embed=colour_and_texture, spec=subjects[0].spec)
    return [*subjects, plain]


def _tiles(config: ProbeConfig) -> TileFolder:
    if config.dataset is None:
        return find_tiles(config.tiles)
    return dataset_tiles(dataset(config.dataset), config.tiles)


def _caveat(folds: Folds, tiles: TileFolder, config: ProbeConfig) -> str:
    """How far to trust the scores."""
    if config.dataset is None:
        return UNGROUPED if tiles.groups is None else GROUPED
    row = dataset(config.dataset)
    return (
        f"{row.title} (licence: {row.licence}), official split: learnt from "
        f"{len(folds.learnable)} tiles, tested on {len(folds.tested)} of the {row.tested} part. "
        f"{row.apart}"
    )


def _embed(
    tiles: TileFolder,
    subjects: Sequence[Subject],
    config: ProbeConfig,
    on_tile: Callable[[int, int], None],
) -> tuple[dict[str, dict[View, Features]], list[int], list[str]]:
    """Features [N, D] by subject and view, indices of the N readable tiles, and what failed."""
    found = {
        subject.name: {
            view: TileFeatures(subject, mpp=config.mpp, view=view)
            for view in _views(subject, config)
        }
        for subject in subjects
    }
    kept, failed = [], []
    for k, path in enumerate(tiles.paths):
        try:
            tile = read_tile(path)
        except UNREADABLE as error:
            failed.append(
                f"tile {tile_name(path)} can't be read ({error}); copy it again or remove it"
            )
            continue
        finally:
            on_tile(k + 1, len(tiles.paths))
        kept.append(k)
        for each in found.values():
            for seen in each.values():
                seen.add(tile)
    arrays = {
        name: {view: seen.features() for view, seen in each.items()} for name, each in found.items()
    }
    return arrays, kept, failed


def _views(subject: Subject, config: ProbeConfig) -> list[View]:
    """How a subject sees the tiles; normalised for encoders only."""
    views = [View(shift=shift) for shift in (CLEAN, *SHIFTS) if config.shifts or shift == CLEAN]
    if config.stains and subject.given is not None:
        stains = ("", *config.stains)
        views += [View(shift=shift, stain=stain) for stain in stains for shift in (CLEAN, STAIN)]
    return list(dict.fromkeys(views))


def _folds(labels: Labels, tiles: TileFolder, kept: list[int], config: ProbeConfig) -> Folds:
    units = np.arange(len(labels))
    if tiles.groups is not None:
        groups = np.array(tiles.groups)[kept]
        units = np.unique(groups, return_inverse=True)[1]
    if tiles.train is not None:
        train = np.array(tiles.train)[kept]
        return Folds(
            labels=labels, units=units, count=1, repeats=1, seed=config.seed, official=train
        )
    count = len(np.unique(units))
    if count < config.folds:
        raise InsufficientData(
            f"{tiles.folder} has tiles of {count} groups; {config.folds} folds need that many"
        )
    return Folds(
        labels=labels, units=units, count=config.folds, repeats=config.repeats, seed=config.seed
    )


def _head(subject: Subject, config: ProbeConfig) -> Model:
    if subject.name == COLOUR_AND_TEXTURE:
        return forest(config.seed)
    return linear(config.penalty)


def _row(
    subject: Subject,
    features: dict[View, Features],
    named: dict[str, dict[View, Labels]],
    folds: Folds,
    config: ProbeConfig,
) -> ProbeRow:
    ours, clean = named[subject.name], features[View()]
    near = nearest(min(config.neighbours, _learnt_from(folds) // 2))
    baselines = [name for name in named if name.startswith("random") or name == COLOUR_AND_TEXTURE]
    beaten = {
        name: probability_better(ours[View()], named[name][View()], folds) >= SURE
        for name in baselines
        if subject.given is not None
    }
    return ProbeRow(
        name=subject.name,
        encoder=subject.given,
        hash=subject.hash,
        linear=score_of(ours[View()], folds),
        knn=score_of(predictions(clean, folds, near, [clean])[0], folds),
        shots=few_shots(clean, folds, _head(subject, config)),
        shifts={
            shift: Shift(
                accuracy=score_of(ours[View(shift=shift)], folds).mean,
                cosine=_cosine(clean, features[View(shift=shift)]),
            )
            for shift in SHIFTS
            if config.shifts
        },
        confusion=_confusion(ours[View()], folds),
        not_better_than=[name for name, beats in beaten.items() if not beats],
        stain=choose_stain(ours, config.stains, folds)
        if config.stains and subject.given is not None
        else None,
    )


def _confusion(predicted: Labels, folds: Folds) -> list[list[int]]:
    """Rows are truth; sums over the repeats of predictions [repeats, N]."""
    named = predicted[:, folds.tested]
    truth = np.broadcast_to(folds.labels[folds.tested], named.shape)
    counts: list[list[int]] = confusion_matrix(truth.ravel(), named.ravel()).tolist()
    return counts


def _learnt_from(folds: Folds) -> int:
    """The fewest tiles that a fold learns from."""
    return min(len(train) for _, train, _ in folds.splits())


def _cosine(first: Features, second: Features) -> float:
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return float(np.mean((first * second).sum(axis=1) / np.maximum(norms, 1e-12)))


def _require_enough(
    labels: Labels, tiles: TileFolder, kept: list[int], config: ProbeConfig, failed: Sequence[str]
) -> None:
    """Refuse tiles that can't be divided; names those of each class and those that failed."""
    parts = {"": np.ones(len(labels), bool)}
    needed = f"two classes of at least {config.folds} tiles, one for each fold"
    least = {"": config.folds}
    if tiles.train is not None:
        learnt = np.array(tiles.train, bool)[kept]
        parts = {"to learn from: ": learnt, "to test on: ": ~learnt}
        needed = "two tiles of each class to learn from and one to test on"
        least = dict(zip(parts, (2, 1), strict=True))
    counts = {
        part: np.bincount(labels[inside], minlength=len(tiles.classes)).tolist()
        for part, inside in parts.items()
    }
    if len(tiles.classes) >= 2 and all(min(counts[part]) >= least[part] for part in parts):
        return
    found = "; ".join(
        part
        + (", ".join(f"{name} {n}" for name, n in zip(tiles.classes, each, strict=True)) or "none")
        for part, each in counts.items()
    )
    found += "".join(f"; {sentence}" for sentence in failed)
    raise InsufficientData(f"{tiles.folder} has these tiles: {found}; needed are {needed}")


def _figures(
    report: ProbeReport, features: Features, labels: Labels, paths: Sequence[TileSource]
) -> dict[str, bytes]:
    """Pictures by title; features [N, D] are the best encoder's."""
    best = next(row.name for row in report.rows if row.encoder == report.best)
    return {
        SCORES: scores_figure(report),
        "Few examples of each class": few_shot_figure(report),
        f"Embeddings of {best}": spread(features, labels, report.classes),
        f"Nearest tiles by {best}": neighbours_figure(features, labels, report.classes, paths),
    }


def _write(report: ProbeReport, config: ProbeConfig, figures: Mapping[str, bytes]) -> None:
    """The report as JSON, HTML and PNG."""
    storage.write_bytes(report.picture, figures[SCORES])
    storage.write_bytes(report.page, write_page(report, figures).encode())
    storage.write_bytes(
        storage.join(config.out, "probe.json"), json.dumps(asdict(report), indent=1).encode()
    )
