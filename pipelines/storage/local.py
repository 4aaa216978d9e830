"""Files of a local disk or network directory: atomic writes, and listings that no odd entry stops.

Not by obstore's own store for them: it can't name files that are not UTF-8 or hold a line break,
ends a listing at a link to a parent folder, and gives the system's errors as text only.
"""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TypeVar

_PARTIAL = ".acinus-partial-"
"""First part of the name of a file that is being written."""
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
"""What file systems without hard links answer to one (FAT, some network directories)."""
_TRIES = 20
"""Times that a folder is made for a file while others remove it."""

Write = Callable[[IO[bytes]], object]
T = TypeVar("T")


def write(path: Path, fill: Write) -> None:
    """Write a file under another name and rename it: atomic, replacing what was there."""
    with _partial(path) as (temporary, stream):
        fill(stream)
        stream.close()
        temporary.replace(path)


def write_once(path: Path, fill: Write) -> bool:
    """Write a file unless there is one; returns whether it was written.

    The bytes are on the disk before the name is: a content address must not hold an empty file
    after a power failure, since nobody would write it again.
    """
    if _is_there(path):
        return False
    with _partial(path) as (temporary, stream):
        fill(stream)
        stream.flush()
        os.fsync(stream.fileno())
        stream.close()
        return _name_once(temporary, path)


def move_once(source: Path, path: Path) -> bool:
    """Move a file to an address unless there is one: a rename if both are on one disk.

    The source is gone afterwards in both cases. Returns whether the address was written.
    """
    written = False
    if not _is_there(path):
        with source.open("rb") as stream:
            os.fsync(stream.fileno())
        try:
            written = _in_folder(path.parent, lambda: _name_once(source, path))
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            with source.open("rb") as stream:
                written = write_once(path, lambda sink: shutil.copyfileobj(stream, sink, 2**20))
    source.unlink(missing_ok=True)
    return written


def remove(path: Path) -> None:
    """Remove a file and the folder that it leaves empty; not an error if it is gone already."""
    path.unlink(missing_ok=True)
    try:
        path.parent.rmdir()
    except OSError:  # not empty, or gone: another process may write there
        return


def walk(
    folder: Path,
    on_unreadable: Callable[[Path], None] | None = None,
    on_special: Callable[[Path], None] | None = None,
) -> Iterator[Path]:
    """All files below a folder, in no order; links are followed, each folder is visited once.

    A folder that can be reached both directly and by a link is listed under its own name.

    Args:
        folder: to list; nothing if there is none.
        on_unreadable: called with each folder below that may not be read; an error where None.
        on_special: called with what is neither a file nor a folder, such as a link to nowhere.
    """
    visited: set[tuple[int, int]] = set()
    folders, links = [folder], list[Path]()
    while folders or links:
        current = folders.pop() if folders else links.pop(0)
        try:
            status = current.stat()
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            entries = sorted(os.scandir(current), key=lambda entry: entry.name)
        except (FileNotFoundError, NotADirectoryError):
            continue  # removed meanwhile, or a link that leads nowhere
        except PermissionError:
            if on_unreadable is None or current == folder:
                raise
            on_unreadable(current)
            continue
        for entry in entries:
            if _is_folder(entry):
                (links if entry.is_symlink() else folders).append(Path(entry.path))
            elif not _is_file(entry):
                if on_special is not None:
                    on_special(Path(entry.path))
            elif not entry.name.startswith(_PARTIAL):
                yield Path(entry.path)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False


def _is_there(path: Path) -> bool:
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    return path.exists()


def _name_once(temporary: Path, path: Path) -> bool:
    """Give a written file its name unless that is taken; the caller removes the temporary name."""
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if path.exists():
            return False
        temporary.replace(path)  # two writers at this very moment both write the same bytes
    return True


@contextmanager
def _partial(path: Path) -> Iterator[tuple[Path, IO[bytes]]]:
    """A new file next to `path`, which is removed unless it was renamed."""
    temporary = path.parent / f"{_PARTIAL}{uuid.uuid4().hex}"
    try:
        with _in_folder(path.parent, lambda: temporary.open("xb")) as stream:
            yield temporary, stream
    finally:
        temporary.unlink(missing_ok=True)


def _in_folder(folder: Path, make: Callable[[], T]) -> T:
    """Make something in a folder, and the folder if there is none: `remove` may take that away at
    any time."""
    for _ in range(_TRIES):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return make()
        except (FileNotFoundError, FileExistsError):
            if folder.is_file():
                raise
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
