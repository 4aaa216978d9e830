"""DICOM whole-slide images (Supplement 145): a folder or prefix with one series, or one file of it.

A series whose frames can be found by their offsets is read in place, encoded frames straight to the
decoder (`dicom_index`). The rest (several focal planes or optical paths, concatenations, other
codecs) goes through wsidicom, from a local disk (`wsidicom_reader`).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pydicom

from pipelines import storage
from pipelines.slides.dicom_index import (
    DAMAGE,
    BrokenHeader,
    Instance,
    NotASlide,
    read_instance,
    tile_indexes,
)
from pipelines.slides.errors import BrokenSlide, SlideError, SlideNotFound, UnsupportedSlide
from pipelines.slides.slide import OpenOptions, SlideFacts
from pipelines.slides.source import SlideFile
from pipelines.slides.tiled import TiledSlide


@dataclass(frozen=True, kw_only=True)
class Series:
    """A series that is a slide.

    Attributes:
        file: stands for all its files: their versions, the sum of their sizes.
        volumes: the instances that are levels of the largest picture of the specimen, finest first.
        facts: what the header of the finest one says.
    """

    file: SlideFile
    volumes: tuple[Instance, ...]
    facts: SlideFacts


def find_series(uri: str, *, series_of: SlideFile | None = None) -> Series:
    """Find the instances of a series and read their headers.

    Args:
        uri: folder or prefix that holds it.
        series_of: the file in it whose series is meant; None if the folder has one series only.

    Raises:
        SlideNotFound: no DICOM file is there, or one can't be read from its store or disk.
        UnsupportedSlide: DICOM but not a colour whole-slide image, or several series and none is
            chosen.
        BrokenSlide: damaged instances.
    """
    name = series_of.name if series_of else storage.object_name(uri.rstrip("/"))
    with reading(name):
        shown = _volumes(name, _instances(name, uri, series_of))
        volumes, further = _largest_pyramid(shown)
        file = SlideFile(
            uri=series_of.uri if series_of else uri,
            name=name,
            size=sum(volume.file.size for volume in volumes),
            version="|".join(f"{volume.uid} {volume.file.version}" for volume in volumes),
        )
        return Series(file=file, volumes=tuple(volumes), facts=_facts(volumes, further))


def open_direct(series: Series, options: OpenOptions) -> TiledSlide | None:
    """Open a series by its tile index, or return None if wsidicom must read it.

    Raises:
        BrokenSlide: offset tables that can't be true.
    """
    with reading(series.file.name):
        indexes = tile_indexes(series.file.name, series.volumes)
        return TiledSlide(series.file, indexes, series.facts, options) if indexes else None


@contextmanager
def reading(name: str, damage: tuple[type[Exception], ...] = DAMAGE) -> Iterator[None]:
    """Turn what a DICOM library raises on damaged files into an error of the slide `name`."""
    try:
        with warnings.catch_warnings():
            # pydicom warns of values that violate the standard but can be read.
            warnings.simplefilter("ignore")
            yield
    except SlideError:
        raise
    except damage as error:
        if isinstance(error, OSError) and error.filename:  # a failing disk; the text has its path
            cause = f"can't be read from its disk ({error.strerror})"
            raise SlideNotFound(name, cause, "check the disk and the permissions") from None
        cause = f"is a DICOM series that can't be read ({type(error).__name__}: {str(error)[:80]})"
        raise BrokenSlide(name, cause, "copy or export it again") from error


def _instances(name: str, uri: str, series_of: SlideFile | None) -> list[Instance]:
    """Headers of the series' instances.

    Raises:
        SlideNotFound: there is no DICOM file.
        UnsupportedSlide: the chosen file or all files are not a colour whole-slide image, or there
            are several series and none is chosen.
    """
    wanted = read_instance(series_of) if series_of else None
    if isinstance(wanted, NotASlide):
        raise UnsupportedSlide(name, wanted.reason, "give the whole-slide image series itself")
    others = [child for child in _children(uri) if series_of is None or child != series_of.uri]
    read = [_neighbour(SlideFile.find(child), wanted) for child in others]
    found = [instance for instance in (wanted, *read) if isinstance(instance, Instance)]
    if not found:
        reasons = [other.reason for other in read if isinstance(other, NotASlide)]
        raise _without_slide(name, [reason for reason in reasons if reason])
    series = wanted.series if wanted else found[0].series
    count = len({instance.series for instance in found})
    if count > 1 and wanted is None:
        cause = f"holds {count} DICOM series"
        raise UnsupportedSlide(
            name, cause, "give one file of the series that is meant", code="several-series"
        )
    chosen = _without_copies(name, [each for each in found if each.series == series])
    return sorted(chosen, key=lambda instance: instance.file.uri)


def _without_copies(name: str, instances: Sequence[Instance]) -> list[Instance]:
    """One file of each instance: of copies, the one with the shortest name.

    Raises:
        BrokenSlide: two files call themselves one instance and differ; names both.
    """
    found: dict[str, Instance] = {}
    for instance in sorted(instances, key=lambda each: (len(each.file.uri), each.file.uri)):
        first = found.setdefault(instance.uid, instance)
        if first.file.size != instance.file.size or first.header != instance.header:
            names = f"{first.file.name} and {instance.file.name}"
            cause = f"has two files of one DICOM instance that differ, {names}"
            raise BrokenSlide(name, cause, "delete the one that is not the original")
    return list(found.values())


def _without_slide(name: str, reasons: Sequence[str]) -> SlideError:
    """The error for a folder without an instance of a colour whole-slide image."""
    if not reasons:
        cause = "holds no DICOM whole-slide image"
        return SlideNotFound(name, cause, "give a slide, or a folder with one DICOM series")
    cause = f"holds {len(reasons)} DICOM files but no slide; the first {reasons[0]}"
    return UnsupportedSlide(name, cause, "give the whole-slide image series itself")


def _neighbour(file: SlideFile, wanted: Instance | None) -> Instance | NotASlide:
    """A file in the folder of the chosen one.

    A damaged file counts only if it is, or may be, of the series that is opened.
    """
    try:
        return read_instance(file)
    except BrokenHeader as error:
        if wanted is None or error.series == wanted.series:
            raise
        return NotASlide()


def _children(uri: str) -> list[str]:
    """URIs of the files in the folder itself.

    Raises:
        SlideNotFound: the store can't be reached.
    """
    local = storage.local_path(uri)
    if local is not None:
        return [storage.as_uri(path) for path in sorted(local.iterdir()) if path.is_file()]
    try:
        found = storage.list_uris(uri)
    except storage.StorageError as error:
        cause = f"can't be reached in its store ({type(error).__name__})"
        raise SlideNotFound(
            storage.object_name(uri.rstrip("/")), cause, "check the connection and try again"
        ) from None
    return [child for child in found if "/" not in child[len(uri.rstrip("/")) + 1 :]]


def _volumes(name: str, instances: Sequence[Instance]) -> list[Instance]:
    """The instances that show the specimen, largest first.

    Raises:
        UnsupportedSlide: none does, with what there is instead.
    """
    volumes = [instance for instance in instances if instance.is_volume]
    if volumes:
        return sorted(volumes, key=lambda volume: -volume.size.width * volume.size.height)
    if not all(instance.kinds for instance in instances):
        cause = "is DICOM without ImageType, which distinguishes a slide from its label"
        raise UnsupportedSlide(name, cause, "export it with ImageType VOLUME", code="image-type")
    known = ("LABEL", "OVERVIEW", "THUMBNAIL", "LOCALIZER")
    kinds = {kind for instance in instances for kind in instance.kinds if kind in known}
    shown = " and ".join(sorted(kinds)) or "of another ImageType"
    raise UnsupportedSlide(
        name,
        f"has only DICOM images that are {shown}, none that is VOLUME",
        "give the files of the series that show the specimen",
        code="image-type",
    )


def _largest_pyramid(volumes: Sequence[Instance]) -> tuple[list[Instance], list[Instance]]:
    """The levels of the largest picture, and the other pictures; each in the order given.

    Of several pictures of one size, that with the most levels is taken.
    """
    bases = [volume for volume in volumes if volume.size == volumes[0].size]
    pyramids = [[volume for volume in volumes if volume.is_level_of(base)] for base in bases]
    levels = max(pyramids, key=len)
    return levels, [volume for volume in volumes if volume not in levels]


def _facts(volumes: Sequence[Instance], further: Sequence[Instance]) -> SlideFacts:
    base = volumes[0]
    header = base.header
    path = (header.get("OpticalPathSequence") or [pydicom.Dataset()])[0]
    names = [str(header.get(name) or "") for name in ("Manufacturer", "ManufacturerModelName")]
    power = path.get("ObjectiveLensPower")
    planes = max(volume.focal_planes for volume in volumes)
    paths = max(volume.optical_paths for volume in volumes)
    remarks = []
    if planes > 1:
        remarks.append(f"has {planes} focal planes, of which one was read")
    if paths > 1:
        remarks.append(f"has {paths} optical paths, of which one was read")
    if further:
        size = f"{further[0].size.width} x {further[0].size.height} px"
        if len(further) == 1:
            remarks.append(f"holds 1 further picture that was not read ({size})")
        else:
            count = f"{len(further)} further pictures"
            remarks.append(f"holds {count} that were not read (the largest {size})")
    return SlideFacts(
        vendor="dicom",
        mpp=base.mpp,
        objective=float(power) if power else None,
        scanner=" ".join(name for name in names if name and name != "Unknown"),
        icc=bytes(path.get("ICCProfile") or b""),
        remarks=tuple(remarks),
    )
