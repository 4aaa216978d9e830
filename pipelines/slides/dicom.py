"""DICOM whole-slide images (Supplement 145): a folder or prefix with the instances of one series, or one of its files.

Series whose frames can be found by their offsets are read in place, encoded frames straight to the decoder (`dicom_index`); the
rest (several focal planes or optical paths, concatenations, other codecs) goes through wsidicom, from a local disk.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pydicom
import simplejpeg
import wsidicom
import wsidicom.errors
from numpy.typing import NDArray

from pipelines import storage
from pipelines.slides import staging
from pipelines.slides.dicom_index import DAMAGE, BrokenHeader, Instance, read_instance, tile_indexes
from pipelines.slides.errors import BrokenSlide, SlideError, SlideNotFound, UnsupportedSlide
from pipelines.slides.geometry import Level, Point, Size
from pipelines.slides.slide import Slide, SlideFacts
from pipelines.slides.source import SlideFile, identity_of
from pipelines.slides.tiled import TiledSlide

JPEG_BASELINE = "1.2.840.10008.1.2.4.50"
_OF_WSIDICOM = tuple(
    kind
    for kind in vars(wsidicom.errors).values()
    if isinstance(kind, type) and issubclass(kind, Exception)
)  # they have no common base
_DAMAGE = (*DAMAGE, *_OF_WSIDICOM)
"""What pydicom and wsidicom raise on damaged files."""


def open_series(
    uri: str, *, series_of: SlideFile | None = None, identity: str | None = None
) -> Slide:
    """Open a series.

    Args:
        uri: folder or prefix that holds it.
        series_of: the file in it whose series is meant; None where the folder has one series only.
        identity: where ingestion has established it.

    Raises:
        SlideNotFound: no whole-slide image is there, or a file of the folder can't be read from its store or disk.
        UnsupportedSlide: DICOM but no colour whole-slide image, or several series and none chosen.
        BrokenSlide: damaged instances.
    """
    name = series_of.name if series_of else storage.object_name(uri.rstrip("/"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # pydicom warns of values that violate the standard but can be read
            volumes = _volumes(name, _instances(uri, series_of))
            file = _series_file(uri, series_of, volumes, name)
            facts = _facts(volumes[0])
            indexes = tile_indexes(name, volumes)
            if indexes is not None:
                return TiledSlide(file, indexes, facts, identity=identity)
            return WsiDicomSlide(file, volumes, facts, identity=identity)
    except SlideError:
        raise
    except _DAMAGE as error:
        if (
            isinstance(error, OSError) and error.filename
        ):  # a disk that fails, in a text that holds the path
            cause = f"can't be read from its disk ({error.strerror})"
            raise SlideNotFound(name, cause, "check the disk and the permissions") from None
        cause = f"is a DICOM series that can't be read ({type(error).__name__}: {str(error)[:80]})"
        raise BrokenSlide(name, cause, "copy or export it again") from error


def _instances(uri: str, series_of: SlideFile | None) -> list[Instance]:
    """Headers of the series' instances.

    Raises:
        SlideNotFound: there is none.
        UnsupportedSlide: the chosen file is no whole-slide image, or several series and none chosen.
    """
    name = series_of.name if series_of else storage.object_name(uri.rstrip("/"))
    wanted = read_instance(series_of) if series_of else None
    if series_of is not None and wanted is None:
        raise UnsupportedSlide(
            name, "is DICOM but not a colour whole-slide image", "give the WSI series itself"
        )
    files = [
        SlideFile.find(at) for at in _children(uri) if series_of is None or at != series_of.uri
    ]
    found = [wanted] if wanted else []
    found += [at for file in files if (at := _neighbour(file, wanted)) is not None]
    chosen = wanted.series if wanted else (found[0].series if found else "")
    others = {at.series for at in found} - {chosen}
    if not found:
        raise SlideNotFound(
            name, "holds no DICOM whole-slide image", "give a folder with one WSI series"
        )
    if others and wanted is None:
        raise UnsupportedSlide(
            name,
            f"holds {len(others) + 1} DICOM series",
            "give one file of the series that is meant",
        )
    return sorted((at for at in found if at.series == chosen), key=lambda at: at.file.uri)


def _neighbour(file: SlideFile, wanted: Instance | None) -> Instance | None:
    """What lies beside the chosen file; a damaged file of another series, or of none that can be told, is no concern of it."""
    try:
        return read_instance(file)
    except BrokenHeader as error:
        if wanted is None or error.series == wanted.series:
            raise
        return None


def _children(uri: str) -> list[str]:
    """URIs of the files that lie in the folder itself.

    Raises:
        SlideNotFound: the store does not tell.
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
    return [at for at in found if "/" not in at[len(uri.rstrip("/")) + 1 :]]


