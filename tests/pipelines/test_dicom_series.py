"""Which instances of a DICOM series are levels of one slide: a series may hold other regions,
copies and headers that other scanners write."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import generate_uid

from pipelines.slides import dicom
from pipelines.slides.errors import BrokenSlide, MissingResolution, UnsupportedSlide
from pipelines.slides.geometry import Point, Size
from pipelines.slides.opening import open_slide
from tests.support.dicom_slides import SERIES
from tests.support.tiff_slides import MPP

MORE = {
    "a smaller region": ((600, 300), 1.0, (0.0, 0.0), 1),
    "a region of nearly the same size": ((1010, 505), 1.0, (0.0, 0.0), 1),
    "a region of half the size": ((512, 256), 1.0, (0.0, 0.0), 1),
    "a region of another shape": ((768, 512), 1.0, (0.0, 0.0), 1),
    "a region of the same size elsewhere": ((1024, 512), 1.0, (10.0, 0.0), 1),
    "a coarser scan elsewhere": ((256, 128), 4.0, (10.0, 0.0), 1),
    "one more level": ((128, 64), 8.0, (0.0, 0.0), 0),
    "a level whose sizes are rounded": ((114, 56), 9.0, (0.002, 0.002), 0),
}
"""Size, scale, origin in mm of one more VOLUME instance, and further pictures it counts as."""


def change(path: Path, edit: Callable[[Dataset], object]) -> None:
    dataset = pydicom.dcmread(path)
    edit(dataset)
    dataset.save_as(path)


def pixels_of(width: int, height: int, seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)


@pytest.mark.parametrize("name", ["dicom-raw", "dicom-jpeg"])
@pytest.mark.parametrize("case", MORE)
def test_another_region_of_a_series_is_not_a_level(case: str, name: str, tmp_path: Path) -> None:
    size, scale, origin, further = MORE[case]
    folder, other = tmp_path / "series", tmp_path / "other"
    SERIES[name].write(folder, pixels_of(1024, 512, 1))
    SERIES[name].write(other, pixels_of(*size, 2))

    def place(dataset: Dataset) -> None:
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        measures = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
        measures.PixelSpacing = [MPP * scale / 1000] * 2
        corner = dataset.TotalPixelMatrixOriginSequence[0]
        corner.XOffsetInSlideCoordinateSystem, corner.YOffsetInSlideCoordinateSystem = origin

    change(other / "level-0.dcm", place)
    with open_slide(str(folder)) as slide:
        sizes = [level.size for level in slide.levels]
        pixels = slide.read_region(Point(0, 0), 0, Size(1024, 512))
    (other / "level-0.dcm").rename(folder / "another.dcm")
    with open_slide(str(folder)) as slide:
        if further:
            assert [level.size for level in slide.levels] == sizes
            remark = "holds 1 further picture that was not read"
            assert slide.remarks == (f"{remark} ({size[0]} x {size[1]} px)",)
        else:
            assert [level.size for level in slide.levels] == [*sizes, Size(*size)]
            assert slide.remarks == ()
        assert (slide.read_region(Point(0, 0), 0, Size(1024, 512)) == pixels).all()


def test_another_region_with_its_own_levels_is_not_read(tmp_path: Path) -> None:
    folder, other = tmp_path / "series", tmp_path / "other"
    SERIES["dicom-raw"].write(folder, pixels_of(1024, 512, 1))
    SERIES["dicom-raw"].write(other, pixels_of(900, 500, 2))
    for path in sorted(other.iterdir()):
        uid = generate_uid()
        change(path, lambda dataset, uid=uid: setattr(dataset, "SOPInstanceUID", uid))
        path.rename(folder / f"another-{path.name}")
    series = dicom.find_series(folder.as_uri())
    assert [volume.size.width for volume in series.volumes] == [1024, 512, 256]
    assert series.facts.remarks == (
        "holds 3 further pictures that were not read (the largest 900 x 500 px)",
    )


@pytest.mark.parametrize("levels", [("level-0",), ("level-0", "level-1", "level-2")])
@pytest.mark.parametrize(
    "elements",
    [
        {"PhotometricInterpretation": "YBR_FULL"},
        {"PhotometricInterpretation": "YBR_PARTIAL_420"},
        {"PlanarConfiguration": 1},
    ],
)
def test_raw_pixels_that_are_not_read_are_named(
    elements: dict[str, object], levels: tuple[str, ...], tmp_path: Path
) -> None:
    """Of level 0 alone too: without it the next one would be shown at its scale."""
    folder = tmp_path / "series"
    SERIES["dicom-raw"].write(folder, pixels_of(512, 256, 1))
    for name in levels:
        change(
            folder / f"{name}.dcm",
            lambda dataset: [setattr(dataset, *item) for item in elements.items()],
        )
    with pytest.raises(UnsupportedSlide, match="DICOM pixels of a kind that is not read") as raised:
        open_slide(str(folder))
    assert raised.value.code == "pixels"
    assert str(elements.get("PhotometricInterpretation", "in planes")) in raised.value.cause


@pytest.mark.parametrize("name", ["dicom-jpeg", "dicom-raw"])
def test_a_copied_file_of_a_series_is_read_once(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "series"
    SERIES[name].write(folder, pixels_of(512, 256, 1))
    with open_slide(str(folder)) as slide:
        identity = slide.identity
    copy = folder / "level-0 (1).dcm"
    shutil.copy2(folder / "level-0.dcm", copy)
    with open_slide(str(folder)) as slide:
        assert [level.size.width for level in slide.levels] == [512, 256, 128]
        assert slide.identity == identity
    change(copy, lambda dataset: setattr(dataset, "TotalPixelMatrixRows", 128))
    with pytest.raises(BrokenSlide, match=r"differ, level-0\.dcm and level-0 \(1\)\.dcm; delete"):
        open_slide(str(folder))


def per_frame(dataset: Dataset, spacings: list[float]) -> None:
    """Move PixelMeasures from the shared groups to each frame's."""
    del dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
    for k, group in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        measures = Dataset()
        measures.PixelSpacing = [spacings[k % len(spacings)]] * 2
        group.PixelMeasuresSequence = Items([measures])


@pytest.mark.parametrize("name", ["dicom-jpeg", "dicom-raw", "dicom-sparse"])
def test_a_series_without_dimension_organization_type_is_read(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "series"
    SERIES[name].write(folder, pixels_of(512, 256, 1))
    with open_slide(str(folder)) as slide:
        pixels = slide.read_region(Point(0, 0), 0, Size(512, 256))
    for path in folder.iterdir():
        change(path, lambda dataset: delattr(dataset, "DimensionOrganizationType"))
    with open_slide(str(folder)) as slide:
        assert (slide.read_region(Point(0, 0), 0, Size(512, 256)) == pixels).all()


@pytest.mark.parametrize(("spacings", "mpp"), [([0.0005], 0.5), ([0.0005, 0.001], None)])
def test_pixel_measures_of_each_frame_give_the_mpp(
    spacings: list[float], mpp: float | None, tmp_path: Path
) -> None:
    folder = tmp_path / "series"
    SERIES["dicom-sparse"].write(folder, pixels_of(512, 256, 1))
    change(folder / "level-0.dcm", lambda dataset: per_frame(dataset, spacings))
    with open_slide(str(folder)) as slide:
        if mpp is not None:
            assert slide.mpp == mpp
        else:
            with pytest.raises(MissingResolution, match="differs from frame to frame"):
                _ = slide.mpp
