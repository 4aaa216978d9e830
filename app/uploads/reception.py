"""Receive a multipart form whose file may be as large as a slide.

The file goes to disk as it arrives, never whole into memory.

The file's own name is looked at for its suffix and then forgotten: names can hold a patient's. A
form that breaks off, grows too large or cannot be read leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import BinaryIO
from urllib.parse import unquote_to_bytes

import structlog
from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MAX_BOUNDARY_LENGTH, MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from app.errors import InvalidRequest
from app.uploads.errors import UnsupportedUpload, UploadNotStored, UploadTooLarge
from pipelines.slides import formats

log = structlog.get_logger(__name__)

SUFFIXES = formats.suffixes(files=("one",), deidentified=True)
"""Slides in one file that can be de-identified. Folders (a DICOM series) are analysed by URI."""

SLIDE = "slide"
"""The form's field for the file."""
MAX_FIELD_BYTES = 8 * 1024
MAX_FIELDS = 32
FORM_OVERHEAD = 1024 * 1024
ABANDONED_SECONDS = 24 * 3600
BLOCK = 1024 * 1024


@dataclass
class Form:
    """What a form held.

    Attributes:
        fields: the text fields.
        file: the slide on local disk, None if the form held none. It is removed at the end of
            `receive` unless it was moved away.
        suffix: the slide's suffix, lower case, one of `SUFFIXES`.
    """

    fields: dict[str, str] = field(default_factory=dict)
    file: Path | None = None
    suffix: str = ""


