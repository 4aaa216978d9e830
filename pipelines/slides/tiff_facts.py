"""What the metadata of a TIFF say of a slide: vendor, mpp, objective, scanner, ICC profile.

Specs: TIFF 6.0 (XResolution, ResolutionUnit), Aperio SVS (ImageDescription
`Aperio ...|AppMag = 20|MPP = 0.4990`), OME-XML (`PhysicalSizeX`, OME 2016-06), Philips TIFF as
OpenSlide documents it.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import tifffile

from pipelines.slides.resolution import RecordedMpp, is_scan, positive_number
from pipelines.slides.slide import SlideFacts

_UNIT_OF_TAGS = {2: 25_400.0, 3: 10_000.0}
"""Micrometres of TIFF's ResolutionUnit: inch and centimetre."""


def tiff_facts(
    tiff: tifffile.TiffFile, base: tifffile.TiffPage, remarks: tuple[str, ...]
) -> SlideFacts:
    """What an SVS, OME-TIFF or generic TIFF says of the picture `base`; `remarks` are passed on."""
    description = str(base.description or "")
    if description.startswith("Aperio"):
        return _aperio_facts(description, _icc(base), remarks)
    if tiff.is_ome:
        return _ome_facts(ET.fromstring(tiff.ome_metadata or ""), base, remarks)
    return SlideFacts(
        vendor="generic-tiff",
        mpp=_mpp_of_tags(base),
        scanner=_maker(base),
        icc=_icc(base),
        remarks=remarks,
    )


def philips_facts(base: tifffile.TiffPage) -> tuple[SlideFacts, list[float]]:
    """What the XML in ImageDescription says, and the pixel spacing of every level in mm.

    Raises:
        ValueError: the XML is not that of one whole-slide image.
    """
    root = ET.fromstring(str(base.description))
    scans = [
        scan
        for scan in root.iterfind(".//DataObject[@ObjectType='DPScannedImage']")
        if "WSI" in _philips_values(scan, "PIM_DP_IMAGE_TYPE")
    ]
    if len(scans) != 1:
        raise ValueError(f"{len(scans)} whole-slide images in one file")
    levels = scans[0].iterfind(".//DataObject[@ObjectType='PixelDataRepresentation']")
    texts = [_philips_values(level, "DICOM_PIXEL_SPACING")[0] for level in levels]
    own = scans[0].find("Attribute[@Name='DICOM_PIXEL_SPACING']")  # those of the levels are rounded
    model = [
        text
        for name in ("DICOM_MANUFACTURER", "DICOM_MANUFACTURERS_MODEL_NAME")
        for text in _philips_values(root, name)[:1]
    ]
    facts = SlideFacts(
        vendor="philips",
        mpp=_philips_mpp(texts[0] if own is None else own.text or ""),
        scanner=" ".join(model),
        icc=_icc(base),
    )
    return facts, [float(_spacing_texts(text)[1]) for text in texts]


def _icc(page: tifffile.TiffPage) -> bytes:
    return bytes(page.tags.valueof(34675, default=b""))


def _maker(page: tifffile.TiffPage) -> str:
    names = [str(page.tags.valueof(name, default="")).strip() for name in ("Make", "Model")]
    return " ".join(names).strip()


def _mpp_of_tags(page: tifffile.TiffPage) -> RecordedMpp:
    """From XResolution and YResolution.

    Two values outside what a scanner makes (72 dpi and the like) are a printing resolution.
    """
    unit = _UNIT_OF_TAGS.get(int(page.tags.valueof("ResolutionUnit", default=1)))
    axes = []
    for name in ("XResolution", "YResolution"):
        numerator, denominator = page.tags.valueof(name, default=(0, 1))
        axes.append(unit * denominator / numerator if unit and numerator and denominator else None)
    if not any(mpp and is_scan(mpp) for mpp in axes):
        return RecordedMpp()
    return RecordedMpp(x=axes[0], y=axes[1])


def _aperio_facts(description: str, icc: bytes, remarks: tuple[str, ...]) -> SlideFacts:
    found = dict(re.findall(r"\|\s*(MPP|AppMag|ScannerType)\s*=\s*([^|]*)", description))
    mpp = found.get("MPP")
    return SlideFacts(
        vendor="aperio",
        mpp=RecordedMpp.of_text(mpp, mpp, units=("um", "um")),
        objective=positive_number(found.get("AppMag")),
        scanner=f"Aperio {found.get('ScannerType', '').strip()}".strip(),
        icc=icc,
        remarks=remarks,
    )


def _ome_facts(root: ET.Element, base: tifffile.TiffPage, remarks: tuple[str, ...]) -> SlideFacts:
    """What OME-XML says of the image that `base` shows; if it says two things, neither counts."""
    shown = _ome_images(root, base)
    used = {of.get("ID") for image in shown for of in image.iterfind("{*}ObjectiveSettings")}
    objectives = [of for of in root.iterfind(".//{*}Objective") if not used or of.get("ID") in used]
    maker = _maker(base)
    for microscope in root.iterfind(".//{*}Microscope"):
        names = f"{microscope.get('Manufacturer', '')} {microscope.get('Model', '')}"
        maker = maker or names.strip()
    recorded = {_ome_mpp(pixels) for image in shown for pixels in image.iterfind("{*}Pixels")}
    powers = {positive_number(of.get("NominalMagnification")) for of in objectives}
    return SlideFacts(
        vendor="ome-tiff",
        mpp=recorded.pop() if len(recorded) == 1 else RecordedMpp(),
        objective=powers.pop() if len(powers) == 1 else None,
        scanner=maker,
        icc=_icc(base),
        remarks=remarks,
    )


def _ome_images(root: ET.Element, base: tifffile.TiffPage) -> list[ET.Element]:
    """Images that `base` can be: those of its size; of several, those that name its directory."""
    size = {"SizeX": str(base.imagewidth), "SizeY": str(base.imagelength)}
    fitting = [
        image
        for image in root.iterfind("{*}Image")
        if any(
            all(pixels.get(side, own) == own for side, own in size.items())
            for pixels in image.iterfind("{*}Pixels")
        )
    ]
    named = [
        image
        for image in fitting
        if any(_names(data, base.index) for data in image.iterfind("{*}Pixels/{*}TiffData"))
    ]
    return named if len(fitting) > 1 and named else fitting


def _names(data: ET.Element, directory: int) -> bool:
    """Whether a TiffData element names a directory."""
    first = data.get("IFD")
    return first is not None and 0 <= directory - int(first) < int(data.get("PlaneCount", "1"))


def _ome_mpp(pixels: ET.Element) -> RecordedMpp:
    units = (pixels.get("PhysicalSizeXUnit", "µm"), pixels.get("PhysicalSizeYUnit", "µm"))
    return RecordedMpp.of_text(
        pixels.get("PhysicalSizeX"), pixels.get("PhysicalSizeY"), units=units
    )


def _philips_values(element: ET.Element, name: str) -> list[str]:
    return [found.text or "" for found in element.iterfind(f".//Attribute[@Name='{name}']")]


def _spacing_texts(text: str) -> list[str]:
    """The two numbers of `"0.000227" "0.000227"`: spacing of rows, then of columns, in mm."""
    return text.replace('"', " ").split()


def _philips_mpp(text: str) -> RecordedMpp:
    rows, columns = [*_spacing_texts(text), "", ""][:2]
    return RecordedMpp.of_text(columns, rows or columns, units=("mm", "mm"))
