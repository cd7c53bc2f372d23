"""Uploads: multipart/form-data, written to the disk as it arrives."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from fastapi import Request

from caravan.server.batches.file_store import FileStore, NewFile, PartFile
from caravan.server.generation.request_limits import RequestLimits
from caravan.server.http.errors import ApiError, invalid, shown

MAX_UPLOAD_SECONDS = 3600  # for the whole body; between two of its parts, the time limit of bodies holds
MAX_FILENAME = 255  # characters
_MAX_PARTS = 16
_MAX_FIELD_BYTES = 1024
_MAX_BUFFER_BYTES = 2**20  # of what the decoder holds: heads of parts, and data that may be a boundary
_WRITTEN_BYTES = 2**20  # at once
_FIELDS = ("purpose",)


@dataclass
class Upload:
    """The parts of a form."""

    filename: str | None = None  # None: there is no file
    fields: dict[str, str] = field(default_factory=dict)


async def receive_upload(
    request: Request, files: FileStore, key_name: str, limits: RequestLimits
) -> tuple[NewFile, str]:
    """Return the file of a form, which is complete in the folder, and its name; `purpose` must be batch.

    Its bytes are reserved for the key. Raises ApiError 400, 408, 413 or 415, after which nothing is left, and OSError.
    """
    boundary = _boundary(request)
    part = await files.run(files.new_part)
    reserved = 0
    try:
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > files.limits.max_file_bytes + _MAX_BUFFER_BYTES:
            raise _too_large(files)
        upload, pending = Upload(), bytearray()
        try:
            async with asyncio.timeout(MAX_UPLOAD_SECONDS):
                async for data in _file_data(_chunks(request, limits), boundary, upload):
                    if reserved + len(data) > files.limits.max_file_bytes:
                        raise _too_large(files)
                    files.reserve(key_name, len(data))
                    reserved += len(data)
                    pending += data
                    if len(pending) >= _WRITTEN_BYTES:
                        await files.run(part.write, bytes(pending))
                        pending.clear()
        except TimeoutError:
            raise ApiError(408, f"The body did not arrive within {MAX_UPLOAD_SECONDS} seconds.") from None
        filename = _checked_filename(upload)
        await files.run(part.write, bytes(pending))
        return await files.run(part.complete), filename
    except BaseException:
        files.release(key_name, reserved)
        await _discard(files, part)
        raise


async def _discard(files: FileStore, part: PartFile) -> None:
    """Remove an incomplete file, also if the task is being cancelled."""
    await asyncio.shield(files.run(part.discard))


def _boundary(request: Request) -> bytes:
    from werkzeug.http import parse_options_header  # imported with the first upload

    media_type, options = parse_options_header(request.headers.get("content-type", ""))
    if media_type != "multipart/form-data":
        raise ApiError(415, "The content type must be multipart/form-data.")
    boundary = options.get("boundary", "")
    if not 0 < len(boundary) <= 70 or not boundary.isascii():  # RFC 2046, section 5.1.1
        raise invalid("The content type has no boundary of 1 to 70 characters.")
    if request.headers.get("content-encoding", "identity") != "identity":
        raise ApiError(415, "A form cannot have a content encoding.")
    return boundary.encode()


async def _chunks(request: Request, limits: RequestLimits) -> AsyncIterator[bytes]:
    stream = request.stream()
    while True:
        try:
            async with asyncio.timeout(limits.body_timeout_seconds):
                chunk = await anext(stream, None)
        except TimeoutError:
            message = f"No part of the body arrived within {limits.body_timeout_seconds:g} seconds."
            raise ApiError(408, message) from None
        if chunk is None:
            return
        for start in range(0, len(chunk), _MAX_BUFFER_BYTES // 2):
            yield chunk[start : start + _MAX_BUFFER_BYTES // 2]


async def _file_data(chunks: AsyncIterator[bytes], boundary: bytes, upload: Upload) -> AsyncIterator[bytes]:
    """Yield the contents of the form's file; store its name and the other fields in `upload`."""
    from werkzeug.exceptions import RequestEntityTooLarge
    from werkzeug.sansio.multipart import Data, Epilogue, Field, File, MultipartDecoder, NeedData

    decoder = MultipartDecoder(boundary, _MAX_BUFFER_BYTES, max_parts=_MAX_PARTS)
    name = ""  # of the field that is being read; empty: the file
    try:
        async for chunk in chunks:
            decoder.receive_data(chunk)
            while not isinstance(event := decoder.next_event(), NeedData):
                if isinstance(event, File):
                    if event.name != "file" or upload.filename is not None:
                        raise invalid("The form must have one file, in the field `file`.", "file")
                    upload.filename, name = event.filename, ""
                elif isinstance(event, Field):
                    name = _new_field(event.name, upload)
                elif isinstance(event, Data) and name:
                    _add(upload, name, event.data)
                elif isinstance(event, Data) and event.data:
                    yield event.data
        decoder.receive_data(None)
        if not isinstance(decoder.next_event(), Epilogue):
            raise ValueError
    except (ValueError, RequestEntityTooLarge):  # of the decoder
        raise invalid("The body is not a complete form of at most 16 parts.") from None


def _new_field(name: str | None, upload: Upload) -> str:
    if name == "file":
        raise invalid("`file` must be a file: its part needs a filename.", "file")
    if name not in _FIELDS:
        raise invalid(f"Unknown field {shown(name)} in the form; this version knows `file` and `purpose`.", name)
    if name in upload.fields:
        raise invalid(f"The form has the field `{name}` twice.", name)
    upload.fields[name] = ""
    return name


def _add(upload: Upload, name: str, data: bytes) -> None:
    upload.fields[name] += data.decode("latin-1")
    if len(upload.fields[name]) > _MAX_FIELD_BYTES:
        raise invalid(f"`{name}` must have at most {_MAX_FIELD_BYTES} bytes.", name)


def _checked_filename(upload: Upload) -> str:
    """Return the name of the file; raises ApiError 400 if the form cannot be used."""
    if upload.filename is None:
        raise invalid("`file` is missing; it is required.", "file")
    if not upload.filename.isprintable() or len(upload.filename) > MAX_FILENAME:
        raise invalid(f"The name of the file must have at most {MAX_FILENAME} printable characters.", "file")
    purpose = upload.fields.get("purpose")
    if purpose is None:
        raise invalid("`purpose` is missing; it is required.", "purpose")
    if purpose != "batch":
        raise invalid(f"`purpose` is {shown(purpose)}; this server only takes files with the purpose batch.", "purpose")
    return upload.filename


def _too_large(files: FileStore) -> ApiError:
    return ApiError(413, f"The file exceeds the limit of {files.limits.max_file_bytes} bytes (--batch-file-size).")
