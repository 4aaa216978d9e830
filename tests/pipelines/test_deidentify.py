"""De-identified copies: names and glass labels are gone from the bytes, pixels stay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openslide
import pydicom
import pytest
import tifffile

from pipelines.slides.deidentify import deidentify
from pipelines.slides.errors import BrokenSlide, UnsupportedSlide
from pipelines.slides.slide import open_slide
from tests.shared_data import needs_shared_data, shared_data


def test_svs_loses_names_and_labels(generated_slide: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.svs"
    with tifffile.TiffFile(generated_slide) as tiff:
        label = next(page for page in tiff.pages if "label" in str(page.description))
        label_bytes = generated_slide.read_bytes()[label.dataoffsets[0] :][: label.databytecounts[0]]
    assert b"DOE^JANE" in generated_slide.read_bytes()
    report = deidentify(generated_slide, copy)
    assert report.images == ("label", "macro")
    assert set(report.fields) == {"Date", "Filename", "User"}
    content = copy.read_bytes()
    for secret in (b"DOE", b"JANE", b"01/02/24", b"technician", label_bytes, label_bytes[100:200]):
        assert secret not in content
    with openslide.OpenSlide(copy) as handle:
        assert set(handle.associated_images) == {"thumbnail"}
    with open_slide(str(generated_slide)) as before, open_slide(str(copy)) as after:
        assert (before.mpp, before.levels, before.vendor) == (after.mpp, after.levels, after.vendor)
        np.testing.assert_array_equal(before.thumbnail(700), after.thumbnail(700))


def test_the_copy_is_always_the_same(generated_slide: Path, tmp_path: Path) -> None:
    for name in ("a.svs", "b.svs"):
        deidentify(generated_slide, tmp_path / name)
    assert (tmp_path / "a.svs").read_bytes() == (tmp_path / "b.svs").read_bytes()


def test_a_label_behind_a_broken_chain_is_not_let_through(generated_slide: Path, tmp_path: Path) -> None:
    content = bytearray(generated_slide.read_bytes())
    with tifffile.TiffFile(generated_slide) as tiff:
        page = next(page for page in tiff.pages if "label" in str(page.description))
        before = tiff.pages[page.index - 1]
        end = before.offset + 2 + len(before.tags) * 12
    content[end : end + 4] = (len(content) + 8).to_bytes(4, "little")
    broken = tmp_path / "broken.svs"
    broken.write_bytes(content)
    with pytest.raises(BrokenSlide, match="truncated"):
        deidentify(broken, tmp_path / "copy.svs")
    assert not (tmp_path / "copy.svs").exists()


def test_what_cannot_be_cleaned_is_not_taken(tmp_path: Path) -> None:
    odd = tmp_path / "odd.mrxs"
    odd.write_bytes(b"\xff\xd8\xff" + b"\0" * 1000)
    with pytest.raises(UnsupportedSlide, match="de-identified"):
        deidentify(odd, tmp_path / "copy")


@needs_shared_data
@pytest.mark.parametrize(
    ("name", "secrets"),
    [
        ("wsi/CMU-1-Small-Region.svs", [b"CPAPERIOCS", b"12/29/09", b"Barcode", b"User ="]),
        ("wsi/hamamatsu_test3-DAPI-2-387.ndpi", [b"2014", b"2013"]),
        ("wsi/OS-2-ndpi.ome.tif", [b"<Description", b"AcquisitionDate"]),
    ],
)
def test_real_tiffs(tmp_path: Path, name: str, secrets: list[bytes]) -> None:
    folder = shared_data()
    assert folder is not None
    copy = tmp_path / Path(name).name
    deidentify(folder / name, copy)
    with tifffile.TiffFile(copy) as tiff:
        texts = b"".join(tag.value.encode() for page in tiff.pages for tag in page.tags.values() if isinstance(tag.value, str))
    assert not [secret for secret in secrets if secret in texts]
    with open_slide(str(folder / name)) as before, open_slide(str(copy)) as after:
        assert (before.mpp, before.levels) == (after.mpp, after.levels)
        np.testing.assert_array_equal(before.thumbnail(400), after.thumbnail(400))


@needs_shared_data
def test_dicom_series(tmp_path: Path) -> None:
    folder = shared_data()
    assert folder is not None
    report = deidentify(folder / "dicom" / "cytomine_wsi", tmp_path / "copy")
    assert set(report.images) == {"label", "overview"}
    kept = [pydicom.dcmread(path) for path in sorted((tmp_path / "copy").iterdir())]
    assert len(kept) == 2
    assert all(not dataset.get("PatientName") and not dataset.get("DeviceSerialNumber") for dataset in kept)
    assert open_slide(str(tmp_path / "copy")).mpp == 0.499
