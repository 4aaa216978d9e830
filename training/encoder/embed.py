"""Embeddings of whole slides: computed shard by shard, stored under addresses made of content, so
that nothing is computed twice.

A stored shard is a safetensors object {embedding: float16 [N, D], x, y: int32 [N], level-0 pixels};
bf16 networks are no more precise than that. Repeating `embed_shards` computes only what is missing;
two processes that compute the same shard write the same object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import safetensors.numpy
import torch
from numpy.typing import NDArray

from pipelines import addresses, storage
from pipelines.patch_source import PATCHES_PER_TASK, read_patches
from pipelines.patches import decode_patches, fetch_shards
from pipelines.read_counts import ReadCounts
from pipelines.shards import Shard, shards_of
from training.background import Background
from training.encoder.encoder import Encoder, load_encoder, on_all_machines
from training.encoder.stain_views import stain_view
from training.errors import ModelNotFound, SpecMismatch
from training.precision import Precision, device_here

TOLERANCE = 0.03
"""Largest relative difference between a patch's resolution and the encoder's: scanners' calibration
and whole pixels.
"""


@dataclass(frozen=True, kw_only=True)
class Bag:
    """All embeddings of a slide, in the order of its shard table.

    Attributes:
        slide_id: the slide's identity.
        x: left edges in level-0 pixels, int32 [N].
        y: top edges, int32 [N].
        patch_side: side of a patch in level-0 pixels.
        embeddings: float32 [N, D].
    """

    slide_id: str
    patch_side: float
    x: NDArray[np.int32]
    y: NDArray[np.int32]
    embeddings: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """What a call computed: shards that were not in the store, and what reading them took."""

    shards: int = 0
    read: ReadCounts = field(default_factory=ReadCounts)

    def __add__(self, other: Embedded) -> Embedded:
        return Embedded(shards=self.shards + other.shards, read=self.read + other.read)


def embed_shards(
    shards: pa.Table,
    encoder: Encoder,
    root: str,
    *,
    on_shard: Callable[[int, int], None] = lambda _done, _total: None,
) -> Embedded:
    """Embed shards in this process: those that are not in the store yet.

    Args:
        shards: rows of `pipelines.shards.SCHEMA`.
        encoder: that embeds.
        root: URI of the store.
        on_shard: called with the number of shards that are done and their total.

    Returns:
        What was computed.

    Raises:
        SpecMismatch: the encoder takes other patches.
        SlideError: a slide cannot be read.
    """
    require_patches(shards, encoder)
    missing = missing_shards(shards, encoder.key, root)
    behind = len(shards) - len(missing)
    on_shard(behind, len(shards))
    read = ReadCounts()
    for done, fetched in enumerate(Background(_fetched(missing), ahead=1), start=1):
        embed_fetched(fetched, encoder, root)
        read += ReadCounts.of(fetched)
        on_shard(behind + done, len(shards))
    return Embedded(shards=len(missing), read=read)


def embed_on_ray(
    shards: pa.Table,
    encoder_uri: str,
    root: str,
    *,
    workers: int = 2,
    threads: int = 1,
    gpus: bool = False,
    view: int = 0,
    on_shard: Callable[[int, int], None] = lambda _done, _total: None,
) -> Embedded:
    """Embed shards on the cluster that this process is connected to; otherwise as `embed_shards`.

    The precision is this process's: whichever machines compute, one call makes one kind of
    embedding.

    Args:
        shards: rows of `pipelines.shards.SCHEMA`, of any number of slides.
        encoder_uri: name, folder or URI of the encoder, which all machines see.
        root: URI of the store.
        workers: processes that hold an encoder.
        threads: of torch in each of them.
        gpus: whether each of them has a GPU of its own.
        view: number of the stain view, see `stain_views.py`.
        on_shard: called with the number of shards that are done and their total.
    """
    encoder_uri, root = on_all_machines(encoder_uri), storage.as_uri(root)
    encoder = stain_view(load_encoder(encoder_uri, device=device_here()), view)
    require_patches(shards, encoder)
    missing = missing_shards(shards, encoder.key, root)
    if not len(missing):
        return Embedded()
    workers = min(workers, len(missing))
    patches = sum(missing["n_patches"].to_pylist())
    dataset = read_patches(
        missing,
        concurrency=workers,
        patches_per_task=min(PATCHES_PER_TASK, -(-patches // (4 * workers))),
    )
    dataset.context.enable_progress_bars = False
    done = dataset.map_batches(
        _EmbedWorker,
        fn_constructor_args=(encoder_uri, encoder.precision, view, root, threads),
        batch_size=1,
        batch_format="pyarrow",
        concurrency=workers,
        num_gpus=1 if gpus else None,
        zero_copy_batch=True,
    )
    embedded, behind = Embedded(), len(shards) - len(missing)
    for batch in done.iter_batches(batch_size=None):
        read = {name: int(batch[name].sum()) for name in ("requests", "fetched", "needed")}
        embedded += Embedded(shards=int(batch["shards"].sum()), read=ReadCounts(**read))
        on_shard(behind + embedded.shards, len(shards))
    return embedded


class _EmbedWorker:
    """One process with an encoder."""

    def __init__(
        self, encoder_uri: str, precision: Precision, view: int, root: str, threads: int
    ) -> None:
        torch.set_num_threads(threads)
        device = "cuda" if ray.get_gpu_ids() else "cpu"
        encoder = load_encoder(encoder_uri, device=device, precision=precision)
        self._encoder = stain_view(encoder, view)
        self._root = root

    def __call__(self, fetched: pa.Table) -> dict[str, Any]:
        embed_fetched(fetched, self._encoder, self._root)
        return {
            name: np.array([value])
            for name, value in {"shards": len(fetched), **asdict(ReadCounts.of(fetched))}.items()
        }


def embed_fetched(fetched: pa.Table, encoder: Encoder, root: str) -> None:
    """Embed shards that `fetch_shards` or `read_patches` brought, and store each."""
    for k in range(len(fetched)):
        row = fetched.slice(k, 1)
        batch = decode_patches(row)
        arrays = {
            "embedding": encoder.embed(batch["patch"]).astype(np.float16),
            "x": batch["x"],
            "y": batch["y"],
        }
        document = safetensors.numpy.save(
            {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        )
        storage.write_once(_uri(shards_of(row)[0], encoder.key, root), document)


def missing_shards(shards: pa.Table, encoder_key: str, root: str) -> pa.Table:
    """The shards that are not in the store; one listing a slide."""
    there: set[str] = set()
    wanted = [_uri(shard, encoder_key, root) for shard in shards_of(shards)]
    for folder in sorted({uri.rpartition("/")[0] for uri in wanted}):
        there.update(storage.list_uris(folder))
    return shards.filter(pa.array([uri not in there for uri in wanted], pa.bool_()))


def load_bag(shards: pa.Table, encoder_key: str, root: str) -> Bag:
    """The embeddings of one slide.

    Args:
        shards: all rows of the slide's shard table.
        encoder_key: `Encoder.key` of the encoder that embedded.
        root: URI of the store.

    Raises:
        ModelNotFound: a shard is not embedded yet, or other patches of it were.
    """
    slides = sorted(set(shards["slide_id"].to_pylist()))
    if len(slides) != 1:
        raise ValueError(f"a bag is one slide, these shards are of {len(slides)}")
    parts = []
    for shard in shards_of(shards):
        uri = _uri(shard, encoder_key, root)
        try:
            part = safetensors.numpy.load(storage.read_bytes(uri))
        except FileNotFoundError:
            raise ModelNotFound(
                f"shard {shard.shard} of slide {slides[0]} is not embedded by {encoder_key}; embed "
                "it"
            ) from None
        parts.append(part)
    return Bag(
        slide_id=slides[0],
        patch_side=shards_of(shards.slice(0, 1))[0].patch_side,
        x=np.concatenate([part["x"] for part in parts]),
        y=np.concatenate([part["y"] for part in parts]),
        embeddings=np.concatenate([part["embedding"] for part in parts]).astype(np.float32),
    )


def load_bags(shards: pa.Table, encoder_key: str, root: str) -> dict[str, Bag]:
    """The bags of all slides of a shard table, by slide, in its order."""
    slides = list(dict.fromkeys(shards["slide_id"].to_pylist()))
    return {
        slide: load_bag(shards.filter(pc.equal(shards["slide_id"], slide)), encoder_key, root)
        for slide in slides
    }


def require_patches(shards: pa.Table, encoder: Encoder) -> None:
    """Refuse shards whose patches are not those that the encoder was trained on.

    Raises:
        SpecMismatch: size or resolution differ.
    """
    wanted = encoder.spec
    for shard in shards_of(shards):
        if shard.patch_size != wanted.size or abs(shard.patch_mpp / wanted.mpp - 1.0) > TOLERANCE:
            raise SpecMismatch(
                f"patches of slide {shard.slide_id}",
                f"{shard.patch_size} px at {shard.patch_mpp:.3g} um per pixel",
                f"the encoder's {wanted.size} px at {wanted.mpp:g}",
                "prepare the slide with the encoder's PatchSpec",
            )
        if (shard.icc, bool(shard.stain)) != (wanted.icc, bool(wanted.stain)):
            raise SpecMismatch(
                f"patches of slide {shard.slide_id}",
                f"with ICC {shard.icc} and stain normalisation {bool(shard.stain)}",
                f"the encoder's {wanted.icc} and {wanted.stain or False}",
                "prepare the slide with the encoder's PatchSpec",
            )


def _fetched(shards: pa.Table) -> Iterator[pa.Table]:
    for k in range(len(shards)):
        yield fetch_shards(shards.slice(k, 1))


def _uri(shard: Shard, encoder_key: str, root: str) -> str:
    slide = (shard.organisation_id, shard.slide_id, shard.spec_hash)
    address = addresses.embeddings(*slide, encoder_key, shard.name)
    return addresses.uri(root, address)
