"""Where the encoded frames of a DICOM whole-slide image are: its header and offset tables.

Spec: DICOM PS3.3 C.8.12.4 (microscopy image), C.7.6.17 (TILED_FULL, TILED_SPARSE), PS3.5 A.4
(encapsulated frames, basic and extended offset tables).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.uid import UID_dictionary

from pipelines import storage
from pipelines.slides import jpeg
from pipelines.slides.geometry import Size
from pipelines.slides.resolution import RecordedMpp
from pipelines.slides.source import SlideFile, is_dicom
from pipelines.slides.tiled import TileIndex, TileStore
from pipelines.slides.tiles import TileGrid

WSI_STORAGE = "1.2.840.10008.5.1.4.1.1.77.1.6"
"""SOP class UID of VL Whole Slide Microscopy Image Storage."""
MAX_FRAMES = 2**24
"""Frames beyond which a header is not believed: an 8 GB slide has about 200,000."""

SAME_SCALE = 0.01
"""Relative difference up to which width, height and PixelSpacing of a level give one scale, in
addition to sizes rounded by two pixels."""
MIN_STEP = 1.2
"""Smallest scale of a level: what is hardly smaller than level 0 is another region."""
SAME_PLACE = 0.01
"""Part of a picture's longer side by which the origins of its levels may differ, in addition to
two pixels: some scanners give the centre of the first pixel, some its corner."""

CODECS = {
    "1.2.840.10008.1.2": "raw",
    "1.2.840.10008.1.2.1": "raw",
    "1.2.840.10008.1.2.4.50": "jpeg",
    "1.2.840.10008.1.2.4.80": "jpegls",
    "1.2.840.10008.1.2.4.81": "jpegls",
    "1.2.840.10008.1.2.4.90": "jpeg2000",
    "1.2.840.10008.1.2.4.91": "jpeg2000",
}
"""Transfer syntaxes whose frames go straight to the decoder."""
COLOURS = {
    "raw": ("RGB",),
    "jpeg": ("RGB", "YBR_FULL_422", "YBR_FULL"),
    "jpegls": ("RGB",),
    "jpeg2000": ("RGB", "YBR_RCT", "YBR_ICT"),
}
"""Photometric interpretations that a codec's decoder turns into RGB."""

DEFLATED = b"1.2.840.10008.1.2.1.99"
"""Transfer syntax of files that are compressed as a whole. pydicom would inflate them to whatever
size, and no slide is one."""
DAMAGE = (
    InvalidDicomError,
    BytesLengthException,
    struct.error,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    OSError,
    EOFError,
    ArithmeticError,
    MemoryError,
    RuntimeError,
    AssertionError,
    StopIteration,
)
"""What pydicom raises on damaged files."""
_FRAME_GROUPS = "PerFrameFunctionalGroupsSequence"
_ITEM, _END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"


