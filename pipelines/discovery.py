"""Slides by location: all that are below a folder or an S3 prefix, or those that a pattern names.

Only files with a suffix of a slide count, such as those of `slides/**/*.svs`. The files of a DICOM
series stand for their folder, which is one slide; if they have no suffix or a number, the first of
a folder is looked into. Hidden files and folders are not looked at:
`._a.svs` is not a slide but what macOS keeps about one. Files that look like slides but can't be
read are reported.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import unquote

from pipelines import storage
from pipelines.slides import formats
from pipelines.slides.source import is_dicom
from pipelines.summary import by_reason

SUFFIXES = formats.suffixes(files=("one", "several"))
"""Of slides in one file, or of the file to open if a slide has several."""
DICOM_SUFFIXES = formats.suffixes(files=("folder",))
MAX_LOOKED_INTO = 500
"""Folders of files without suffix of which one file is read: hospitals' DICOM often has none."""
_OF_SYSTEMS = frozenset({"$recycle.bin", "__macosx", "lost+found", "system volume information"})
"""Folders that systems keep on a disk; in them are deleted slides, or halves of files."""


@dataclass(frozen=True, kw_only=True)
class PassedOver:
    """A file or folder that may hold a slide and is not used.

    Attributes:
        name: its name, without folders.
        reason: why, for all files with the same reason.
    """

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Discovery:
    """What is at a location.

    Attributes:
        slides: URIs, sorted.
        passed_over: what else looks like a slide.
        root: URI of the folder that was looked through.
    """

    slides: tuple[str, ...]
    passed_over: tuple[PassedOver, ...] = ()
    root: str = ""


def is_pattern(location: str) -> bool:
    """Whether a path or URI names several slides: `*` and `**` are its only wildcards."""
    return "*" in location


def discover(location: str) -> Discovery:
    """The slides at a location; none if there is nothing.

    Args:
        location: folder, S3 prefix, one slide, or a pattern: `*` is any part of a name, `**` any
            folders. A pattern does not distinguish small and capital letters: scanners write `.SVS`
            too.

    Raises:
        StorageError: the store can't be listed.
    """
    uri = storage.as_uri(location).rstrip("/")
    if not is_pattern(uri) and storage.exists(uri):  # opening it says whether it is a slide
        return Discovery(slides=(uri,), root=uri.rpartition("/")[0])
    root = uri.split("*", 1)[0].rpartition("/")[0] if is_pattern(uri) else uri
    wanted = _matcher(uri if is_pattern(uri) else f"{uri}/**")
    slides, passed_over = set(), dict[str, PassedOver]()
    unnamed = dict[str, str]()

    def pass_over(uri: str, reason: str) -> None:
        passed_over.setdefault(uri, PassedOver(name=storage.object_name(uri), reason=reason))

    def unreadable(folder: str) -> None:
        pass_over(folder, "folders that may not be read; check their permissions")

    def special(uri: str) -> None:
        if reason := _why_special(uri, root, wanted):
            pass_over(uri, reason)

    for file in storage.list_uris(root, on_unreadable=unreadable, on_special=special):
        path = unquote(file)
        if _is_hidden(path[len(unquote(root)) :]):
            continue
        if unquote(storage.object_name(file)).upper() == "DICOMDIR":  # the index of a disc
            continue
        suffix = _suffix(file)
        folder = file.rpartition("/")[0]
        if suffix in SUFFIXES and wanted.fullmatch(path):
            slides.add(file)
        elif suffix in DICOM_SUFFIXES:
            if wanted.fullmatch(path) or wanted.fullmatch(unquote(folder)):
                slides.add(folder)
        elif wanted.fullmatch(path) and (reason := _why_not_read(file)):
            pass_over(file, reason)
        elif (zarr := _zarr_folder(file, root)) and (
            wanted.fullmatch(path) or wanted.fullmatch(unquote(zarr))
        ):
            pass_over(zarr, _why_not_read(zarr))
        elif re.fullmatch(r"|\.\d+", suffix) and (
            wanted.fullmatch(path) or wanted.fullmatch(unquote(folder))
        ):
            unnamed.setdefault(folder, file)
    candidates = [folder for folder in unnamed if folder not in slides]
    slides |= {folder for folder in candidates[:MAX_LOOKED_INTO] if _is_dicom(unnamed[folder])}
    for folder in candidates[MAX_LOOKED_INTO:]:
        pass_over(folder, "folders of files without suffix; list them if they are DICOM")
    found = tuple(passed_over.values())
    return Discovery(slides=tuple(sorted(slides)), passed_over=found, root=root)


def passed_over_summary(passed_over: tuple[PassedOver, ...]) -> str:
    """What was skipped, by reason, in one line; empty if nothing was."""
    reasons = by_reason((file.reason, file.name) for file in passed_over)
    return "; ".join(f"{names}: {reason}" for reason, names in reasons)


def _is_dicom(file: str) -> bool:
    try:
        return is_dicom(storage.read_head(file, 132).data)
    except storage.StorageError:
        return False


def _why_not_read(uri: str) -> str:
    """Why a file that may hold a slide is not read; empty if nothing says that it may."""
    suffix = _suffix(uri)
    if known := formats.NOT_READ.get(suffix):
        return f"{known} can't be read; convert it to OME-TIFF or DICOM"
    inner = _suffix(uri.removesuffix(PurePosixPath(uri).suffix))
    packed = {*SUFFIXES, *DICOM_SUFFIXES, *formats.ARCHIVES, *formats.NOT_READ}
    if suffix in formats.ARCHIVES or (suffix in formats.COMPRESSED and inner in packed):
        return "packed files; unpack them if they hold slides"
    return ""


def _why_special(uri: str, root: str, wanted: re.Pattern[str]) -> str:
    """Why a name that is neither of a file nor of a folder is not read; empty if not a slide's.

    A link without suffix may have led to a folder of slides.
    """
    path, disk_path = unquote(uri), storage.local_path(uri)
    if _is_hidden(path[len(unquote(root)) :]) or not wanted.fullmatch(path):
        return ""
    is_link = disk_path is not None and disk_path.is_symlink()
    suffix = _suffix(uri)
    if suffix not in SUFFIXES | DICOM_SUFFIXES and not (is_link and not suffix):
        return ""
    if is_link:
        return "links that lead nowhere; restore what they lead to, or delete them"
    return "pipes or devices, not files"


def _zarr_folder(file: str, root: str) -> str:
    """The folder that is one Zarr image, if the file is within one."""
    parts = file[len(root) :].split("/")
    for k, part in enumerate(parts[:-1]):
        if _suffix(part) == ".zarr":
            return root + "/".join(parts[: k + 1])
    return ""


def _suffix(uri: str) -> str:
    return PurePosixPath(unquote(uri)).suffix.lower().strip()


def _is_hidden(path: str) -> bool:
    parts = PurePosixPath(path.lstrip("/")).parts
    return any(part.startswith(".") or part.lower() in _OF_SYSTEMS for part in parts)


def _matcher(pattern: str) -> re.Pattern[str]:
    """`**/` is any number of folders, `*` any characters but `/`."""
    parts = re.split(r"(\*\*/|\*+)", unquote(pattern))
    meaning = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*"}
    return re.compile(
        "".join(meaning.get(part) or re.escape(part) for part in parts), re.IGNORECASE | re.DOTALL
    )
