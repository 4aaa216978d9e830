"""Small DICOM whole-slide images: a series of files, one a level, with every codec, offset table
and organisation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import imagecodecs
import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.sequence import Sequence as Items
from pydicom.uid import generate_uid

from pipelines.slides.dicom_index import WSI_STORAGE
from tests.support import tiff_writer as tw
from tests.support.tiff_slides import (
    MPP,
    TILE,
    Encode,
    Pixels,
    j2k_rgb,
    jpeg_rgb,
    jpeg_ycc,
    pyramid,
)

JPEG, JPEG_LS, JPEG_2000, NATIVE = (
    f"1.2.840.10008.1.2{end}" for end in (".4.50", ".4.80", ".4.91", ".1")
)


def jpegls(pixels: Pixels) -> bytes:
    """Lossless JPEG-LS."""
    return bytes(imagecodecs.jpegls_encode(pixels))


@dataclass(frozen=True, kw_only=True)
class DicomSlide:
    """How a series is written.

    Attributes:
        encode: a tile to its bytes; `syntax` and `colour` name the result.
        table: `basic`, `extended` or `none`: how frames are found.
        sparse: TILED_SPARSE with the position of each frame, in reverse order, and without the
            first frame of level 0.
        fragments: items that a frame is cut into.
    """

    encode: Encode
    syntax: str
    colour: str = "RGB"
    table: str = "basic"
    sparse: bool = False
    fragments: int = 1

    def write(self, folder: Path, pixels: Pixels, *, icc: bytes = b"") -> None:
        """Write the series into a folder, which is made."""
        folder.mkdir()
        series, study = generate_uid(entropy_srcs=["series"]), generate_uid(entropy_srcs=["study"])
        for k, level in enumerate(pyramid(pixels)):
            dataset = self._level(level, k, icc)
            dataset.SeriesInstanceUID, dataset.StudyInstanceUID = series, study
            dataset.save_as(folder / f"level-{k}.dcm", enforce_file_format=True)

    def _level(self, level: Pixels, k: int, icc: bytes) -> FileDataset:
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = WSI_STORAGE, self.syntax
        meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[f"level {k}"])
        dataset = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        dataset.SOPClassUID, dataset.SOPInstanceUID = WSI_STORAGE, meta.MediaStorageSOPInstanceUID
        dataset.Modality, dataset.Manufacturer, dataset.ManufacturerModelName = "SM", "Maker", "One"
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE" if k == 0 else "RESAMPLED"]
        dataset.FrameOfReferenceUID = generate_uid(entropy_srcs=["frame of reference"])
        height, width = level.shape[:2]
        dataset.TotalPixelMatrixColumns, dataset.TotalPixelMatrixRows = width, height
        dataset.TotalPixelMatrixFocalPlanes = dataset.NumberOfOpticalPaths = 1
        dataset.Rows = dataset.Columns = TILE
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = (
            3,
            self.colour,
            0,
        )
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = (
            8,
            8,
            7,
            0,
        )
        dataset.ImagedVolumeWidth, dataset.ImagedVolumeHeight = (
            width * MPP * 2**k / 1000,
            height * MPP * 2**k / 1000,
        )
        dataset.ImagedVolumeDepth = 0.001
        dataset.VolumetricProperties, dataset.SpecimenLabelInImage, dataset.BurnedInAnnotation = (
            "VOLUME",
            "NO",
            "NO",
        )
        dataset.FocusMethod, dataset.ExtendedDepthOfField = "AUTO", "NO"
        dataset.LossyImageCompression = "01" if self.syntax in (JPEG, JPEG_2000) else "00"
        dataset.ImageOrientationSlide = [0, -1, 0, -1, 0, 0]
        origin = Dataset()
        origin.XOffsetInSlideCoordinateSystem, origin.YOffsetInSlideCoordinateSystem = 0, 0
        dataset.TotalPixelMatrixOriginSequence = Items([origin])
        dataset.OpticalPathSequence = Items([_optical_path(icc)])
        measures = Dataset()
        measures.PixelSpacing, measures.SliceThickness = [MPP * 2**k / 1000] * 2, 0.001
        shared = Dataset()
        shared.PixelMeasuresSequence = Items([measures])
        dataset.SharedFunctionalGroupsSequence = Items([shared])
        self._frames(dataset, level, first=1 if self.sparse and k == 0 else 0)
        return dataset

    def _frames(self, dataset: Dataset, level: Pixels, first: int) -> None:
        """Put the pixels in, from tile number `first` on."""
        columns = -(-level.shape[1] // TILE)
        tiles = list(enumerate(tw.tiles_of(level, TILE)))[first:]
        if self.sparse:
            tiles.reverse()
            dataset.PerFrameFunctionalGroupsSequence = Items(
                [_position(k % columns * TILE, k // columns * TILE) for k, _ in tiles]
            )
        dataset.DimensionOrganizationType = "TILED_SPARSE" if self.sparse else "TILED_FULL"
        dataset.NumberOfFrames = len(tiles)
        frames = [self.encode(part) for _, part in tiles]
        if self.syntax == NATIVE:
            dataset.PixelData = b"".join(frames)
            dataset["PixelData"].VR = "OB"
        elif self.table == "extended":
            dataset.PixelData, dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths = (
                encapsulate_extended(frames)
            )
        else:
            dataset.PixelData = encapsulate(
                frames, fragments_per_frame=self.fragments, has_bot=self.table == "basic"
            )


def _optical_path(icc: bytes) -> Dataset:
    path, light = Dataset(), Dataset()
    light.CodeValue, light.CodingSchemeDesignator, light.CodeMeaning = (
        "111744",
        "DCM",
        "Brightfield illumination",
    )
    path.IlluminationTypeCodeSequence = Items([light])
    path.OpticalPathIdentifier, path.ObjectiveLensPower = "0", 20
    if icc:
        path.ICCProfile = icc + b"\0" * (len(icc) % 2)
    return path


def _position(x: int, y: int) -> Dataset:
    group, position = Dataset(), Dataset()
    position.ColumnPositionInTotalImagePixelMatrix, position.RowPositionInTotalImagePixelMatrix = (
        x + 1,
        y + 1,
    )
    position.XOffsetInSlideCoordinateSystem = position.YOffsetInSlideCoordinateSystem = (
        position.ZOffsetInSlideCoordinateSystem
    ) = 0
    group.PlanePositionSlideSequence = Items([position])
    return group


SERIES: dict[str, DicomSlide] = {
    "dicom-jpeg": DicomSlide(encode=jpeg_ycc, syntax=JPEG, colour="YBR_FULL_422"),
    "dicom-jpeg-extended": DicomSlide(
        encode=jpeg_ycc, syntax=JPEG, colour="YBR_FULL_422", table="extended"
    ),
    "dicom-jpeg-no-table": DicomSlide(
        encode=jpeg_ycc, syntax=JPEG, colour="YBR_FULL_422", table="none"
    ),
    "dicom-jpeg-rgb": DicomSlide(encode=jpeg_rgb, syntax=JPEG),
    "dicom-jpeg2000": DicomSlide(encode=j2k_rgb, syntax=JPEG_2000, colour="YBR_ICT"),
    "dicom-jpegls": DicomSlide(encode=jpegls, syntax=JPEG_LS),
    "dicom-raw": DicomSlide(encode=np.ndarray.tobytes, syntax=NATIVE),
    "dicom-sparse": DicomSlide(encode=jpeg_ycc, syntax=JPEG, colour="YBR_FULL_422", sparse=True),
    "dicom-sparse-raw": DicomSlide(encode=np.ndarray.tobytes, syntax=NATIVE, sparse=True),
}
"""Series by name."""
