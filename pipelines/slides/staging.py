"""Local copies of remote slides that can't be read in place: a bounded cache on disk.

Formats that only OpenSlide or wsidicom read are copied whole before their first pixel; a slide read so says it (`Slide.staged`).
The folder may be a disk of the machine or a network directory that many machines share. A copy is used under a shared lock, made
under an exclusive one, and appears under its name only when it is complete; the copies used longest ago make room for new ones.
Names hold no file name of a slide: those can carry patient data.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

import obstore

from pipelines import storage
from pipelines.slides.errors import BrokenSlide, UnsupportedSlide
from pipelines.slides.slide import SlideFile, slide_name


@dataclass(frozen=True, kw_only=True)
class StagingConfig:
    """Where copies lie.

    Attributes:
        folder: of the cache (`ACINUS_STAGING`; by default below the system's folder for temporary files).
        most: bytes that it may hold (`ACINUS_STAGING_BYTES`).
    """

    folder: Path
    most: int

    @classmethod
    def from_environment(cls) -> StagingConfig:
        """The configuration of this process."""
        default = Path(tempfile.gettempdir()) / f"acinus-staging-{os.getuid()}"
        return cls(
            folder=Path(os.environ.get("ACINUS_STAGING", default)),
            most=int(os.environ.get("ACINUS_STAGING_BYTES", str(50 * 2**30))),
        )


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
        UnsupportedSlide: the slide is larger than the cache.
        BrokenSlide: an object changed or ended while it was copied.
    """
    local = [storage.local_path(file.uri) for file in files]
    if all(local):
        return LocalCopy([path for path in local if path is not None])
    config = config or StagingConfig.from_environment()
    key = hashlib.sha256("\n".join(f"{file.uri} {file.version}" for file in files).encode()).hexdigest()[:32]
    config.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = (config.folder / f"{key}.lock").open("ab")
    place = config.folder / key
    try:
        fcntl.flock(lock, fcntl.LOCK_SH)
        if not place.is_dir():
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not place.is_dir():  # another process may have made it while this one waited
                _fill(place, files, config)
            fcntl.flock(lock, fcntl.LOCK_SH)
        os.utime(place)
    except BaseException:
        lock.close()
        raise
    return LocalCopy([place / _member(k, file) for k, file in enumerate(files)], lock)


def _member(k: int, file: SlideFile) -> str:
    return f"{k:04d}{PurePosixPath(file.name).suffix.lower()}"


def _fill(place: Path, files: Sequence[SlideFile], config: StagingConfig) -> None:
    companions = [(k, uri) for k, file in enumerate(files) if file.name.lower().endswith(".mrxs") for uri in _mirax_parts(file)]
    sizes = [file.size for file in files] + [SlideFile.find(uri).size for _, uri in companions]
    if sum(sizes) > config.most:
        cause = (
            f"is read from a local copy only, and its {sum(sizes):,} bytes are more than the {config.most:,} set aside for such"
        )
        raise UnsupportedSlide(files[0].name, cause, "raise ACINUS_STAGING_BYTES or convert it to a tiled TIFF")
    _make_room(sum(sizes), config)
    with _part(place) as part:
        for k, file in enumerate(files):
            _download(file.uri, file.size, part / _member(k, file))
        for (k, uri), size in zip(companions, sizes[len(files) :], strict=True):
            _download(uri, size, part / f"{k:04d}" / slide_name(uri))
        part.rename(place)


def _mirax_parts(file: SlideFile) -> list[str]:
    """A MIRAX slide is an index file and a folder of the same name with its data."""
    return storage.list_uris(file.uri[: -len(".mrxs")])


@contextmanager
def _part(place: Path) -> Iterator[Path]:
    part = Path(tempfile.mkdtemp(prefix=f"{place.name}.part-", dir=place.parent))
    try:
        yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _download(uri: str, size: int, target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    store, key = storage.locate(uri)
    with target.open("wb") as sink:
        for chunk in obstore.get(store, key).stream(min_chunk_size=8 * 2**20):
            sink.write(chunk)
    storage.count_read(1, target.stat().st_size)
    if target.stat().st_size != size:
        raise BrokenSlide(slide_name(uri), "changed while it was copied", "try again when its upload is complete")


def _make_room(needed: int, config: StagingConfig) -> None:
    """Remove the copies used longest ago until `needed` bytes fit; one in use stays."""
    copies = sorted((at for at in config.folder.iterdir() if at.is_dir() and ".part-" not in at.name), key=_last_use)
    held = {at: sum(path.stat().st_size for path in at.rglob("*") if path.is_file()) for at in copies}
    for copy in copies:
        if sum(held.values()) + needed <= config.most:
            return
        with (config.folder / f"{copy.name}.lock").open("ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            shutil.rmtree(copy, ignore_errors=True)
            held.pop(copy)


def _last_use(copy: Path) -> float:
    return copy.stat().st_mtime
