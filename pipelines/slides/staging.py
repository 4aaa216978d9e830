"""Local copies of remote slides that can't be read in place: a bounded cache on disk.

Formats that only OpenSlide or wsidicom read are copied whole before their first pixel, and the
slide says so (`Slide.staged`). The folder may be a disk of the machine or a network directory that
many machines share.

A copy is used under a shared lock, made under an exclusive one, and appears under its name only
when it is complete. The copies used longest ago make room for new ones. Whoever makes one reserves
its bytes first, in the name of the folder it is made in; what a process that died left there is
removed when room is made. Names hold no file name of a slide: those can carry patient data.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from pipelines import storage
from pipelines.slides.errors import BrokenSlide, SlideNotFound, UnsupportedSlide
from pipelines.slides.source import SlideFile

DEFAULT_BYTES = 50 * 2**30
"""Of the cache: six slides of 8 GB."""


@dataclass(frozen=True, kw_only=True)
class StagingConfig:
    """Where copies are kept.

    Attributes:
        folder: of the cache (`ACINUS_STAGING`; by default in the system's folder for temporary
            files).
        max_bytes: that it may hold (`ACINUS_STAGING_BYTES`).

    Raises:
        ValueError: the number of bytes is not positive.
    """

    folder: Path
    max_bytes: int

    def __post_init__(self) -> None:
        if self.max_bytes < 1:
            raise ValueError(f"max_bytes is {self.max_bytes}; it must be at least 1")

    @classmethod
    def from_environment(cls) -> StagingConfig:
        """The configuration of this process.

        Raises:
            ValueError: ACINUS_STAGING_BYTES is not a number of bytes.
        """
        default = Path(tempfile.gettempdir()) / f"acinus-staging-{os.getuid()}"
        text = os.environ.get("ACINUS_STAGING_BYTES", "") or str(DEFAULT_BYTES)
        if not text.isdecimal() or not int(text):
            raise ValueError(f"ACINUS_STAGING_BYTES is {text!r}; it must be a number of bytes")
        folder = Path(os.environ.get("ACINUS_STAGING", "") or default).expanduser()
        return cls(folder=folder, max_bytes=int(text))


class LocalCopy:
    """Files of a slide on a local disk; `release` lets the cache remove them.

    Attributes:
        paths: as many as were asked for, in that order.
        staged: whether they are copies.
    """

    def __init__(self, paths: Sequence[Path], lock: IO[bytes] | None = None) -> None:
        self.paths, self.staged, self._lock = tuple(paths), lock is not None, lock

    def release(self) -> None:
        """Allow the copy to be removed."""
        if self._lock is not None:
            self._lock.close()


def local_copy(files: Sequence[SlideFile], config: StagingConfig | None = None) -> LocalCopy:
    """The files on a local disk: themselves where they are local, else copies.

    Raises:
        UnsupportedSlide: there is no room for the slide, or the cache can't be written.
        BrokenSlide: an object changed, ended or could not be read while it was copied.
        SlideNotFound: an object is gone.
    """
    local = [storage.local_path(file.uri) for file in files]
    if all(local):
        return LocalCopy([path for path in local if path is not None])
    try:
        config = config or StagingConfig.from_environment()
    except ValueError as error:
        cause = f"is read from a local copy only, and {error}"
        raise UnsupportedSlide(files[0].name, cause, "correct the environment") from None
    versions = "\n".join(f"{file.uri} {file.version}" for file in files)
    copy = config.folder / hashlib.sha256(versions.encode()).hexdigest()[:32]
    try:
        config.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = copy.with_suffix(".lock").open("ab")
        try:
            _hold(lock, copy, files, config)
        except BaseException:
            lock.close()
            raise
    except OSError as error:
        reason = error.strerror or type(error).__name__
        cause = f"can't be copied to the cache for slides that are read locally ({reason})"
        remedy = "check ACINUS_STAGING: its folder, permissions and free space"
        raise UnsupportedSlide(files[0].name, cause, remedy) from error
    return LocalCopy([copy / _member(k, file) for k, file in enumerate(files)], lock)


def _hold(lock: IO[bytes], copy: Path, files: Sequence[SlideFile], config: StagingConfig) -> None:
    """Have the copy under a shared lock, making it if there is none."""
    fcntl.flock(lock, fcntl.LOCK_SH)
    while not copy.is_dir():
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not copy.is_dir():  # another process may have made it while this one waited
            _fill(copy, files, config)
        # Not in one step: the copy may be removed before the lock is held again.
        fcntl.flock(lock, fcntl.LOCK_SH)
    os.utime(copy)


def _member(k: int, file: SlideFile) -> str:
    return f"{k:04d}{PurePosixPath(file.name).suffix.lower()}"


def _fill(copy: Path, files: Sequence[SlideFile], config: StagingConfig) -> None:
    companions = [
        (k, uri)
        for k, file in enumerate(files)
        if file.name.lower().endswith(".mrxs")
        for uri in _mirax_parts(file)
    ]
    sizes = [file.size for file in files] + [SlideFile.find(uri).size for _, uri in companions]
    if sum(sizes) > config.max_bytes:
        cause = (
            f"is read from a local copy only, and its {sum(sizes):,} bytes are more than the "
            f"{config.max_bytes:,} of the cache"
        )
        remedy = "raise ACINUS_STAGING_BYTES or convert it to a tiled TIFF"
        raise UnsupportedSlide(files[0].name, cause, remedy)
    part = _reserve(copy, files[0].name, sum(sizes), config)
    try:
        for k, file in enumerate(files):
            _download(file.uri, file.size, part / _member(k, file))
        for (k, uri), size in zip(companions, sizes[len(files) :], strict=True):
            _download(uri, size, part / f"{k:04d}" / storage.object_name(uri))
        part.rename(copy)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _mirax_parts(file: SlideFile) -> list[str]:
    """A MIRAX slide is an index file and a folder of the same name with its data."""
    return storage.list_uris(file.uri[: -len(".mrxs")])


def _download(uri: str, size: int, target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    try:
        with target.open("wb") as sink:
            for chunk in storage.stream_bytes(uri):
                sink.write(chunk)
    except (storage.ObjectNotFound, storage.AccessDenied):
        raise SlideNotFound(
            storage.object_name(uri),
            "is no longer in the store or may not be read",
            "check the URI",
        ) from None
    except storage.StorageError as error:
        cause = f"can't be copied from the store ({type(error).__name__})"
        raise BrokenSlide(
            storage.object_name(uri), cause, "check the connection and try again"
        ) from None
    storage.count_read(1, target.stat().st_size, size)
    if target.stat().st_size != size:
        raise BrokenSlide(
            storage.object_name(uri),
            "changed while it was copied",
            "try again when its upload is complete",
        )


def _reserve(copy: Path, name: str, needed: int, config: StagingConfig) -> Path:
    """A folder to make a copy of `needed` bytes in; its name reserves them.

    The copies used longest ago make room if nobody uses them.

    Raises:
        UnsupportedSlide: what is in use leaves too little room.
    """
    with (config.folder / "room.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        held = _held(copy.name, config.folder)
        for other in [folder for folder in held if ".part-" not in folder.name]:
            full = sum(held.values()) + needed > config.max_bytes
            if full and _remove_unused(other, other.name):
                del held[other]
        if sum(held.values()) + needed > config.max_bytes:
            cause = (
                f"needs {needed:,} bytes in the cache, where slides in use have "
                f"{sum(held.values()):,} of {config.max_bytes:,}"
            )
            remedy = "try again when they are done, or raise ACINUS_STAGING_BYTES"
            raise UnsupportedSlide(name, cause, remedy)
        return Path(tempfile.mkdtemp(prefix=f"{copy.name}.part-{needed}-", dir=config.folder))


def _held(own_key: str, cache: Path) -> dict[Path, int]:
    """Bytes of each copy, made or being made, oldest use first.

    What processes that died left is removed.
    """
    held: dict[Path, int] = {}
    for folder in sorted(cache.iterdir(), key=_last_use):
        key, _, reserved = folder.name.partition(".part-")
        if reserved and (key == own_key or _remove_unused(folder, key)):
            shutil.rmtree(folder, ignore_errors=True)
        elif folder.is_dir():
            held[folder] = int(reserved.partition("-")[0]) if reserved else _size(folder)
    return held


def _remove_unused(folder: Path, key: str) -> bool:
    """Remove a folder unless a process holds the lock of its copy; returns whether it is gone."""
    with (folder.parent / f"{key}.lock").open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        shutil.rmtree(folder, ignore_errors=True)
    return True


def _size(copy: Path) -> int:
    return sum(path.stat().st_size for path in copy.rglob("*") if path.is_file())


def _last_use(copy: Path) -> float:
    try:
        return copy.stat().st_mtime
    except FileNotFoundError:  # renamed or removed in between
        return 0.0
