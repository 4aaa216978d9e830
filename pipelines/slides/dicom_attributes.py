"""What stays of a DICOM whole-slide image when it is de-identified; other values are overwritten.

The list of attributes holds what reading needs and what describes optics and geometry: of those
that DICOM PS3.3 A.32.8 (Supplement 145) gives a whole-slide image, the ones that the Basic Profile
of PS3.15 Annex E keeps. It names attributes, not words: a kept attribute must have the VR that
PS3.6 gives it. The value of every other element, private ones included, becomes blank at any depth.
It keeps its length, so that nothing moves. Every instance UID becomes another one.

New UIDs are SHA-256 of the old ones, so that files cleaned one by one still belong together. No
key is involved: whoever has an old UID can compute its new one, and so find the copy of a series
that he knows already. Nothing leads back.
"""

from __future__ import annotations

import hashlib
import mmap
import shutil
import struct
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import pydicom
from pydicom.datadict import dictionary_has_tag, dictionary_VR, keyword_for_tag, tag_for_keyword
from pydicom.uid import UID_dictionary

from pipelines.slides.dicom_index import DAMAGE, WSI_STORAGE
from pipelines.slides.errors import BrokenSlide, UnsupportedSlide
from pipelines.slides.source import is_dicom

KEPT_KEYWORDS = (
    "FileMetaInformationGroupLength",
    "FileMetaInformationVersion",
    "SpecificCharacterSet",
    "ImageType",
    "Modality",
    "Manufacturer",
    "ManufacturerModelName",
    "VolumetricProperties",
    "PositionReferenceIndicator",
    "InstanceNumber",
    "InConcatenationNumber",
    "InConcatenationTotalNumber",
    "ConcatenationFrameOffsetNumber",
    # pixels
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelPaddingValue",
    "PixelAspectRatio",
    "BurnedInAnnotation",
    "LossyImageCompression",
    "LossyImageCompressionRatio",
    "LossyImageCompressionMethod",
    "RepresentativeFrameNumber",
    "PresentationLUTShape",
    "RescaleIntercept",
    "RescaleSlope",
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
    "PixelData",
    # where they are
    "DimensionOrganizationSequence",
    "DimensionOrganizationType",
    "DimensionIndexSequence",
    "DimensionIndexPointer",
    "FunctionalGroupPointer",
    "ImagedVolumeWidth",
    "ImagedVolumeHeight",
    "ImagedVolumeDepth",
    "TotalPixelMatrixColumns",
    "TotalPixelMatrixRows",
    "TotalPixelMatrixOriginSequence",
    "TotalPixelMatrixFocalPlanes",
    "ImageOrientationSlide",
    "XOffsetInSlideCoordinateSystem",
    "YOffsetInSlideCoordinateSystem",
    "ZOffsetInSlideCoordinateSystem",
    "SpecimenLabelInImage",
    "FocusMethod",
    "ExtendedDepthOfField",
    "NumberOfFocalPlanes",
    "DistanceBetweenFocalPlanes",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    "PixelMeasuresSequence",
    "PixelSpacing",
    "SliceThickness",
    "SpacingBetweenSlices",
    "WholeSlideMicroscopyImageFrameTypeSequence",
    "FrameType",
    "PlanePositionSlideSequence",
    "ColumnPositionInTotalImagePixelMatrix",
    "RowPositionInTotalImagePixelMatrix",
    "FrameContentSequence",
    "DimensionIndexValues",
    "OpticalPathIdentificationSequence",
    # optics
    "OpticalPathSequence",
    "OpticalPathIdentifier",
    "NumberOfOpticalPaths",
    "ICCProfile",
    "ColorSpace",
    "ObjectiveLensPower",
    "ObjectiveLensNumericalAperture",
    "CondenserLensPower",
    "IlluminationWaveLength",
    "IlluminationTypeCodeSequence",
    "IlluminationColorCodeSequence",
    "CodeValue",
    "CodingSchemeDesignator",
    "CodeMeaning",
)
"""Attributes that stay; of UIDs, those that DICOM itself defines, such as transfer syntaxes."""
_KEPT = frozenset(tag_for_keyword(keyword) for keyword in KEPT_KEYWORDS)
_LONG = frozenset(
    {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
)
"""VRs whose length has 4 bytes, after 2 reserved ones (PS3.5 7.1.2)."""
_TEXT = frozenset(
    {
        b"AE",
        b"AS",
        b"CS",
        b"DA",
        b"DS",
        b"DT",
        b"IS",
        b"LO",
        b"LT",
        b"PN",
        b"SH",
        b"ST",
        b"TM",
        b"UC",
        b"UR",
        b"UT",
    }
)
"""VRs that are padded with spaces."""
_ITEM, _ITEM_END, _SEQUENCE_END, _PIXELS = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD, 0x7FE00010
_UNDEFINED = 0xFFFFFFFF
_IMPLICIT = "1.2.840.10008.1.2"
_NOT_LITTLE_ENDIAN = (
    "1.2.840.10008.1.2.2",
    "1.2.840.10008.1.2.1.99",
    "1.2.840.10008.1.2.4.95",
    "1.2.840.10008.1.2.4.205",
)
"""Big endian, and files that are compressed as a whole."""
MIN_DIGITS = 10
"""Of a new UID: with fewer, two of one hospital would soon be the same."""


def clean_series(source: Path, target: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Copy the files of a series that show the specimen, and overwrite what is not to stay.

    Args:
        source: folder; files that are not DICOM are left out.
        target: folder that is made.

    Returns:
        What the files show that were left out, and keywords of attributes that were overwritten.

    Raises:
        UnsupportedSlide: there is no DICOM file, or one is stored in a way that can't be cleaned.
        BrokenSlide: a file can't be read.
    """
    files = sorted(path for path in source.iterdir() if _is_dicom(path))
    if not files:
        raise UnsupportedSlide(
            source.name, "holds no DICOM file", "give the folder with the whole series"
        )
    target.mkdir(parents=True, exist_ok=True)
    images, fields = [], set()
    for number, path in enumerate(files):
        try:
            with warnings.catch_warnings():
                # pydicom warns of values that violate the standard but can be read.
                warnings.simplefilter("ignore")
                header = pydicom.dcmread(path, stop_before_pixels=True)
                kind = _kind(header)
                syntax = str(header.file_meta.TransferSyntaxUID)
            if kind:
                images.append(kind)
                continue
            if syntax in _NOT_LITTLE_ENDIAN or syntax not in UID_dictionary:
                label = UID_dictionary.get(syntax, ("unknown",))[0]
                cause = f"has the transfer syntax {label}, which can't be de-identified yet"
                raise UnsupportedSlide(
                    source.name, cause, "export it with explicit VR little endian"
                )
            fields |= _clean_file(
                source.name, path, target / f"{number:04d}.dcm", explicit=syntax != _IMPLICIT
            )
        except DAMAGE as error:
            cause = f"is a DICOM series that can't be read ({type(error).__name__})"
            raise BrokenSlide(source.name, cause, "copy or export it again") from error
    return tuple(images), tuple(sorted(fields))


def _is_dicom(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return is_dicom(stream.read(132))


def _kind(header: pydicom.Dataset) -> str:
    """What an instance shows other than the specimen, empty for one that stays."""
    if header.get("SOPClassUID") != WSI_STORAGE:
        return "other"
    kinds = [str(part) for part in header.get("ImageType") or ()]
    found = [name for name in ("LABEL", "OVERVIEW") if name in kinds]
    if found:
        return found[0].lower()
    if "YES" in (header.get("SpecimenLabelInImage"), header.get("BurnedInAnnotation")):
        return "label"
    return "" if {"VOLUME", "THUMBNAIL"} & {*kinds} else "other"


@dataclass(frozen=True, kw_only=True)
class _Element:
    """A data element of the file.

    Attributes:
        tag: group and element.
        vr: two letters; `UN` if neither the file nor PS3.6 has one for the tag.
        begin: byte where the value begins.
        end: byte after it. For a sequence without length and for encapsulated pixels, the end of
            the part of the file that they are in.
        open: whether the length is undefined.
    """

    tag: int
    vr: bytes
    begin: int
    end: int
    open: bool

    @property
    def name(self) -> str:
        """Keyword, or the tag's number where it has none."""
        return keyword_for_tag(self.tag) or f"({self.tag >> 16:04X},{self.tag & 0xFFFF:04X})"

    @property
    def stays(self) -> bool:
        """Whether it is on the list, with the VR that it should have."""
        return self.tag in _KEPT and self.vr.decode("ascii", "replace") in dictionary_VR(
            self.tag
        ).split(" or ")


def _clean_file(slide: str, source: Path, target: Path, *, explicit: bool) -> set[str]:
    """Copy one file and overwrite in the copy; returns the keywords of what was overwritten."""
    shutil.copyfile(source, target)
    with target.open("r+b") as stream, mmap.mmap(stream.fileno(), 0) as data:
        cleaning = _Cleaning(slide=slide, data=data)
        cleaning.blank_preamble()
        # The group's length is its first element.
        meta_ends = 132 + 12 + struct.unpack_from("<I", data, 140)[0]
        if data[132:140] != b"\x02\0\0\0UL\x04\0" or meta_ends > len(data):
            raise ValueError("no length of the file meta information")
        cleaning.clean(132, meta_ends, explicit=True, stays=True)
        cleaning.clean(meta_ends, len(data), explicit=explicit, stays=True)
        return cleaning.fields


@dataclass(kw_only=True)
class _Cleaning:
    """The overwriting of one file.

    Attributes:
        slide: name for errors.
        data: the whole file.
        fields: keywords of what was overwritten so far.
    """

    slide: str
    data: mmap.mmap
    fields: set[str] = field(default_factory=set)

    def blank_preamble(self) -> None:
        """The first 128 bytes are free for other formats' headers, or for anything."""
        if any(self.data[:128]):
            self.data[:128] = bytes(128)
            self.fields.add("preamble")

    def clean(self, position: int, end: int, *, explicit: bool, stays: bool) -> int:
        """Clean a data set, which ends at `end` or at an item delimiter; returns the byte after it.

        Raises:
            ValueError: elements that don't fit into it.
        """
        while position < end:
            element = self._element(position, end, explicit=explicit)
            if element.tag == _ITEM_END:
                return element.begin
            if element.vr == b"SQ" or (element.open and element.tag != _PIXELS):
                # PS3.5 6.2.2: UN without length is an implicit sequence.
                inner = explicit and element.vr != b"UN"
                position = self._clean_items(element, explicit=inner, stays=stays and element.stays)
            elif element.open:
                position = self._behind_frames(element)
            else:
                self._clean_value(element, stays=stays)
                position = element.end
        return position

    def _element(self, position: int, end: int, *, explicit: bool) -> _Element:
        group, number, length = struct.unpack_from("<HHI", self.data, position)
        tag, begins = group << 16 | number, position + 8
        if group == 0xFFFE:
            vr = b""
        elif explicit:
            vr = self.data[position + 4 : position + 6]
            if vr in _LONG:
                length, begins = struct.unpack_from("<I", self.data, position + 8)[0], position + 12
            else:
                length >>= 16
        else:
            vr = _listed_vr(tag)
        undefined = length == _UNDEFINED
        if begins > end or (not undefined and begins + length > end):
            raise ValueError(f"an element at byte {position} that reaches beyond its end")
        return _Element(
            tag=tag, vr=vr, begin=begins, end=end if undefined else begins + length, open=undefined
        )

    def _clean_items(self, sequence: _Element, *, explicit: bool, stays: bool) -> int:
        position = sequence.begin
        while position < sequence.end:
            item = self._element(position, sequence.end, explicit=explicit)
            if item.tag == _SEQUENCE_END:
                return item.begin
            if item.tag != _ITEM:
                raise ValueError(f"no item at byte {position}")
            position = self.clean(item.begin, item.end, explicit=explicit, stays=stays)
        return position

    def _behind_frames(self, pixels: _Element) -> int:
        """Encapsulated frames stay."""
        position = pixels.begin
        while True:
            item = self._element(position, pixels.end, explicit=True)
            if item.tag == _SEQUENCE_END:
                return item.begin
            if item.tag != _ITEM:
                raise ValueError(f"no frame at byte {position}")
            position = item.end

    def _clean_value(self, element: _Element, *, stays: bool) -> None:
        old = self.data[element.begin : element.end]
        if element.vr == b"UI":
            new = self._new_uids(old)
        elif (stays and element.stays) or not old.strip(b" \0"):
            return
        elif element.tag == _PIXELS:
            raise ValueError("pixels inside a sequence")
        else:
            new = (b" " if element.vr in _TEXT else b"\0") * len(old)
        if new != old:
            self.data[element.begin : element.end] = new
            self.fields.add(element.name)

    def _new_uids(self, value: bytes) -> bytes:
        return b"\\".join(self._new_uid(uid) for uid in value.rstrip(b" \0").split(b"\\")).ljust(
            len(value), b"\0"
        )

    def _new_uid(self, uid: bytes) -> bytes:
        """Another UID, no longer than this one; one that DICOM defines stays.

        Raises:
            UnsupportedSlide: it is too short to be replaced by one of its own.
        """
        if not uid or uid.decode("ascii", "replace") in UID_dictionary:
            return uid
        digits = min(len(uid) - 5, 39)
        if digits < MIN_DIGITS:
            cause = f"has a UID of {len(uid)} characters, too few for another"
            raise UnsupportedSlide(
                self.slide, cause, "export it with UIDs of an organisation's own root"
            )
        low, high = (
            10 ** (digits - 1),
            min(10**digits, 2**128),
        )  # PS3.5 B.2: a number of 128 bits, no leading zero
        number = int.from_bytes(hashlib.sha256(b"acinus slide " + uid).digest())
        return b"2.25.%d" % (low + number % (high - low))


def _listed_vr(tag: int) -> bytes:
    """VR of an element that is stored without one."""
    return dictionary_VR(tag).split(" or ")[0].encode() if dictionary_has_tag(tag) else b"UN"
