"""All embeddings of a prepared cohort by one encoder: computed here or on a cluster, and handed to
other tools.

What is embedded already is not embedded again, so that a killed run loses a shard a worker. A slide
that can't be read is reported, and the others are embedded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.exceptions import RayTaskError

from pipelines import storage
from pipelines.cohort import load_cohort
from pipelines.cohort_shards import load_shards
from pipelines.ray_session import ensure_ray
from pipelines.read_counts import ReadCounts
from pipelines.slides.errors import SlideError
from training.encoder.embed import Embedded, embed_on_ray, embed_shards, load_bag
from training.encoder.encoder import load_encoder
from training.encoder.exchange import Format, file_names, write_features
from training.precision import device_here

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """What to embed.

    Attributes:
        data: the URI that `prepare` wrote to; embeddings are stored there.
        encoder: name, folder or URI of the encoder.
        split: only slides of this split; None for all.
        on_ray: on the cluster, instead of in this process.
        format: files for other tools to write in addition, None for none.
        out: folder or URI of these files.
        names: whether they are named as the slides are, instead of by slide id. Names of files can
            hold patient data.

    Raises:
        ValueError: a format without a folder to write to, or a folder without a format.
    """

    data: str
    encoder: str
    split: str | None = None
    on_ray: bool = False
    format: Format | None = None
    out: str | None = None
    names: bool = False

    def __post_init__(self) -> None:
        if (self.format is None) != (self.out is None):
            raise ValueError(
                "format and out belong together: files of a format need a folder, and a folder is "
                "written in a format"
            )


@dataclass(frozen=True, kw_only=True)
class EmbedReport:
    """What was done.

    Attributes:
        encoder: its hash.
        precision: that it computed in.
        slides: that are embedded now.
        shards: that this run embedded.
        patches: of all slides that are embedded.
        read: what reading cost.
        failed: a sentence for each slide that could not be embedded.
        files: URIs of the files for other tools.
    """

    encoder: str
    precision: str
    slides: int
    shards: int
    patches: int
    read: ReadCounts
    failed: list[str]
    files: list[str]


def embed_cohort(
    config: EmbedConfig, *, on_shard: Progress = lambda _done, _total: None
) -> EmbedReport:
    """Embed every slide of a cohort.

    Args:
        config: what to embed.
        on_shard: called with the number of shards that are done and their total.

    Raises:
        CohortError: nothing was prepared there, or the split has no slide.
        SpecMismatch: the cohort was prepared for another encoder.
        ModelNotFound, BrokenModel, WeightsUnavailable: see `load_encoder`.
        RunError: two slides have one name, and files are to be named so.
    """
    rows = load_cohort(config.data, split=config.split).to_pylist()
    names = file_names(rows, by_name=config.names) if config.out else {}
    shards = load_shards(config.data, split=config.split)
    encoder = load_encoder(config.encoder, device=device_here())
    embedded = Embedded()
    if config.on_ray:
        embedded = embed_on_cluster(shards, config.encoder, config.data, on_shard=on_shard)
    failed, files, patches, done = [], [], 0, 0
    for row, own in _by_slide(rows, shards):
        try:
            embedded += embed_shards(own, encoder, config.data)
        except SlideError as error:
            failed.append(f"{storage.object_name(row['uri'])}: {error}")
            continue
        finally:
            done += len(own)
            on_shard(done, len(shards))
        patches += row["n_patches"]
        if config.format and config.out:
            bag = load_bag(own, encoder.key, config.data)
            uri = storage.join(config.out, f"{names[row['slide_id']]}.h5")
            write_features(uri, bag, row, encoder, config.format)
            files.append(uri)
    return EmbedReport(
        encoder=encoder.hash,
        precision=encoder.precision,
        slides=len(rows) - len(failed),
        shards=embedded.shards,
        patches=patches,
        read=embedded.read,
        failed=failed,
        files=files,
    )


def embed_on_cluster(
    shards: pa.Table,
    encoder_uri: str,
    root: str,
    *,
    view: int = 0,
    on_shard: Progress = lambda _done, _total: None,
) -> Embedded:
    """Embed shards on Ray, on GPUs if the cluster has some. Slides that can't be read are left to
    the caller's own attempt.

    Args:
        shards: rows of `pipelines.shards.SCHEMA`, of any number of slides.
        encoder_uri: name, folder or URI of the encoder, which all machines see.
        root: URI of the store.
        view: number of the stain view, see `stain_views.py`.
        on_shard: called with the number of shards that are done and their total.
    """
    ensure_ray()
    gpus = int(ray.cluster_resources().get("GPU", 0))
    workers = gpus or max(1, int(ray.cluster_resources().get("CPU", 1)) // 2)
    try:
        return embed_on_ray(
            shards,
            encoder_uri,
            root,
            workers=workers,
            gpus=gpus > 0,
            view=view,
            on_shard=on_shard,
        )
    except Exception as error:
        if not _is_of_a_slide(error):
            raise
    embedded = Embedded()
    for slide_id in sorted(set(shards["slide_id"].to_pylist())):
        own = shards.filter(pc.equal(shards["slide_id"], slide_id))
        try:
            embedded += embed_on_ray(
                own, encoder_uri, root, workers=workers, gpus=gpus > 0, view=view
            )
        except Exception as error:
            if not _is_of_a_slide(error):
                raise
    return embedded


def _is_of_a_slide(error: BaseException | None) -> bool:
    """Whether a slide caused what Ray raised."""
    while error is not None:
        if isinstance(error, SlideError):
            return True
        cause = error.cause if isinstance(error, RayTaskError) else None
        error = cause if isinstance(cause, SlideError) else error.__cause__
    return False


def _by_slide(
    rows: list[dict[str, Any]], shards: pa.Table
) -> Iterator[tuple[dict[str, Any], pa.Table]]:
    for row in rows:
        yield row, shards.filter(pc.equal(shards["slide_id"], row["slide_id"]))
