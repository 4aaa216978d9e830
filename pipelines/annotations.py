"""Regions that someone drew on a slide, and which pattern each patch shows by them.

Regions travel as QuPath's GeoJSON: polygons in pixels of level 0, the class in
`properties.classification`. A class is a pattern in any spelling (`Gleason 3`, `gleason_3`). Of a
derived class (`gleason_4: cribriform`, or `names` since QuPath 0.4) one part must be a pattern.

Every feature of a file ends in one of three ways:

    a region    its class is a pattern
    not used    with a reason: classes that end in `*` (QuPath itself ignores `Region*` and
                `Ignore*`), no class, detections, cells and TMA cores, outlines without area
    an error    any other class, or an outline that can't be read: a typing mistake must not turn
                a tumour into unlabelled tissue

QuPath crops some slides (MIRAX, some Leica) to the area that was scanned, and exports
coordinates relative to it. That is the default here too; a manifest says otherwise in its column
`annotation_origin`. What no region covers is unlabelled, not benign. This module does not know what
a model makes of labels.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Self

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.affinity import translate
from shapely.errors import ShapelyError
from shapely.geometry import mapping, shape

from pipelines import storage
from pipelines.slides.errors import ManifestError
from pipelines.summary import by_reason

PATTERNS: Final = ("benign", "gleason_3", "gleason_4", "gleason_5")
"""What a patch of prostate tissue can show, in the order of every label and every probability."""

UNLABELLED: Final = -1
"""Label of a patch that no region covers enough."""

HEAD_BYTES = 256
"""Of a file, to tell GeoJSON from other kinds."""
_BEFORE_JSON = b" \t\r\n\0" + codecs.BOM_UTF8 + codecs.BOM_UTF16
"""White space and marks, in all encodings of JSON."""
_CORRECT_THE_COLUMN = "correct the annotation column or leave it empty"
_EXPORT = "export the annotations from QuPath as GeoJSON"


@dataclass(frozen=True, kw_only=True)
class Region:
    """A region of one pattern.

    Attributes:
        pattern: one of PATTERNS.
        outline: polygon or multipolygon in level-0 pixels.
        feature: which feature of the file it was, for people.
    """

    pattern: str
    outline: shapely.Polygon | shapely.MultiPolygon
    feature: str = ""


@dataclass(frozen=True, kw_only=True)
class UnusedFeature:
    """A feature that labels nothing.

    Attributes:
        number: its place in the file, from 1.
        feature: number and id, for people.
        reason: why, as the rest of a sentence that begins with the feature. It holds nothing that
            was typed by hand: titles and class names can name a patient.
    """

    number: int
    feature: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Annotations:
    """What a file of annotations holds: every feature is in one of the two.

    Attributes:
        regions: in pixels of level 0.
        unused: the other features.
    """

    regions: tuple[Region, ...] = ()
    unused: tuple[UnusedFeature, ...] = ()

    def shifted(self, x: int, y: int) -> Annotations:
        """The same, moved by level-0 pixels."""
        if (x, y) == (0, 0):
            return self
        moved = tuple(
            replace(region, outline=translate(region.outline, x, y)) for region in self.regions
        )
        return replace(self, regions=moved)

    @property
    def unused_by_reason(self) -> dict[str, list[int]]:
        """Numbers of the features that are not used, by reason; without their ids."""
        numbers: dict[str, list[int]] = {}
        for unused in self.unused:
            numbers.setdefault(unused.reason, []).append(unused.number)
        return numbers

    @property
    def unused_summary(self) -> str:
        """The reasons with their features, in one line; empty if every feature is a region."""
        reasons = by_reason((unused.reason, unused.feature) for unused in self.unused)
        return "; ".join(f"{features} ({reason})" for reason, features in reasons)


@dataclass(frozen=True, kw_only=True)
class AnnotationFrame:
    """What the coordinates of a slide's annotations mean.

    Attributes:
        origin: what coordinates are relative to: `bounds`, the scanned area, as QuPath has it, or
            `slide`, level 0.
        x, y: top-left corner of the scanned area in level-0 pixels.
        width, height: of the scanned area; 0 if unknown.
    """

    origin: str = "bounds"
    x: int = 0
    y: int = 0
    width: int = 0
    height: int = 0

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Self:
        """The frame of a slide, from its row of `cohort.SCHEMA`."""
        corner = {"x": row["bounds_x"], "y": row["bounds_y"]}
        size = {"width": row["bounds_width"], "height": row["bounds_height"]}
        return cls(origin=row["annotation_origin"], **corner, **size)

    def to_level_0(self, name: str, annotations: Annotations) -> Annotations:
        """The annotations in pixels of level 0.

        Raises:
            ManifestError: a region reaches beyond the scanned area that it should be relative to.
        """
        if self.origin == "slide" or not annotations.regions:
            return annotations
        outlines = [region.outline for region in annotations.regions]
        right, bottom = shapely.total_bounds(outlines)[2:].tolist()
        # Viewers let a stroke run over the edge of a picture by some pixels.
        if (self.x or self.y) and (right > self.width * 1.01 or bottom > self.height * 1.01):
            cause = (
                f"has regions up to pixel {right:.0f}, {bottom:.0f}, beyond the scanned area of "
                f"{self.width} x {self.height} that QuPath crops this slide to"
            )
            remedy = "if they are relative to the whole slide, set annotation_origin to 'slide'"
            raise ManifestError(name, cause, remedy)
        return annotations.shifted(self.x, self.y)


def read_annotations(uri: str, frame: AnnotationFrame | None = None) -> Annotations:
    """Features of a GeoJSON file (a FeatureCollection, a list of Features, or one Feature).

    Args:
        uri: of the file.
        frame: what its coordinates are relative to; level 0 if None.

    Raises:
        ManifestError: the file can't be read, is not GeoJSON, or holds a class that is not a
            pattern or an outline that is not an area.
    """
    name = storage.object_name(uri)
    regions, unused = [], []
    for number, feature in enumerate(_features(name, uri), start=1):
        label = _label(number, feature)
        if reason := _why_unused(feature):
            unused.append(UnusedFeature(number=number, feature=label, reason=reason))
            continue
        pattern = _pattern(name, label, _classes(feature))
        outline = _outline(name, label, feature)
        if outline is None:
            unused.append(UnusedFeature(number=number, feature=label, reason="has no area"))
        else:
            regions.append(Region(pattern=pattern, outline=outline, feature=label))
    found = Annotations(regions=tuple(regions), unused=tuple(unused))
    return found if frame is None else frame.to_level_0(name, found)


def check_annotations(uri: str) -> None:
    """Whether a file can be annotations, by one short read of its beginning.

    Raises:
        ManifestError: the file can't be read, or is of another kind, such as a slide.
    """
    name = storage.object_name(uri)
    try:
        head = storage.read_head(uri, HEAD_BYTES).data
    except storage.ObjectNotFound as error:
        raise ManifestError(name, error.reason, _CORRECT_THE_COLUMN) from None
    except storage.StorageError as error:  # its text holds the path
        raise ManifestError(name, error.reason, error.remedy) from None
    if not head.lstrip(_BEFORE_JSON).startswith((b"{", b"[")):
        raise ManifestError(name, "is not GeoJSON", _EXPORT)


def write_regions(uri: str, regions: Sequence[Region]) -> None:
    """Write regions as GeoJSON that QuPath opens.

    Raises:
        StorageError: the file can't be written.
    """
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
        min_share: a pattern labels a patch if its regions cover at least this share of it; the one
            that covers most does, the higher one if two cover the same.
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


def share_with_patches(
    regions: Sequence[Region], x: NDArray[np.integer], y: NDArray[np.integer], side: float
) -> float:
    """Share of the regions' area that patches cover, 0 to 1; 0 without regions.

    A low share says that regions are not on the tissue: drawn on another slide, or moved. The
    arguments are those of `patch_labels`.
    """
    if not regions:
        return 0.0
    drawn = shapely.union_all([region.outline for region in regions])
    patches = shapely.box(x, y, x + side, y + side)
    hit = shapely.STRtree(patches).query(drawn, predicate="intersects")
    covered = shapely.intersection(drawn, shapely.union_all(patches[hit]))
    return float(shapely.area(covered) / shapely.area(drawn))


def _features(name: str, uri: str) -> list[dict[str, Any]]:
    """The file's features.

    Raises:
        ManifestError: it can't be read, or is not GeoJSON with features.
    """
    try:
        content = json.loads(storage.read_bytes(uri))
    except storage.ObjectNotFound:
        raise ManifestError(name, "is not there", _CORRECT_THE_COLUMN) from None
    except storage.StorageError as error:  # its text holds the path
        raise ManifestError(name, error.reason, error.remedy) from None
    except (ValueError, RecursionError) as error:
        raise ManifestError(name, f"is not GeoJSON ({error})", _EXPORT) from error
    features = content.get("features", [content]) if isinstance(content, dict) else content
    if not (
        isinstance(features, list)
        and all(isinstance(part, dict) and part.get("type") == "Feature" for part in features)
    ):
        raise ManifestError(name, "holds no GeoJSON features", _EXPORT)
    return features


def _label(number: int, feature: dict[str, Any]) -> str:
    """Number and id of a feature, for people."""
    known = feature.get("id")
    if not isinstance(known, str | int) or _OLD_KIND.fullmatch(str(known)):
        return f"feature {number}"
    return f"feature {number} (id {known})"


def _properties(feature: dict[str, Any]) -> dict[str, Any]:
    properties = feature.get("properties")
    return properties if isinstance(properties, dict) else {}


def _classes(feature: dict[str, Any]) -> list[str]:
    """Parts of a feature's class, base first; none if it has no class."""
    found = _properties(feature).get("classification")
    if isinstance(found, dict):
        found = found.get("names") or found.get("name")
    names = found if isinstance(found, list) else [found]
    parts = [part.strip() for name in names if name for part in str(name).split(":")]
    return [part for part in parts if part]


