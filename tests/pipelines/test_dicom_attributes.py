"""De-identified DICOM: values that are not listed are gone at any depth, UIDs are others, pixels
stay."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items

from pipelines.slides import dicom_attributes
from pipelines.slides.deidentify import deidentify
from pipelines.slides.errors import BrokenSlide, UnsupportedSlide
from pipelines.slides.opening import open_slide
from tests.pipelines.test_deidentify import NAME, assert_same_pixels, content
from tests.support.shared_data import needs_shared_data, shared_data


def series_with(
    folder: Path, small_slide: Callable[[str], Path], change: Callable[[Dataset], None], name: str
) -> Path:
    """A copy of a small series, each of whose files was changed."""
    folder.mkdir()
    for path in sorted(small_slide(name).iterdir()):
        dataset = pydicom.dcmread(path)
        change(dataset)
        dataset.save_as(folder / path.name)
    return folder


PLANTED_ATTRIBUTES = {
    **dict.fromkeys(
        ("PatientName", "OtherPatientNames", "PerformingPhysicianName", "PatientMotherBirthName"),
        "Doe^Jane",
    ),
    **dict.fromkeys(
        ("PatientComments", "RequestingPhysician", "SeriesDescription", "PatientTelephoneNumbers"),
        "Doe^Jane",
    ),
    **dict.fromkeys(
        ("ImageComments", "IssuerOfPatientID", "DeviceSerialNumber", "StationName", "TextValue"),
        "Doe^Jane",
    ),
    **dict.fromkeys(
        ("ScheduledProcedureStepDescription", "LabelText", "BarcodeValue", "AccessionNumber"),
        "Doe^Jane",
    ),
    **dict.fromkeys(
        ("InstanceCreationDate", "AcquisitionDate", "PatientBirthDate", "StudyDate"), "19991231"
    ),
    **dict.fromkeys(("InstanceCreationTime", "AcquisitionTime"), "235911.123456"),
    **dict.fromkeys(("AcquisitionDateTime", "StartAcquisitionDateTime"), "19991231235911"),
    **{"PatientAge": "087Y", "PatientWeight": "87.654321", "RetrieveURL": "https://x/19991231"},
}
SECRETS = (b"Doe^Jane", b"19991231", b"235911", b"087Y", b"87.654321")


@pytest.mark.parametrize("depth", ["top", "sequence", "kept-sequence"])
@pytest.mark.parametrize("keyword", PLANTED_ATTRIBUTES)
def test_attributes_that_are_not_listed_lose_their_values(
    tmp_path: Path, small_slide: Callable[[str], Path], keyword: str, depth: str
) -> None:
    def plant(dataset: Dataset) -> None:
        target = dataset
        if depth == "sequence":
            inner = Dataset()
            inner.ReferencedRequestSequence = Items([target := Dataset()])
            dataset.RequestAttributesSequence = Items([inner])
        elif depth == "kept-sequence":
            target = dataset.OpticalPathSequence[0]
        setattr(target, keyword, PLANTED_ATTRIBUTES[keyword])

    source = series_with(tmp_path / "series", small_slide, plant, "dicom-raw")
    report = deidentify(source, tmp_path / "copy")
    assert keyword in report.fields
    assert any(secret in content(source) for secret in SECRETS)
    assert not any(secret in content(tmp_path / "copy") for secret in SECRETS)
    for one, other in zip(
        sorted(source.iterdir()), sorted((tmp_path / "copy").iterdir()), strict=True
    ):
        assert one.stat().st_size == other.stat().st_size
        dataset = pydicom.dcmread(other)
        found = [element for element in dataset.iterall() if element.keyword == keyword]
        assert found
        assert not any(str(element.value or "").strip() for element in found)


def private(dataset: Dataset) -> None:
    block = dataset.private_block(0x3021, "Doe^Jane", create=True)
    block.add_new(1, "LT", "Doe^Jane")
    block.add_new(2, "UN", b"Doe^Jane")
    block.add_new(3, "SQ", Items([Dataset()]))
    block[3].value[0].PatientComments = "Doe^Jane"


def coded(dataset: Dataset) -> None:
    """A listed attribute in a sequence that is not; neither sequence nor item has a length."""
    dataset.RequestAttributesSequence = Items([Dataset()])
    dataset.RequestAttributesSequence[0].CodeMeaning = "Doe^Jane"
    dataset.RequestAttributesSequence[0].is_undefined_length_sequence_item = True
    dataset["RequestAttributesSequence"].is_undefined_length = True


def preamble(dataset: Dataset) -> None:
    assert isinstance(dataset, pydicom.FileDataset)
    dataset.preamble = b"II*\0 Doe^Jane".ljust(128, b"\0")


def wrong_vr(dataset: Dataset) -> None:
    dataset.add_new(0x00281052, "LO", "Doe^Jane")  # RescaleIntercept, which stays where it is a DS


def file_meta(dataset: Dataset) -> None:
    dataset.file_meta.ImplementationVersionName = dataset.file_meta.SourceApplicationEntityTitle = (
        "Doe^Jane"
    )


def behind_the_pixels(dataset: Dataset) -> None:
    dataset.add_new(0xFFFCFFFC, "OB", b"Doe^Jane")


@pytest.mark.parametrize("name", ["dicom-raw", "dicom-jpeg", "dicom-sparse", "dicom-jpeg-extended"])
@pytest.mark.parametrize(
    "plant", [private, coded, preamble, wrong_vr, file_meta, behind_the_pixels]
)
def test_names_hide_nowhere_else_in_dicom(
    tmp_path: Path, small_slide: Callable[[str], Path], plant: Callable[[Dataset], None], name: str
) -> None:
    source = series_with(tmp_path / "series", small_slide, plant, name)
    report = deidentify(source, tmp_path / "copy")
    assert NAME in content(source)
    assert NAME not in content(tmp_path / "copy")
    assert not any("Doe" in field for field in report.fields)
    assert_same_pixels(source, tmp_path / "copy")


def test_implicit_vr_is_cleaned_too(tmp_path: Path, small_slide: Callable[[str], Path]) -> None:
    folder = tmp_path / "series"
    folder.mkdir()
    for path in sorted(small_slide("dicom-raw").iterdir()):
        dataset = pydicom.dcmread(path)
        private(dataset)
        dataset.PatientName = dataset.ImageComments = "Doe^Jane"
        dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2"
        dataset["PixelData"].VR = "OW"
        dataset.save_as(folder / path.name, implicit_vr=True, little_endian=True)
    deidentify(folder, tmp_path / "copy")
    assert NAME in content(folder)
    assert NAME not in content(tmp_path / "copy")
    assert_same_pixels(folder, tmp_path / "copy")


def test_a_sequence_of_unknown_vr_is_cleaned(
    tmp_path: Path, small_slide: Callable[[str], Path]
) -> None:
    source = series_with(tmp_path / "series", small_slide, lambda dataset: None, "dicom-raw")
    unknown = struct.pack(
        "<HH2sHI", 0x7FE1, 0x1001, b"UN", 0, 0xFFFFFFFF
    )  # without a length, what it holds is implicit VR
    item = struct.pack("<HHIHHI8s", 0xFFFE, 0xE000, 16, 0x0010, 0x4000, 8, NAME)
    with (source / "level-0.dcm").open("ab") as stream:
        stream.write(unknown + item + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0))
    assert "PatientComments" in deidentify(source, tmp_path / "copy").fields
    assert NAME not in content(tmp_path / "copy")
    assert_same_pixels(source, tmp_path / "copy")


def test_uids_are_others_and_a_series_still_belongs_together(
    tmp_path: Path, small_slide: Callable[[str], Path]
) -> None:
    def refer(dataset: Dataset) -> None:
        dataset.ReferencedImageSequence = Items([Dataset()])
        dataset.ReferencedImageSequence[0].ReferencedSOPInstanceUID = dataset.SOPInstanceUID
        dataset.ReferencedImageSequence[0].ReferencedSOPClassUID = dataset.SOPClassUID

    source = series_with(tmp_path / "series", small_slide, refer, "dicom-jpeg")
    deidentify(source, tmp_path / "copy")
    names = ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID")
    before, after = (
        [pydicom.dcmread(path) for path in sorted(at.iterdir())]
        for at in (source, tmp_path / "copy")
    )
    assert not any(
        str(one[name].value).encode() in content(tmp_path / "copy")
        for one in before
        for name in names
    )
    for one, other in zip(before, after, strict=True):
        assert all(
            other[name].value.is_valid and other[name].value.startswith("2.25.") for name in names
        )
        assert all(int(other[name].value[5:]) < 2**128 for name in names)
        assert other.file_meta.MediaStorageSOPInstanceUID == other.SOPInstanceUID
        assert other.ReferencedImageSequence[0].ReferencedSOPInstanceUID == other.SOPInstanceUID
        assert (
            other.ReferencedImageSequence[0].ReferencedSOPClassUID
            == other.SOPClassUID
            == one.SOPClassUID
        )
        assert other.file_meta.TransferSyntaxUID == one.file_meta.TransferSyntaxUID
    assert len({other.SOPInstanceUID for other in after}) == len(after)
    assert len({other.SeriesInstanceUID for other in after}) == 1
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(source / "level-1.dcm", alone)
    deidentify(alone, tmp_path / "alone-copy")
    assert content(tmp_path / "alone-copy") == content(tmp_path / "copy" / "0001.dcm")


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("SOPClassUID", "1.2.840.10008.5.1.4.1.1.66.4"),
        ("SpecimenLabelInImage", "YES"),
        ("BurnedInAnnotation", "YES"),
        ("ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER", "NONE"]),
    ],
)
def test_files_that_do_not_show_the_specimen_alone_are_left_out(
    tmp_path: Path, small_slide: Callable[[str], Path], keyword: str, value: str
) -> None:
    def one(dataset: Dataset) -> None:
        if dataset.ImageType[3] != "NONE":
            setattr(dataset, keyword, value)

    source = series_with(tmp_path / "series", small_slide, one, "dicom-jpeg")
    report = deidentify(source, tmp_path / "copy")
    assert len(report.images) == 2
    assert len(list((tmp_path / "copy").iterdir())) == 1


def cut(folder: Path) -> None:
    path = sorted(folder.iterdir())[0]
    path.write_bytes(path.read_bytes()[:-200])


def without_group_length(folder: Path) -> None:
    path = sorted(folder.iterdir())[0]
    data = path.read_bytes()
    path.write_bytes(data[:132] + data[144:])


def test_a_uid_that_leaves_no_room_is_refused(
    tmp_path: Path, small_slide: Callable[[str], Path]
) -> None:
    def shorten(dataset: Dataset) -> None:
        dataset.StudyInstanceUID = "1.2.3"

    source = series_with(tmp_path / "series", small_slide, shorten, "dicom-raw")
    with pytest.raises(UnsupportedSlide, match="UID of 5 characters"):
        deidentify(source, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("damage", [cut, without_group_length])
def test_damaged_dicom_is_refused(
    tmp_path: Path, small_slide: Callable[[str], Path], damage: Callable[[Path], None]
) -> None:
    source = series_with(tmp_path / "series", small_slide, lambda dataset: None, "dicom-jpeg")
    damage(source)
    with pytest.raises(BrokenSlide):
        deidentify(source, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_the_list_names_attributes_of_dicom() -> None:
    assert all(
        pydicom.datadict.tag_for_keyword(keyword) for keyword in dicom_attributes.KEPT_KEYWORDS
    )


@needs_shared_data
def test_dicom_series(tmp_path: Path) -> None:
    folder = shared_data()
    assert folder is not None
    report = deidentify(folder / "dicom" / "cytomine_wsi", tmp_path / "copy")
    assert set(report.images) == {"label", "overview"}
    kept = [pydicom.dcmread(path) for path in sorted((tmp_path / "copy").iterdir())]
    assert len(kept) == 2
    assert all(
        not dataset.get("PatientName") and not dataset.get("DeviceSerialNumber") for dataset in kept
    )
    assert open_slide(str(tmp_path / "copy")).mpp == 0.499