@dataclass(frozen=True, kw_only=True)
class Instance:
    """One file of a series.

    Attributes:
        file: the instance's file in its store.
        header: attributes before the pixel data.
        pixels_at: byte where the pixel data element begins.
    """

    file: SlideFile
    header: pydicom.Dataset
    pixels_at: int

    @property
    def series(self) -> str:
        """Series instance UID."""
        return str(self.header.SeriesInstanceUID)

    @property
    def uid(self) -> str:
        """SOP instance UID."""
        return str(self.header.SOPInstanceUID)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Values of ImageType, empty if it has none: VOLUME, LABEL, OVERVIEW, THUMBNAIL, ..."""
        found = self.header.get("ImageType") or ()
        return (found,) if isinstance(found, str) else tuple(map(str, found))

    @property
    def is_volume(self) -> bool:
        """Whether it shows the specimen, and not label, overview or thumbnail."""
        return "VOLUME" in self.kinds

    @property
    def size(self) -> Size:
        """Pixels of the whole level."""
        return Size(int(self.header.TotalPixelMatrixColumns), int(self.header.TotalPixelMatrixRows))

    @property
    def tile(self) -> Size:
        """Pixels of a frame."""
        return Size(int(self.header.Columns), int(self.header.Rows))

    @property
    def frames(self) -> int:
        """Frames in the file."""
        return int(self.header.get("NumberOfFrames") or 1)

    @cached_property
    def mpp(self) -> RecordedMpp:
        """Micrometres per pixel, from PixelSpacing: of rows first, then of columns, in mm.

        It is one for all frames, or the same in each of them.
        """
        for name in ("SharedFunctionalGroupsSequence", _FRAME_GROUPS):
            try:
                spacings = {
                    tuple(map(str, measures.PixelSpacing))
                    for group in self.header.get(name) or ()
                    for measures in group.get("PixelMeasuresSequence") or ()
                    if measures.get("PixelSpacing")
                }
            except (ValueError, TypeError):  # pydicom turns the text into numbers on access
                return RecordedMpp(unreadable="PixelSpacing")
            if len(spacings) > 1:
                return RecordedMpp(unreadable="PixelSpacing that differs from frame to frame")
            for spacing in spacings:
                rows, columns = [*spacing, ""][:2]
                return RecordedMpp.of_text(columns or rows, rows, units=("mm", "mm"))
        return RecordedMpp()

    @property
    def origin(self) -> tuple[float, float] | None:
        """Where on the glass the first pixel is, in mm; None if the header does not say."""
        for item in self.header.get("TotalPixelMatrixOriginSequence") or ():
            x, y = (item.get(f"{axis}OffsetInSlideCoordinateSystem") for axis in "XY")
            if x is not None and y is not None:
                return float(x), float(y)
        return None

    def is_level_of(self, base: Instance) -> bool:
        """Whether it shows what `base` shows, at the same or a coarser scale.

        A series may hold several regions of the glass, or one region with several pyramids.
        """
        if self.size == base.size:
            scales = [1.0]
        else:
            width, height = self.size.width, self.size.height
            scales = [base.size.width / width, base.size.height / height]
            if min(scales) < MIN_STEP:
                return False
        if base.mpp.is_plausible and self.mpp.is_plausible:
            scales.append(self.mpp.axes[0] / base.mpp.axes[0])
        rounding = SAME_SCALE + 2 / min(self.size.shape)
        if max(scales) - min(scales) > rounding * min(scales):
            return False
        return self._begins_where(base)

    def _begins_where(self, base: Instance) -> bool:
        """Whether its first pixel is where that of `base` is, as far as the headers say."""
        if not (base.origin and self.origin and base.mpp.is_plausible and self.mpp.is_plausible):
            return True
        extent = base.mpp.axes[0] / 1000 * max(base.size.shape)
        pixel = self.mpp.axes[0] / 1000
        return math.dist(base.origin, self.origin) <= SAME_PLACE * extent + 2 * pixel

    @property
    def focal_planes(self) -> int:
        """Focal planes of the level."""
        return int(self.header.get("TotalPixelMatrixFocalPlanes") or 1)

    @property
    def optical_paths(self) -> int:
        """Optical paths of the level: ways to light or stain that are pictures of their own."""
        return int(self.header.get("NumberOfOpticalPaths") or 1)


@dataclass(frozen=True, kw_only=True)
class NotASlide:
    """A file that is not an instance of a colour whole-slide image.

    Attributes:
        reason: why, as the end of a sentence about the file; empty if it is not DICOM at all.
    """

    reason: str = ""


class BrokenHeader(ValueError):  # noqa: N818 - as in `errors`
    """A DICOM file whose header can't be read, or that breaks off before its pixels.

    Attributes:
        series: instance UID, empty where the header does not get as far.
    """

    def __init__(self, message: str, series: str = "") -> None:
        super().__init__(message)
        self.series = series


def read_instance(file: SlideFile) -> Instance | NotASlide:
    """The header of a file, or why it is not a colour whole-slide image.

    Raises:
        BrokenHeader: a DICOM file that breaks off; pydicom would take what there is for all of it.
        SlideNotFound: the store fails, which says nothing of the file.
    """
    if not is_dicom(file.head):
        return NotASlide()
    if DEFLATED in file.head[:1024]:
        return NotASlide(reason="is DICOM that is deflated as a whole, which no slide is")
    try:
        with file.open() as stream:
            header = pydicom.dcmread(stream, stop_before_pixels=True)
            pixels_at = stream.tell()
        kind = header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID")
        series = str(header.get("SeriesInstanceUID") or "")
    except DAMAGE as error:
        raise BrokenHeader(
            f"{file.name} has a header that can't be read ({type(error).__name__})"
        ) from error
    if kind is None or (kind == WSI_STORAGE and pixels_at >= file.size):
        raise BrokenHeader(f"{file.name} breaks off before its pixels", series)
    if kind != WSI_STORAGE:
        name = UID_dictionary.get(str(kind), ("of an unknown SOP class",))[0]
        return NotASlide(reason=f"is DICOM but not a whole-slide image ({name})")
    samples = header.get("SamplesPerPixel")
    if samples != 3:
        return NotASlide(
            reason=f"is a DICOM whole-slide image of {samples} samples per pixel, not 3"
        )
    return Instance(file=file, header=header, pixels_at=pixels_at)


def tile_indexes(slide: str, volumes: Sequence[Instance]) -> list[TileIndex] | None:
    """The tile index of every level, None if a level can't be read in place.

    Raises:
        BrokenSlide: an index that can't be true.
        ValueError: damaged offset tables.
    """
    sizes = [(volume.size.width, volume.size.height) for volume in volumes]
    if len(set(sizes)) != len(sizes):
        return None  # a level in several files: concatenation, focal planes or optical paths
    indexes = []
    for instance in volumes:
        index = _tile_index(instance)
        if index is None:
            return None
        index.check(slide, instance.file.size)
        indexes.append(index)
    return indexes


def _tile_index(instance: Instance) -> TileIndex | None:
    header = instance.header
    codec = CODECS.get(str(header.file_meta.TransferSyntaxUID))
    colour = str(header.PhotometricInterpretation)
    flat = instance.optical_paths == 1 and instance.focal_planes == 1
    direct = (
        codec is not None and colour in COLOURS[codec] and int(header.BitsAllocated) == 8 and flat
    )
    if codec is None or not direct or int(header.get("PlanarConfiguration") or 0) != 0:
        return None
    if not 0 < instance.frames <= MAX_FRAMES:
        raise ValueError(f"{instance.frames} frames")
    grid = TileGrid(level=instance.size, tile=instance.tile)
    if grid.rows * grid.columns > MAX_FRAMES:
        raise ValueError(f"a size of {grid.rows * grid.columns} frames")
    tiles = _tiles_of_frames(instance, grid)
    ranges = _raw_frames(instance) if codec == "raw" else _encapsulated_frames(instance)
    if tiles is None or ranges is None:
        return None
    if len(ranges) != instance.frames:
        raise ValueError(f"{len(ranges)} frames where the header says {instance.frames}")
    offsets, lengths = (np.zeros(grid.rows * grid.columns, np.int64) for _ in range(2))
    offsets[tiles], lengths[tiles] = ranges[:, 0], ranges[:, 1]
    store = TileStore(
        uri=instance.file.uri,
        codec=codec,
        header=jpeg.stream_header(None, ycbcr=colour.startswith("YBR")) if codec == "jpeg" else b"",
        items=codec != "raw",
        sparse=_is_sparse(instance),
        version=instance.file.version,
    )
    return TileIndex(grid=grid, store=store, offsets=offsets, lengths=lengths)


def _is_sparse(instance: Instance) -> bool:
    """Whether frames have positions. Without a type or positions they are row by row."""
    kind = str(instance.header.get("DimensionOrganizationType") or "")
    return kind != "TILED_FULL" and (bool(kind) or _FRAME_GROUPS in instance.header)


def _tiles_of_frames(instance: Instance, grid: TileGrid) -> NDArray[np.int64] | None:
    """Tile number of every frame, int64 [F]; None if frames are not on the grid of tiles."""
    if not _is_sparse(instance):
        if instance.frames != grid.rows * grid.columns:
            raise ValueError(
                f"{instance.frames} frames where the size needs {grid.rows * grid.columns}"
            )
        return np.arange(instance.frames)
    if _FRAME_GROUPS not in instance.header:
        raise ValueError("frames without positions")
    tiles = []
    for group in instance.header.PerFrameFunctionalGroupsSequence:
        position = group.PlanePositionSlideSequence[0]
        x = int(position.ColumnPositionInTotalImagePixelMatrix) - 1
        y = int(position.RowPositionInTotalImagePixelMatrix) - 1
        if x % grid.tile.width or y % grid.tile.height:
            return None
        column, row = x // grid.tile.width, y // grid.tile.height
        if not (0 <= column < grid.columns and 0 <= row < grid.rows):
            raise ValueError(f"a frame at {x}, {y}, outside the slide")
        tiles.append(row * grid.columns + column)
    if len(set(tiles)) != len(tiles):
        return None  # several planes or paths in one tile
    return np.array(tiles, np.int64)


def _raw_frames(instance: Instance) -> NDArray[np.int64]:
    """Offset and length of native frames, int64 [F, 2]."""
    with instance.file.open() as stream:
        stream.seek(instance.pixels_at)
        head = stream.read(12)
    explicit = str(instance.header.file_meta.TransferSyntaxUID) != "1.2.840.10008.1.2"
    start = instance.pixels_at + (12 if explicit else 8)
    announced = struct.unpack("<I", head[8:12] if explicit else head[4:8])[0]
    length = instance.tile.width * instance.tile.height * 3
    if announced not in (instance.frames * length, instance.frames * length + 1):
        raise ValueError(f"{announced} bytes of pixels where {instance.frames * length} are needed")
    return np.stack(
        [start + np.arange(instance.frames) * length, np.full(instance.frames, length)], axis=1
    )


def _encapsulated_frames(instance: Instance) -> NDArray[np.int64] | None:
    """Offset and length of every frame with its item headers, int64 [F, 2].

    None if a remote file has no offset table: all of it would have to be read.
    """
    with instance.file.open() as stream:
        stream.seek(instance.pixels_at)
        head = stream.read(20)
        if head[:4] != b"\xe0\x7f\x10\x00" or head[12:16] != _ITEM:
            raise ValueError("no encapsulated pixel data")
        table_length = struct.unpack("<I", head[16:20])[0]
        table = np.frombuffer(stream.read(table_length), "<u4").astype(np.int64)
        first = instance.pixels_at + 20 + table_length
        extended = _extended_table(instance.header)
        if extended is not None:
            return np.stack([first + extended[0], 8 + extended[1] + extended[1] % 2], axis=1)
        if len(table) == instance.frames:
            end = _end_of_frame(stream, first + int(table[-1]))
            bounds = np.append(first + table, end)
            if (np.diff(bounds) <= 0).any():
                raise ValueError("offsets that don't rise")
            return np.stack([bounds[:-1], np.diff(bounds)], axis=1)
        if len(table):
            raise ValueError(f"{len(table)} offsets for {instance.frames} frames")
        if storage.local_path(instance.file.uri) is None:
            return None
        starts = _item_starts(stream, first)
        return np.array([(a, b - a) for a, b in pairwise(starts)], np.int64).reshape(-1, 2)


def _extended_table(header: pydicom.Dataset) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    if "ExtendedOffsetTable" not in header or "ExtendedOffsetTableLengths" not in header:
        return None
    names = ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")
    offsets, lengths = (np.frombuffer(header[name].value, "<u8").astype(np.int64) for name in names)
    return offsets, lengths


def _end_of_frame(stream: Any, start: int) -> int:
    """Byte behind the last item of the frame that begins at `start`."""
    return _item_starts(stream, start)[-1]


def _item_starts(stream: Any, start: int) -> list[int]:
    """Where items begin from `start` on, and where the sequence ends."""
    starts = [start]
    while True:
        stream.seek(starts[-1])
        head = stream.read(8)
        if head[:4] == _END:
            return starts
        if head[:4] != _ITEM or len(starts) > MAX_FRAMES:
            raise ValueError("items that break off")
        starts.append(starts[-1] + 8 + struct.unpack("<I", head[4:8])[0])
