"""Read, write, list and remove whole objects, whichever store they are in."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote, urlsplit

from pipelines.storage import local, s3
from pipelines.storage.errors import ObjectNotFound, disk_failures
from pipelines.storage.meter import count_read
from pipelines.storage.uris import as_uri, local_path

Buffer = bytes | bytearray | memoryview

_CHUNK = 8 * 2**20
"""Bytes that a stream gives at a time."""


def read_bytes(uri: str) -> bytes:
    """The whole object.

    Raises:
        ObjectNotFound: there is no such object.
        StorageError: it can't be read.
    """
    path = local_path(uri)
    if path is not None:
        with disk_failures(uri, "read"):
            return path.read_bytes()
    with s3.failures(uri, "read"):
        return bytes(s3.get(uri).bytes())


def stream_bytes(uri: str) -> Iterator[bytes]:
    """The object in pieces of about 8 MiB, never whole in memory.

    Raises:
        ObjectNotFound: there is no such object.
        StorageError: it can't be read.
    """
    path = local_path(uri)
    if path is not None:
        with disk_failures(uri, "read"), path.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                yield chunk
        return
    with s3.failures(uri, "read"):
        chunks = iter(s3.get(uri).stream(min_chunk_size=_CHUNK))
    while True:
        # Not around the loop: errors of whoever takes the pieces are not the store's.
        with s3.failures(uri, "read"):
            chunk = bytes(next(chunks, b""))
        if not chunk:
            return
        yield chunk


@dataclass(frozen=True, kw_only=True)
class Head:
    """How an object begins.

    Attributes:
        data: its first bytes.
        size: bytes of the whole object.
        version: changes when the object is replaced; what `read_into` compares with.
    """

    data: bytes
    size: int
    version: str


def read_head(uri: str, count: int) -> Head:
    """The first bytes of an object, at most `count`, its size and its version, in one request.

    Raises:
        ObjectNotFound: there is no such object; a folder is not an object.
        StorageError: it can't be read.
    """
    path = local_path(uri)
    if path is not None:
        with disk_failures(uri, "read"):
            if path.is_dir():
                raise ObjectNotFound(uri, "is a folder, not a file", "check the path")
            if path.exists() and not path.is_file():  # to open a pipe would wait for a writer
                raise ObjectNotFound(uri, "is a pipe or device, not a file", "check the path")
            with path.open("rb") as stream:
                status = os.fstat(stream.fileno())
                data = stream.read(count)
        return Head(data=data, size=status.st_size, version=file_version(status))
    with s3.failures(uri, "read"):
        data, meta = s3.begin(uri, count)
    count_read(1, len(data), len(data))
    version = f"{meta.get('version')}:{meta['e_tag']}"  # the ETag comes last
    return Head(data=data, size=meta["size"], version=version)


def file_version(status: os.stat_result) -> str:
    """What changes when a local file is replaced."""
    return f"{status.st_size}:{status.st_mtime_ns}"


def write_bytes(uri: str, data: Buffer) -> None:
    """Write the object atomically, replacing what was there.

    Raises:
        StorageError: it can't be written.
    """
    path = local_path(uri)
    if path is not None:
        with disk_failures(uri, "written"):
            local.write(path, lambda sink: sink.write(data))
        return
    with s3.failures(uri, "written"):
        s3.put(uri, bytes(data))


def write_file(uri: str, source: Path) -> None:
    """Copy a local file to `uri` in parts (multipart on S3), atomically.

    Raises:
        StorageError: it can't be written.
    """
    path = local_path(uri)
    if path is not None:
        with disk_failures(uri, "written"):
            local.write(path, _copy_of(source))
        return
    with s3.failures(uri, "written"):
        s3.put(uri, source)


def write_once(uri: str, data: Buffer) -> bool:
    """Write an object whose address follows from its content, unless it is there.

    An object that is there is left untouched, with its time and ETag, which readers rely on.
    Several writers at a time all succeed, and leave one object. A killed writer leaves none.

    Returns:
        Whether it was written.

    Raises:
        StorageError: it can't be written.
    """
    path = local_path(uri)
    if path is not None:
        with disk_failures(uri, "written"):
            return local.write_once(path, lambda sink: sink.write(data))
    with s3.failures(uri, "written"):
        return s3.put_once(uri, bytes(data))


def write_file_once(uri: str, source: Path, *, consume: bool = False) -> bool:
    """Copy a local file to an address that follows from its content; see `write_once`.

    Args:
        uri: the address.
        source: the file.
        consume: remove the source afterwards, whether it was written or not; on one disk nothing is
            copied.

    Returns:
        Whether it was written.

    Raises:
        StorageError: it can't be written.
    """
    path = local_path(uri)
    if path is not None:
        with disk_failures(uri, "written"):
            if consume:
                return local.move_once(source, path)
            return local.write_once(path, _copy_of(source))
    with s3.failures(uri, "written"):
        written = s3.put_once(uri, source)
    if consume:
        source.unlink(missing_ok=True)
    return written


def _copy_of(source: Path) -> Callable[[IO[bytes]], None]:
    def fill(sink: IO[bytes]) -> None:
        with source.open("rb") as stream:
            shutil.copyfileobj(stream, sink, 2**20)

    return fill


def delete(uri: str) -> None:
    """Remove an object and, on a local disk, the folder that it leaves empty.

    Removing it again is not an error.

    Raises:
        StorageError: it can't be removed.
    """
    path = local_path(uri)
    if path is not None:
        with disk_failures(uri, "removed"):
            local.remove(path)
        return
    with s3.failures(uri, "removed"):
        s3.delete(uri)


def exists(uri: str) -> bool:
    """Whether the object is there; a folder is not an object.

    Raises:
        StorageError: the store does not say.
    """
    path = local_path(uri)
    if path is not None:
        with disk_failures(uri, "read"):
            return path.is_file()
    with s3.failures(uri, "read"):
        return s3.exists(uri)


def list_uris(
    prefix: str,
    *,
    on_unreadable: Callable[[str], None] | None = None,
    on_special: Callable[[str], None] | None = None,
) -> list[str]:
    """URIs of all objects below a folder, sorted; none if there is no folder.

    Args:
        prefix: the folder.
        on_unreadable: called with the URI of each local folder below that may not be read; an error
            where None.
        on_special: called with each local URI that is neither a file nor a folder: a link that
            leads nowhere, a pipe, a device.

    Raises:
        StorageError: the folder can't be listed.
    """
    prefix = as_uri(prefix).rstrip("/")
    folder = local_path(prefix)
    if folder is None:
        return list(_remote_items(prefix))
    return sorted(_local_files(prefix, folder, on_unreadable, on_special))


def versions(prefix: str) -> dict[str, str]:
    """Version of every object below a folder, by URI: its size with its time or ETag.

    Raises:
        StorageError: the folder can't be listed.
    """
    prefix = as_uri(prefix).rstrip("/")
    folder = local_path(prefix)
    if folder is None:
        return {
            uri: f"{item['size']}:{item['e_tag']}" for uri, item in _remote_items(prefix).items()
        }
    files = _local_files(prefix, folder)
    with disk_failures(prefix, "listed"):
        return {uri: file_version(files[uri].stat()) for uri in sorted(files)}


def written_times(prefix: str) -> dict[str, float]:
    """When every object below a folder was written, by URI: seconds since 1970.

    Objects that are removed meanwhile are left out.

    Raises:
        StorageError: the folder can't be listed.
    """
    prefix = as_uri(prefix).rstrip("/")
    folder = local_path(prefix)
    if folder is None:
        return {
            uri: item["last_modified"].timestamp() for uri, item in _remote_items(prefix).items()
        }
    times = {}
    for uri, path in _local_files(prefix, folder).items():
        with suppress(ObjectNotFound), disk_failures(uri, "listed"):
            times[uri] = path.stat().st_mtime
    return times


def _remote_items(prefix: str) -> dict[str, dict[str, Any]]:
    with s3.failures(prefix, "listed"):
        items = s3.list_objects(prefix)
    root = f"s3://{urlsplit(prefix).netloc}"
    return {f"{root}/{quote(item['path'])}": item for item in items}


def _local_files(
    prefix: str,
    folder: Path,
    on_unreadable: Callable[[str], None] | None = None,
    on_special: Callable[[str], None] | None = None,
) -> dict[str, Path]:
    def uri_of(path: Path) -> str:
        return f"{prefix}/{quote(os.fsencode(path.relative_to(folder)))}"

    skip = None if on_unreadable is None else lambda path: on_unreadable(uri_of(path))
    tell = None if on_special is None else lambda path: on_special(uri_of(path))
    with disk_failures(prefix, "listed"):
        return {uri_of(path): path for path in local.walk(folder, skip, tell)}


def is_folder(uri: str) -> bool:
    """Whether the URI is a local folder, or has any object below it.

    Raises:
        StorageError: the store does not say.
    """
    path = local_path(uri)
    if path is not None:
        with disk_failures(uri, "read"):
            return path.is_dir()
    with s3.failures(uri, "listed"):
        return s3.is_folder(uri)
