"""Regions that someone drew on a slide, and which pattern each patch shows by them.

Regions travel as QuPath's GeoJSON: polygons in pixels of level 0, the class in `properties.classification.name`. A class is a
pattern in any spelling (`Gleason 3`, `gleason_3`); names that end in `*` are ignored, as QuPath itself does (`Region*`,
`Ignore*`), and so are objects without a class. Any other name is an error: a typing mistake must not turn a tumour into
unlabelled tissue. What no region covers is unlabelled, not benign. This module does not know what a model makes of labels.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.errors import ShapelyError
from shapely.geometry import mapping, shape

from pipelines import storage
from pipelines.slides.errors import ManifestError

PATTERNS: Final = ("benign", "gleason_3", "gleason_4", "gleason_5")
"""What a patch of prostate tissue can show, in the order of every label and every probability."""

UNLABELLED: Final = -1
"""Label of a patch that no region covers enough."""


@dataclass(frozen=True, kw_only=True)
class Region:
    """A region of one pattern.

    Attributes:
        pattern: one of PATTERNS.
        outline: polygon or multipolygon in level-0 pixels.
    """

    pattern: str
    outline: shapely.Polygon | shapely.MultiPolygon


def read_regions(uri: str) -> list[Region]:
    """Regions of a GeoJSON file (a FeatureCollection, a list of Features, or one Feature).

    Raises:
        ManifestError: the file is not there, is no GeoJSON, or holds a class that is no pattern or an outline that is no polygon.
    """
    name = storage.as_uri(uri).rsplit("/", 1)[-1]
    try:
        content = json.loads(storage.read_bytes(uri))
    except FileNotFoundError as error:
        raise ManifestError(
            name, "is not there", "correct the annotation column or leave it empty"
        ) from error
    except ValueError as error:
        raise ManifestError(
            name, f"is no GeoJSON ({error})", "export the annotations from QuPath as GeoJSON"
        ) from error
    features = content.get("features", [content]) if isinstance(content, dict) else content
    if not (
        isinstance(features, list)
        and all(isinstance(at, dict) and at.get("type") == "Feature" for at in features)
    ):
        raise ManifestError(
            name, "holds no GeoJSON features", "export the annotations from QuPath as GeoJSON"
        )
    regions = [_region(name, number, feature) for number, feature in enumerate(features, start=1)]
    return [region for region in regions if region is not None]


def write_regions(uri: str, regions: Sequence[Region]) -> None:
    """Write regions as GeoJSON that QuPath opens."""
    features = [
        {
            "type": "Feature",
            "geometry": mapping(region.outline),
            "properties": {"objectType": "annotation", "classification": {"name": region.pattern}},
        }
        for region in regions
    ]
    storage.write_bytes(
        uri, json.dumps({"type": "FeatureCollection", "features": features}, indent=1).encode()
    )


def patch_labels(
    regions: Sequence[Region],
    x: NDArray[np.integer],
    y: NDArray[np.integer],
    side: float,
    *,
    min_share: float = 0.5,
) -> NDArray[np.int8]:
    """Index into PATTERNS of each patch, or UNLABELLED.

    Args:
        regions: of the slide the patches are on.
        x: left edges of N patches in level-0 pixels.
        y: top edges.
        side: of a patch in level-0 pixels.
        min_share: a pattern labels a patch if its regions cover at least this share of it; the one that covers most does,
            the higher one if two cover the same.
    """
    patches = shapely.box(x, y, x + side, y + side)
    tree = shapely.STRtree(patches)
    covered = np.zeros((len(PATTERNS), len(patches)))
    for index, pattern in enumerate(PATTERNS):
        outlines = [region.outline for region in regions if region.pattern == pattern]
        if not outlines:
            continue
        parts = shapely.get_parts(shapely.union_all(outlines))
        part, patch = tree.query(parts, predicate="intersects")
        np.add.at(
            covered[index],
            patch,
            shapely.area(shapely.intersection(parts[part], patches[patch])) / side**2,
        )
    highest = len(PATTERNS) - 1 - covered[::-1].argmax(axis=0)
    return np.where(covered.max(axis=0) >= min_share - 1e-9, highest, UNLABELLED).astype(np.int8)


def _region(name: str, number: int, feature: dict[str, Any]) -> Region | None:
    """The region of one feature; None for what is to be ignored."""
    classification = (feature.get("properties") or {}).get("classification")
    label = classification.get("name") if isinstance(classification, dict) else classification
    if not label or str(label).endswith("*"):
        return None
    pattern = re.sub(r"[^a-z0-9]+", "_", str(label).lower()).strip("_")
    if pattern not in PATTERNS:
        remedy = f"use {', '.join(PATTERNS)}, or end the name in * to have it ignored"
        raise ManifestError(name, f"has the unknown class {label!r} in feature {number}", remedy)
    try:
        outline = shapely.make_valid(shape(feature["geometry"]))
    except (ShapelyError, KeyError, TypeError, ValueError, AttributeError) as error:
        cause = f"has an unreadable outline in feature {number} ({type(error).__name__}: {error})"
        raise ManifestError(name, cause, "export the annotations from QuPath again") from error
    areas = [
        part for part in shapely.get_parts(outline) if part.geom_type in {"Polygon", "MultiPolygon"}
    ]
    if not areas:
        raise ManifestError(
            name,
            f"has a {outline.geom_type} where an area is needed in feature {number}",
            "draw a polygon, or end its class in *",
        )
    return Region(pattern=pattern, outline=shapely.union_all(areas))
