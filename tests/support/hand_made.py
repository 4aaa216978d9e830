"""A prepared cohort made by hand: shard tables, annotations, and stored embeddings that show their
pattern; no pixels."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import safetensors.numpy
import shapely

from pipelines import addresses, cohort, shards, storage
from pipelines.annotations import PATTERNS, Region, write_regions
from pipelines.grid import PatchSpec
from training.encoder.architecture import EncoderConfig
from training.encoder.encoder import load_encoder, random_encoder, save_encoder
from training.encoder.vit import ViTConfig

SPEC = PatchSpec(size=32, mpp=2.0)
COLUMNS = 8
SEGMENTS = {
    "benign": ("benign",) * 4,
    "3+3": ("benign", "gleason_3", "gleason_3", "benign"),
    "3+4": ("gleason_3", "gleason_3", "gleason_4", "benign"),
    "4+3": ("gleason_4", "gleason_4", "gleason_3", "benign"),
    "4+4": ("benign", "gleason_4", "gleason_4", "gleason_4"),
    "5+4": ("gleason_5", "gleason_5", "gleason_4", "benign"),
}
"""Quarters of each slide by label; a slide has 12 rows of 8 patches, 3 rows a quarter."""


def make_encoder(folder: Path) -> str:
    """A tiny encoder; returns its folder."""
    config = EncoderConfig(network=ViTConfig(size=32, dim=8, depth=1, heads=1), spec=SPEC)
    save_encoder(str(folder), random_encoder(config, precision="f32"))
    return str(folder)


def make_cohort(
    folder: Path, encoder: str, labels: list[str], *, split: str = "train", **change: Any
) -> str:
    """Slides with these labels, indexed, annotated and embedded; returns the cohort's folder.

    Args:
        folder: to write to.
        encoder: that counts as having embedded them.
        labels: of the slides.
        split: of all of them.
        change: columns of the last slide's cohort row that differ.
    """
    encoder_key = load_encoder(encoder).key
    rng = np.random.default_rng(len(labels))
    centres = np.random.default_rng(0).normal(size=(len(PATTERNS), 16)) * 2
    rows = []
    for k, label in enumerate(labels):
        quarters = SEGMENTS.get(label, SEGMENTS["3+4"])
        y, x = (part.ravel().astype(np.int32) * SPEC.size for part in np.mgrid[0:12, 0:COLUMNS])
        patterns = np.repeat([PATTERNS.index(name) for name in quarters], 3 * COLUMNS)
        embeddings = centres[patterns] + rng.normal(size=(len(x), 16))
        row = _cohort_row(k, label, split, storage.join(str(folder), f"slide-{k}.geojson"))
        write_regions(row["annotation"], _regions(quarters))
        made = _shards(row, x, y)
        content = cohort.to_parquet(made)
        row["shards_sha256"] = hashlib.sha256(content).hexdigest()
        rows.append(row if k < len(labels) - 1 else {**row, **change})
        table = addresses.shard_table("test", row["slide_id"], SPEC.hash)
        storage.write_bytes(storage.join(str(folder), *table.split("/")), content)
        names = [shard.name for shard in shards.shards_of(made)]
        for shard in range(2):
            part = slice(shard * 48, shard * 48 + 48)
            address = addresses.embeddings(
                "test", row["slide_id"], SPEC.hash, encoder_key, names[shard]
            )
            arrays = {"embedding": embeddings[part].astype(np.float16), "x": x[part], "y": y[part]}
            document = safetensors.numpy.save(
                {name: np.ascontiguousarray(array) for name, array in arrays.items()}
            )
            storage.write_bytes(storage.join(str(folder), *address.split("/")), document)
    storage.write_bytes(
        storage.join(str(folder), "cohort.parquet"),
        cohort.to_parquet(pa.Table.from_pylist(rows, schema=cohort.SCHEMA)),
    )
    return str(folder)


def _cohort_row(k: int, label: str, split: str, annotation: str) -> dict[str, Any]:
    return {
        "organisation_id": "test",
        "slide_id": f"{k:064x}",
        "uri": f"file:///nowhere/slide-{k}.svs",
        "vendor": "hand",
        "staged": False,
        "icc": "",
        "case": f"case-{k}",
        "split": split,
        "label": label,
        "annotation": annotation,
        "annotation_origin": "bounds",
        "spec": json.dumps(SPEC.to_dict(), sort_keys=True),
        "mpp": SPEC.mpp,
        "width": COLUMNS * SPEC.size,
        "height": 12 * SPEC.size,
        "bounds_x": 0,
        "bounds_y": 0,
        "bounds_width": COLUMNS * SPEC.size,
        "bounds_height": 12 * SPEC.size,
        "n_patches": 12 * COLUMNS,
    }


def _regions(quarters: tuple[str, ...]) -> list[Region]:
    height = 3 * SPEC.size
    return [
        Region(
            pattern=pattern,
            outline=shapely.box(0, k * height, COLUMNS * SPEC.size, (k + 1) * height),
        )
        for k, pattern in enumerate(quarters)
    ]


def _shards(row: dict[str, Any], x: np.ndarray, y: np.ndarray) -> pa.Table:
    constant = {
        **{name: row[name] for name in ("organisation_id", "slide_id", "mpp")},
        **{
            "slide_uri": row["uri"],
            "spec_hash": SPEC.hash,
            "n_patches": 48,
            "patch_size": SPEC.size,
            "level": 0,
        },
        **{
            "downsample": 1.0,
            "read_size": SPEC.size,
            "transport": shards.PIXELS,
            "level_width": row["width"],
        },
        **{
            "level_height": row["height"],
            "tile_width": 0,
            "tile_height": 0,
            "tile": [],
            "tile_offset": [],
            "tile_length": [],
        },
        **{
            "scale": 1,
            "icc": False,
            "stain": b"",
            "tile_uri": "",
            "tile_codec": "",
            "tile_header": b"",
        },
        **{"tile_items": False, "tile_sparse": False, "tile_version": ""},
    }
    parts = (slice(0, 48), slice(48, 96))
    positions = [
        {name: array[part] for name, array in (("x", x), ("y", y), ("read_x", x), ("read_y", y))}
        for part in parts
    ]
    rows = [{**constant, "shard": k, **position} for k, position in enumerate(positions)]
    return pa.Table.from_pylist(rows, schema=shards.SCHEMA)
