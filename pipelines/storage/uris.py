"""What a URI is: `file://` of an absolute path, percent-encoded, or `s3://bucket/key`."""

from __future__ import annotations

import os
import posixpath
import re
from functools import lru_cache
from pathlib import Path, PurePosixPath
from urllib.parse import quote, unquote, unquote_to_bytes, urlsplit

from pipelines.storage.errors import InvalidUri

_TORN_URI = re.compile(r"[a-z][a-z0-9+.-]*:/|(s3|file|https?|gs|az):", re.IGNORECASE)
"""A scheme without its two slashes; other names may hold a colon."""


def as_uri(path_or_uri: str | Path) -> str:
    """`file://` URI of a local path, made absolute; URIs pass unchanged.

    `~` is the home folder. Links are followed for folders only: a link keeps its own name and
    suffix.

    Raises:
        InvalidUri: the path is empty, or the text is a URI that lacks a slash or its bucket.
    """
    text = str(path_or_uri)
    check_whole(text)
    if "://" in text:
        return text
    if not text.strip():
        raise InvalidUri(repr(text), "is an empty path", "give a path or a URI")
    path = Path(os.path.expanduser(text))  # noqa: PTH111 - Path.expanduser refuses a file '~x'
    path = path.resolve() if path.name in ("", "..") else path.parent.resolve() / path.name
    return "file://" + quote(os.fsencode(path), safe="/*")  # '*' stays: it is a wildcard to some


def resolve(folder: str, path: str) -> str:
    """The URI of a path that may be relative to a folder, without `.` and `..`.

    Args:
        folder: URI.
        path: relative to it, absolute, below the home folder (`~/`), or a URI; of S3 as it is.

    Raises:
        InvalidUri: the path is a URI that lacks a slash or its bucket.
    """
    check_whole(path)
    if "://" not in path and (path.startswith(("/", "~/")) or path == "~"):
        return as_uri(path)
    base = None if "://" in path else local_path(folder)
    if base is not None:
        return as_uri(base / path)
    if path.startswith("s3://"):
        return path
    below = f"{folder.rstrip('/')}/{quote(path, safe='/*')}"
    parts = urlsplit(path if "://" in path else below)
    return parts._replace(path=posixpath.normpath(parts.path or "/")).geturl()


def local_path(uri: str) -> Path | None:
    """The local path of a `file://` URI or plain path, None for remote objects.

    Raises:
        InvalidUri: a URI that lacks a slash or its bucket; a `file://` URI that names a host, or
            holds a query or fragment.
    """
    return _local_path(uri if "://" in uri else as_uri(uri))


@lru_cache(maxsize=4096)  # a reader asks for each of its reads: 15 us of 100
def _local_path(uri: str) -> Path | None:
    check_whole(uri)
    parts = urlsplit(uri)
    if parts.scheme != "file":
        return None
    if parts.netloc not in ("", "localhost"):
        raise InvalidUri(uri, f"names the host {parts.netloc!r}", "write file:///folder/file")
    if "?" in uri or "#" in uri:
        raise InvalidUri(
            uri, "has a query or fragment", "write '?' and '#' of a name as %3F and %23"
        )
    check_parts(uri, unquote(parts.path).lstrip("/"))
    return Path(os.fsdecode(unquote_to_bytes(parts.path)))


def join(uri: str, *parts: str) -> str:
    """The URI of an object below `uri`.

    Raises:
        InvalidUri: as `as_uri` does.
    """
    folder = as_uri(uri).rstrip("/")
    if folder == "file:":  # of the root folder
        folder = "file://"
    return "/".join([folder, *(quote(part.strip("/")) for part in parts)])


def object_name(uri: str) -> str:
    """Last part of a URI or path, for errors and tables; what can't be printed is U+FFFD."""
    path = unquote(urlsplit(uri).path) if "://" in uri else uri
    return _printable(PurePosixPath(path).name or uri)


def relative_name(folder: str, uri: str) -> str:
    """Path of a URI below a folder's, for tables; what can't be printed is U+FFFD."""
    return _printable(unquote(uri[len(folder) :].strip("/")))


def _printable(text: str) -> str:
    return "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text
    )


def check_whole(text: str) -> None:
    """Refuse `s3://`, `s3:/bucket/key`, `s3:bucket` and their like: as paths they would be folders.

    A local name with a colon, such as `a:b.svs`, is none of these.

    Raises:
        InvalidUri: the text is a URI that lacks a slash or its bucket.
    """
    scheme, marked, rest = text.partition("://")
    if marked:
        if scheme.lower() == "file":
            whole = rest.startswith("/") or bool(rest.strip())
        else:
            whole = bool(rest) and not rest.startswith("/")
        if not whole:
            lacks = "names no file" if scheme.lower() == "file" else "names no bucket"
            raise InvalidUri(text, lacks, "write s3://bucket/folder, or a local path")
    elif _TORN_URI.match(text):
        raise InvalidUri(
            text,
            "is a URI that lacks a slash",
            "write s3://bucket/folder or file:///folder; put './' before a local name",
        )


def check_parts(uri: str, key: str) -> None:
    """Refuse a path with an empty part, `.` or `..`: two URIs must not name one object.

    Raises:
        InvalidUri: it has one.
    """
    if key and not {"", ".", ".."}.isdisjoint(key.removesuffix("/").split("/")):
        reason = "has an empty part, '.' or '..' in its path"
        raise InvalidUri(uri, reason, "write the path without")