_OTHER_KINDS = {"detection": "detection", "cell": "cell", "tile": "tile", "tma": "TMA core"}
"""QuPath's objects that are computed or arranged, not drawn; word of its kind, and for people."""
_OLD_KIND = re.compile(r"(Path|TMA)\w*Object")
"""What QuPath up to 0.3 wrote as a feature's id."""


def _why_unused(feature: dict[str, Any]) -> str:
    """Why a feature is not a region; empty if it is one."""
    properties = _properties(feature)
    kind = str(properties.get("objectType") or properties.get("object_type") or "").lower()
    if not kind and _OLD_KIND.fullmatch(str(feature.get("id"))):
        kind = feature["id"].lower()
    for word, shown in _OTHER_KINDS.items():
        if word in kind:
            return f"is a {shown}, not an annotation"
    classes = _classes(feature)
    if not classes:
        return "has no class, only a name" if properties.get("name") else "has no class"
    if classes[-1].endswith("*"):
        return "has a class that ends in *, which is ignored"
    return ""


def _pattern(name: str, label: str, classes: list[str]) -> str:
    """The pattern of a class.

    Raises:
        ManifestError: no part of it is a pattern, or two parts are different ones.
    """
    spelt = {re.sub(r"[^a-z0-9]+", "_", part.lower()).strip("_") for part in classes}
    patterns = sorted(spelt & set(PATTERNS))
    if len(patterns) == 1:
        return patterns[0]
    which = f"the class {': '.join(classes)!r} of several patterns"
    if not patterns:
        which = f"the unknown class {': '.join(classes)!r}"
    remedy = f"use {', '.join(PATTERNS)}, or end the name in * to have it ignored"
    raise ManifestError(name, f"has {which} in {label}", remedy)