def _volumes(name: str, instances: Sequence[Instance]) -> list[Instance]:
    """The instances that show the specimen, finest first."""
    volumes = [at for at in instances if at.is_volume]
    if not volumes:
        raise UnsupportedSlide(
            name, "is a DICOM series without a VOLUME image", "give the WSI series itself"
        )
    return sorted(volumes, key=lambda at: -at.size.width)


def _series_file(
    uri: str, series_of: SlideFile | None, volumes: Sequence[Instance], name: str
) -> SlideFile:
    versions = "|".join(f"{at.uid} {at.file.version}" for at in volumes)
    where = series_of.uri if series_of else uri
    return SlideFile(
        uri=where, name=name, size=sum(at.file.size for at in volumes), version=versions
    )


def _facts(base: Instance) -> SlideFacts:
    header = base.header
    path = (header.get("OpticalPathSequence") or [pydicom.Dataset()])[0]
    names = [str(header.get(name) or "") for name in ("Manufacturer", "ManufacturerModelName")]
    power = path.get("ObjectiveLensPower")
    return SlideFacts(
        vendor="dicom",
        resolution=base.mpp,
        objective=float(power) if power else None,
        scanner=" ".join(name for name in names if name and name != "Unknown"),
        icc=bytes(path.get("ICCProfile") or b""),
    )


def _decode_strictly(handle: wsidicom.WsiDicom) -> None:
    """wsidicom's decoder passes over what libjpeg warns of and shows grey or garbage: let such frames raise ValueError."""
    for decoder in {
        at.image_data.decoder for level in handle.levels for at in level.instances.values()
    }:
        decoder.decode = _Strict(decoder.decode)


class _Strict:
    def __init__(self, decode: Callable[[bytes], NDArray[Any]]) -> None:
        self._decode = decode

    def __call__(self, frame: bytes) -> NDArray[Any]:
        simplejpeg.decode_jpeg(frame, "GRAY")
        return self._decode(frame)


class WsiDicomSlide(Slide):
    """A series read by wsidicom. See `Slide` for the interface."""

    def __init__(
        self,
        file: SlideFile,
        volumes: Sequence[Instance],
        facts: SlideFacts,
        *,
        identity: str | None,
    ) -> None:
        self._know(file, facts)
        self._copy = staging.local_copy([at.file for at in volumes])
        self.staged = self._copy.staged
        try:
            self._handle = wsidicom.WsiDicom.open(list(self._copy.paths))
            if any(str(at.header.file_meta.TransferSyntaxUID) == JPEG_BASELINE for at in volumes):
                _decode_strictly(self._handle)
        except BaseException:
            self._copy.release()
            raise
        full = self._handle.levels.base_level.size
        self._at = [level.level for level in self._handle.levels]
        self.levels = tuple(
            Level(
                index=k,
                size=Size(level.size.width, level.size.height),
                downsample=(full.width / level.size.width + full.height / level.size.height) / 2,
                tile=Size(level.tile_size.width, level.tile_size.height),
            )
            for k, level in enumerate(self._handle.levels)
        )
        self.identity = identity or identity_of(file.version)

    def read_region(
        self, origin: Point, level: int, size: Size, *, scale: int = 1
    ) -> NDArray[np.uint8]:
        assert scale == 1, "wsidicom does not shrink while it decodes"
        at = self.levels[level]
        x, y = round(origin.x / at.downsample), round(origin.y / at.downsample)
        out = np.full((*size.shape, 3), 255, np.uint8)
        x0, y0 = max(x, 0), max(y, 0)
        x1, y1 = min(x + size.width, at.size.width), min(y + size.height, at.size.height)
        if x0 < x1 and y0 < y1:
            try:
                region = self._handle.read_region((x0, y0), self._at[level], (x1 - x0, y1 - y0))
            except _DAMAGE as error:
                raise BrokenSlide(
                    self.name, f"has frames that can't be decoded ({error})", "export it again"
                ) from error
            out[y0 - y : y1 - y, x0 - x : x1 - x] = np.asarray(region.convert("RGB"))
        return out

    def close(self) -> None:
        self._handle.close()
        self._copy.release()
