"""How much an encoder knows of labelled tissue: kNN and a linear probe, next to random weights.

Both encoders are scored on the same folds. A class is a folder of tiles. Tiles are resampled to the
encoder's resolution, cut into the encoder's patches, and the embeddings of a tile's patches are
averaged. Nothing of the encoder is trained.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, confusion_matrix
from sklearn.model_selection import StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pipelines import storage
from pipelines.slides.resolution import PLAUSIBLE_MPP
from training.encoder.encoder import Encoder, load_encoder, random_like
from training.errors import InsufficientData
from training.limits import MAX_SEED, require_range

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff"})
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
"""What Pillow raises for a file that is not an image, cut or absurdly large."""

CAVEAT = (
    "Tiles are split at random, without patient ids: tiles of one patient can be on both sides of "
    "a split, so these scores are "
    "optimistic. If the encoder was pretrained on slides that show the same tissue, it has seen "
    "these tiles without their labels."
)


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """What to score.

    Attributes:
        tiles: local folder with one folder of tiles a class.
        encoder: folder or URI of the encoder.
        out: folder or URI that report and picture are written to.
        tile_mpp: micrometres per pixel of the tiles, which image files do not carry.
        folds: of the stratified cross-validation.
        repeats: times the cross-validation is repeated with other folds.
        neighbours: of kNN.
        penalty: strength of the linear probe's L2 penalty (1 / C of scikit-learn).
        seed: of the folds and of the random weights.

    Raises:
        ValueError: a value that no probe can have; names the field, the value and its range.
    """

    tiles: str
    encoder: str
    out: str
    tile_mpp: float = 0.23
    folds: int = 5
    repeats: int = 2
    neighbours: int = 5
    penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        require_range("tile_mpp", self.tile_mpp, *PLAUSIBLE_MPP, unit="micrometres per pixel")
        require_range("folds", self.folds, 2)
        require_range("repeats", self.repeats, 1)
        require_range("neighbours", self.neighbours, 1)
        require_range("penalty", self.penalty, 1e-6)
        require_range("seed", self.seed, 0, MAX_SEED - self.repeats)


@dataclass(frozen=True, kw_only=True)
class Score:
    """Balanced accuracy over folds.

    Attributes:
        mean: over all folds.
        spread: standard deviation over folds.
        folds: each fold's.
    """

    mean: float
    spread: float
    folds: list[float]

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.spread:.3f}"


@dataclass(frozen=True, kw_only=True)
class ProbeReport:
    """What the probe found.

    Attributes:
        encoder: hash of the encoder.
        classes: names, in the order of the confusion matrices.
        tiles: number of tiles per class.
        linear, knn: of the encoder.
        random_linear, random_knn: of the same network with random weights, on the same folds.
        chance: balanced accuracy of guessing.
        confusion: of the linear probe, rows are truth; sums over all folds.
        picture: URI of the PNG.
        failed: a sentence for each tile that could not be read; it is in no score.
        ignored: hidden files with a tile's suffix, such as the `._` files of macOS; no tiles.
        caveat: how far to trust the scores.
    """

    encoder: str
    classes: list[str]
    tiles: list[int]
    linear: Score
    knn: Score
    random_linear: Score
    random_knn: Score
    chance: float
    confusion: list[list[int]]
    picture: str
    failed: list[str]
    ignored: list[str]
    caveat: str = CAVEAT


Tile = NDArray[np.uint8]


def probe(
    config: ProbeConfig, *, on_tile: Callable[[int, int], None] = lambda _done, _total: None
) -> ProbeReport:
    """Score an encoder, write `probe.json` and `probe.png` to `out`.

    Args:
        config: what to score.
        on_tile: called with the number of tiles that are embedded and their total.

    Raises:
        ModelNotFound: there is no encoder.
        InsufficientData: there are fewer than two classes, or fewer readable tiles in a class than
            folds.
    """
    encoder = load_encoder(config.encoder)
    baseline = random_like(encoder, seed=config.seed)
    tiles = find_tiles(config.tiles)
    ours, theirs, labels, failed = _embed_tiles(tiles, config, encoder, baseline, on_tile)
    classes = tiles.classes
    require_enough(labels, tiles, config, failed)
    linear, predicted = _score(ours, labels, config, _linear)
    uri = storage.join(config.out, "probe.png")
    report = ProbeReport(
        encoder=encoder.hash,
        classes=classes,
        tiles=np.bincount(labels).tolist(),
        linear=linear,
        knn=_score(ours, labels, config, _knn)[0],
        random_linear=_score(theirs, labels, config, _linear)[0],
        random_knn=_score(theirs, labels, config, _knn)[0],
        chance=1.0 / len(classes),
        confusion=confusion_matrix(np.tile(labels, config.repeats), predicted.ravel()).tolist(),
        picture=uri,
        failed=failed,
        ignored=tiles.ignored,
    )
    storage.write_bytes(uri, picture(report))
    storage.write_bytes(
        storage.join(config.out, "probe.json"), json.dumps(asdict(report), indent=1).encode()
    )
    return report


@dataclass(frozen=True, kw_only=True)
class TileFolder:
    """A folder with one folder of tiles for each class, in a fixed order.

    Attributes:
        folder: as it was given.
        paths: of the tiles.
        labels: index into `classes` of each tile.
        classes: names of the folders that hold tiles.
        ignored: hidden files with a tile's suffix.
    """

    folder: str
    paths: list[Path]
    labels: list[int]
    classes: list[str]
    ignored: list[str]


def find_tiles(folder: str) -> TileFolder:
    """The tiles below a local folder.

    Raises:
        InsufficientData: it is not a local folder.
    """
    root = storage.local_path(folder)
    if root is None or not root.is_dir():
        raise InsufficientData(
            f"{folder} is not a local folder; give one with a folder of tiles for each class"
        )
    paths: list[Path] = []
    labels: list[int] = []
    classes: list[str] = []
    ignored: list[str] = []
    for kind in sorted(path for path in root.iterdir() if path.is_dir()):
        files = sorted(path for path in kind.iterdir() if path.suffix.lower() in SUFFIXES)
        ignored += [_name(path) for path in files if path.name.startswith(".")]
        if found := [path for path in files if not path.name.startswith(".")]:
            labels += [len(classes)] * len(found)
            classes.append(kind.name)
            paths += found
    return TileFolder(folder=folder, paths=paths, labels=labels, classes=classes, ignored=ignored)


def _embed_tiles(
    tiles: TileFolder,
    config: ProbeConfig,
    encoder: Encoder,
    baseline: Encoder,
    on_tile: Callable[[int, int], None],
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64], list[str]]:
    """Embeddings of the readable tiles by both encoders, their labels, and what failed."""
    ours, theirs, labels, failed = [], [], [], []
    for done, (path, label) in enumerate(zip(tiles.paths, tiles.labels, strict=True), start=1):
        try:
            tile = read_tile(path, mpp=config.tile_mpp, wanted=encoder.spec.mpp)
        except UNREADABLE as error:
            failed.append(f"tile {_name(path)} can't be read ({error}); copy it again or remove it")
            continue
        finally:
            on_tile(done, len(tiles.paths))
        patches = cut(tile, size=encoder.spec.size)
        ours.append(encoder.embed(patches).mean(axis=0))
        theirs.append(baseline.embed(patches).mean(axis=0))
        labels.append(label)
    empty = np.zeros((0, encoder.dimension), np.float32)
    return (
        np.array(ours) if ours else empty,
        np.array(theirs) if theirs else empty,
        np.array(labels, np.int64),
        failed,
    )


def require_enough(
    labels: NDArray[np.int64], tiles: TileFolder, config: ProbeConfig, failed: Sequence[str] = ()
) -> None:
    """Refuse tiles that can't be cross-validated.

    Raises:
        InsufficientData: see `probe`; names the tiles of each class and those that failed.
    """
    counts = np.bincount(labels, minlength=len(tiles.classes)).tolist()
    named = zip(tiles.classes, counts, strict=True)
    found = ", ".join(f"{name} {count}" for name, count in named) or "none"
    found += "".join(f"; {sentence}" for sentence in failed)
    if len(counts) < 2 or min(counts) < config.folds:
        raise InsufficientData(
            f"{tiles.folder} has these tiles: {found}; "
            f"needed are two classes of at least {config.folds} tiles, one for each fold"
        )
    training = len(labels) - -(-len(labels) // config.folds)
    if training < config.neighbours:
        raise InsufficientData(
            f"{tiles.folder} has these tiles: {found}; {config.folds} folds leave {training} to "
            f"learn from, fewer than {config.neighbours} neighbours; add tiles or folds"
        )


def _name(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def read_tile(path: Path, *, mpp: float, wanted: float) -> Tile:
    """The tile at the wanted resolution, uint8 [h, w, 3]; averaged where it shrinks."""
    with Image.open(path) as image:
        pixels = image.convert("RGB")
    width, height = (max(1, round(side * mpp / wanted)) for side in pixels.size)
    size = (width, height)
    if size == pixels.size:
        return np.asarray(pixels)
    return np.asarray(
        pixels.resize(size, Image.Resampling.BOX if mpp < wanted else Image.Resampling.BICUBIC)
    )


def cut(tile: Tile, *, size: int) -> Tile:
    """Patches [N, size, size, 3] that cover the tile evenly, overlapping where they must; smaller
    tiles are mirrored outwards.
    """
    short = [max(0, size - side) for side in tile.shape[:2]]
    if any(short):
        tile = np.pad(
            tile, [(lack // 2, lack - lack // 2) for lack in short] + [(0, 0)], mode="symmetric"
        )
    top, left = (
        np.rint(np.linspace(0, side - size, max(1, -(-side // size)) if side > size else 1)).astype(
            int
        )
        for side in tile.shape[:2]
    )
    return np.stack([tile[y : y + size, x : x + size] for y in top for x in left])


def _linear(config: ProbeConfig) -> Any:
    return make_pipeline(
        StandardScaler(),
        LogisticRegression(C=1.0 / config.penalty, max_iter=2000, class_weight="balanced"),
    )


def _knn(config: ProbeConfig) -> Any:
    return make_pipeline(StandardScaler(), KNeighborsClassifier(config.neighbours, metric="cosine"))


def _folds(
    labels: NDArray[np.int64], config: ProbeConfig
) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
    """(repeat, train, test), the same for every model."""
    for repeat in range(config.repeats):
        folds = StratifiedKFold(config.folds, shuffle=True, random_state=config.seed + repeat)
        for train, test in folds.split(labels, labels):
            yield repeat, train, test


def _score(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    config: ProbeConfig,
    make: Callable[[ProbeConfig], Any],
) -> tuple[Score, NDArray[np.int64]]:
    """Score over folds, and the predictions [repeats, N]."""
    scores, predicted = [], np.zeros((config.repeats, len(labels)), np.int64)
    for repeat, train, test in _folds(labels, config):
        predicted[repeat, test] = (
            make(config).fit(features[train], labels[train]).predict(features[test])
        )
        scores.append(float(balanced_accuracy_score(labels[test], predicted[repeat, test])))
    return Score(mean=float(np.mean(scores)), spread=float(np.std(scores)), folds=scores), predicted


def picture(report: ProbeReport) -> bytes:
    """PNG: the four scores next to chance, and the linear probe's confusion matrix."""
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    bars, matrix = figure.subplots(1, 2, width_ratios=[1.0, 1.1])
    pairs = (
        ("trained", report.linear, report.knn, "#1f5f99"),
        ("random weights", report.random_linear, report.random_knn, "#b8b8b8"),
    )
    for k, (name, *scores, colour) in enumerate(pairs):
        positions = np.arange(2) + 0.38 * k - 0.19
        means, spreads = [score.mean for score in scores], [score.spread for score in scores]
        drawn = bars.bar(positions, means, 0.36, yerr=spreads, capsize=4, color=colour, label=name)
        bars.bar_label(drawn, fmt="%.2f", label_type="center", color="white" if k == 0 else "black")
    bars.axhline(report.chance, color="black", linestyle=":", label="chance")
    bars.set_xticks(np.arange(2), ["linear probe", "kNN"])
    bars.set_ylim(0, 1)
    bars.set_ylabel("balanced accuracy, mean ± sd over folds")
    bars.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=3, frameon=False)
    shares = np.array(report.confusion) / np.maximum(
        1, np.sum(report.confusion, axis=1, keepdims=True)
    )
    matrix.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(shares.shape):
        share = shares[row, column]
        matrix.text(
            column,
            row,
            f"{share:.0%}",
            ha="center",
            va="center",
            color="white" if share > 0.5 else "black",
        )
    matrix.set_xticks(range(len(report.classes)), report.classes)
    matrix.set_yticks(range(len(report.classes)), report.classes)
    matrix.set_xlabel("predicted by the linear probe")
    matrix.set_ylabel("truth")
    figure.suptitle(f"{sum(report.tiles)} tiles, same folds; optimistic: split without patient ids")
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    return stream.getvalue()