def _outline(
    name: str, label: str, feature: dict[str, Any]
) -> shapely.Polygon | shapely.MultiPolygon | None:
    """The area of a feature; None if it is empty, or null as GeoJSON has it.

    Raises:
        ManifestError: it can't be read, or is a point or a line.
    """
    remedy = "export the annotations from QuPath again"
    if feature.get("geometry", "missing") is None:
        return None
    try:
        with np.errstate(invalid="ignore"):  # not a number: refused below
            drawn = shapely.force_2d(shape(feature["geometry"]))
    except OverflowError:
        cause = f"has a coordinate that is too large in {label}"
        raise ManifestError(name, cause, remedy) from None
    except (
        ShapelyError,
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        IndexError,
        RecursionError,
    ) as error:
        cause = f"has an unreadable outline in {label} ({type(error).__name__}: {error})"
        raise ManifestError(name, cause, remedy) from error
    if not np.isfinite(shapely.get_coordinates(drawn)).all():
        raise ManifestError(name, f"has a coordinate that is not a number in {label}", remedy)
    # Not by lines: parts that overlap would leave a hole.
    outline = shapely.make_valid(drawn, method="structure")
    areas = list(_polygons(outline))
    if areas:
        return shapely.union_all(areas)
    if drawn.is_empty or "Polygon" in drawn.geom_type:
        return None
    cause = f"has a {drawn.geom_type} where an area is needed in {label}"
    raise ManifestError(name, cause, "draw a polygon, or end its class in *")


def _polygons(geometry: shapely.Geometry) -> Iterator[shapely.Polygon]:
    """All polygons of a geometry, at any depth of collections."""
    if geometry.geom_type == "Polygon":
        if geometry.area:
            yield geometry
    elif geometry.geom_type in ("MultiPolygon", "GeometryCollection"):
        for part in geometry.geoms:
            yield from _polygons(part)
