"""Objects by URI: the same calls for `file://` (embedded) and `s3://` (real).

Credentials and endpoints of S3 come from the usual `AWS_*` environment variables
(`AWS_ENDPOINT_URL`, `AWS_REGION`, ...). Writes are atomic: a reader sees the old object, the new
one or none. Every function raises `StorageError` or a class of its tree (`errors`) and nothing
else. This room does not know what the bytes mean.

    uris      what a URI is: made absolute once, where it enters
    objects   read, write, list, remove
    ranges    many byte ranges of one object in few requests
    meter     what was read
    local, s3 the two stores
"""

from __future__ import annotations

from pipelines.storage.errors import (
    AccessDenied,
    InvalidUri,
    ObjectChanged,
    ObjectNotFound,
    ObjectTruncated,
    StorageError,
    StoreFull,
    StoreUnavailable,
)
from pipelines.storage.meter import Meter, count_read, metered
from pipelines.storage.objects import (
    Head,
    delete,
    exists,
    is_folder,
    list_uris,
    read_bytes,
    read_head,
    stream_bytes,
    versions,
    write_bytes,
    write_file,
    write_file_once,
    write_once,
    written_times,
)
from pipelines.storage.ranges import read_into, read_ranges
from pipelines.storage.s3 import forget_stores
from pipelines.storage.uris import as_uri, join, local_path, object_name, relative_name, resolve

__all__ = [
    "AccessDenied",
    "Head",
    "InvalidUri",
    "Meter",
    "ObjectChanged",
    "ObjectNotFound",
    "ObjectTruncated",
    "StorageError",
    "StoreFull",
    "StoreUnavailable",
    "as_uri",
    "count_read",
    "delete",
    "exists",
    "forget_stores",
    "is_folder",
    "join",
    "list_uris",
    "local_path",
    "metered",
    "object_name",
    "read_bytes",
    "read_head",
    "read_into",
    "read_ranges",
    "relative_name",
    "resolve",
    "stream_bytes",
    "versions",
    "write_bytes",
    "write_file",
    "write_file_once",
    "write_once",
    "written_times",
]