class _Receiver:
    """Callbacks of the multipart parser: text to `form.fields`, the one file to disk."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.form = Form()
        self._folder = folder
        self._max_bytes = max_bytes
        self._header_name = b""
        self._header_value = b""
        self._headers: dict[bytes, bytes] = {}
        self._field = ""
        self._text = bytearray()
        self._stream: BinaryIO | None = None
        self._written = 0
        self._seen: set[str] = set()
        self.complete = False

    def callbacks(self) -> Mapping[str, object]:
        return {
            "on_part_begin": self._part_begin,
            "on_header_field": self._on_header_field,
            "on_header_value": self._on_header_value,
            "on_header_end": self._on_header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._part_data,
            "on_part_end": self._part_end,
            "on_end": self._end,
        }

    def _part_begin(self) -> None:
        self._headers, self._header_name, self._header_value = {}, b"", b""
        self._text = bytearray()

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _on_header_end(self) -> None:
        self._headers[self._header_name.lower()] = self._header_value
        self._header_name, self._header_value = b"", b""

    def _headers_finished(self) -> None:
        disposition = self._headers.get(b"content-disposition", b"")
        _, options = parse_options_header(disposition)  # bytes in, the same bytes out
        if b"name" not in options:
            raise InvalidRequest("The form has a part without a name.")
        self._field = options[b"name"].decode("utf-8", "replace")
        if self._field in self._seen:
            raise InvalidRequest(f"The form has the field {self._field} more than once.")
        if len(self._seen) >= MAX_FIELDS:
            raise InvalidRequest(f"The form has more than {MAX_FIELDS} fields.")
        self._seen.add(self._field)
        file_name = options.get(b"filename") or extended_file_name(disposition)
        if file_name:  # a browser sends an empty name where no file was chosen
            self._open_file(suffix_of(file_name))

    def _open_file(self, suffix: str) -> None:
        if self._field != SLIDE:
            raise InvalidRequest(
                f"The form has a file in the field {self._field}; send the one file as {SLIDE}."
            )
        if suffix not in SUFFIXES:
            raise UnsupportedUpload(
                f"A slide is uploaded as one file ({', '.join(sorted(SUFFIXES))}); "
                "slides that are folders are given by URI."
            )
        self._folder.mkdir(parents=True, exist_ok=True)
        self.form.suffix = suffix
        self.form.file = self._folder / f"{uuid.uuid4()}.part"
        self._stream = self.form.file.open("xb")

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._stream is not None:
            self._written += end - start
            if self._written > self._max_bytes:
                raise too_large(self._max_bytes)
            self._stream.write(memoryview(data)[start:end])
            return
        if self._field == SLIDE and end > start:
            raise InvalidRequest(
                f"The field {SLIDE} holds no file: its part has no file name. "
                f"With curl, write -F {SLIDE}=@FILE."
            )
        self._text += data[start:end]
        if len(self._text) > MAX_FIELD_BYTES:
            raise InvalidRequest(f"The field {self._field} is longer than {MAX_FIELD_BYTES} bytes.")

    def _part_end(self) -> None:
        if self._stream is not None:
            self.close()
            if not self._written:
                raise InvalidRequest(
                    "The slide is an empty file (0 bytes); copy it from the scanner again."
                )
            return
        try:
            self.form.fields[self._field] = self._text.decode()
        except UnicodeDecodeError:
            raise InvalidRequest(f"The field {self._field} is not text in UTF-8.") from None

    def _end(self) -> None:
        self.complete = True

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None


_EXTENDED = re.compile(rb";[ \t]*filename\*=[\w-]*'[^']*'([^;\s]+)", re.IGNORECASE)


def extended_file_name(disposition: bytes) -> bytes:
    """The file name as RFC 5987 writes it, which older clients send alone; empty if there is none.

    RFC 7578 forbids that form, so a plain `filename` counts before it.
    """
    found = _EXTENDED.search(disposition)
    return unquote_to_bytes(found[1]) if found else b""


def suffix_of(file_name: bytes) -> str:
    """Suffix of a file name in any encoding, in lower case."""
    return PurePath(file_name.decode("utf-8", "replace").strip()).suffix.lower()


def too_large(max_bytes: int) -> UploadTooLarge:
    """The error for a slide beyond the limit."""
    return UploadTooLarge(
        f"The slide is larger than the {max_bytes / 2**30:.3g} GiB that this service accepts."
    )


@asynccontextmanager
async def receive(request: Request, folder: Path, max_bytes: int) -> AsyncIterator[Form]:
    """Read the form of `request`, its file into `folder`.

    Raises:
        InvalidRequest: no multipart form, one that breaks off, or one with parts that are not
            understood.
        UploadTooLarge: the slide exceeds `max_bytes`; noticed by the announced length, at the
            latest while it arrives.
        UnsupportedUpload: a kind of file that is not read from an upload.
        UploadNotStored: the disk is full or cannot be written.
    """
    content_type = request.headers.get("content-type", "").encode("latin-1")
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise InvalidRequest(
            "Send the slide and the clinical variables as one multipart/form-data form."
        )
    if len(options[b"boundary"]) > MAX_BOUNDARY_LENGTH:
        raise InvalidRequest(
            f"The form's boundary has {len(options[b'boundary'])} characters; "
            f"at most {MAX_BOUNDARY_LENGTH} are read, and RFC 2046 allows 70."
        )
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > max_bytes + FORM_OVERHEAD:
        raise too_large(max_bytes)
    receiver = _Receiver(folder, max_bytes)
    parser = MultipartParser(options[b"boundary"], receiver.callbacks())  # type: ignore[arg-type]
    try:
        try:
            async for block in _blocks(request):
                await asyncio.to_thread(parser.write, block)
            parser.finalize()
        except ClientDisconnect:
            raise InvalidRequest(
                "The connection broke off before the end of the form; send it again."
            ) from None
        except FormParserError:
            raise InvalidRequest(
                "The form cannot be read: its parts are not separated as its header says."
            ) from None
        except OSError as error:
            raise UploadNotStored(
                f"The service cannot store the slide ({error.strerror}); nothing was kept. "
                "Its operator must look at the disk of the uploads; send the slide again then."
            ) from error
        if not receiver.complete:
            raise InvalidRequest("The form breaks off before its end; send it again.")
        yield receiver.form
    finally:
        receiver.close()
        if receiver.form.file is not None:
            receiver.form.file.unlink(missing_ok=True)


async def _blocks(request: Request) -> AsyncIterator[bytes]:
    """The body in pieces large enough to be worth a thread's time."""
    block = bytearray()
    async for chunk in request.stream():
        block += chunk
        if len(block) >= BLOCK:
            yield bytes(block)
            block.clear()
    yield bytes(block)


def remove_abandoned(folder: Path) -> int:
    """Remove files that a process which died left behind; returns how many."""
    limit = time.time() - ABANDONED_SECONDS
    abandoned = [path for path in folder.glob("*.part") if path.stat().st_mtime < limit]
    for path in abandoned:
        path.unlink(missing_ok=True)
    if abandoned:
        log.info("abandoned uploads removed", count=len(abandoned))
    return len(abandoned)
