"""Uploads: multipart/form-data, written to the disk as it arrives."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from fastapi import Request

from caravan.server.batches.file_store import FileStore, NewFile, PartFile
from caravan.server.batches.form_data import MAX_BOUNDARY, MAX_PARTS, FormDecoder, PartHead, WrongForm, boundary_of
from caravan.server.generation.request_limits import RequestLimits
from caravan.server.http.errors import ApiError, invalid, shown

MAX_UPLOAD_SECONDS = 3600  # for the whole body; between two of its parts, the time limit of bodies holds
MAX_FILENAME = 255  # characters
_MAX_FIELD_BYTES = 1024
_OTHER_BYTES = 2**16  # of a form without its file, in its declared length
_WRITTEN_BYTES = 2**20  # at once
_FIELDS = ("purpose",)
_WRONG_FORM = f"The body is not a complete form of at most {MAX_PARTS} parts."


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
        if declared.isdecimal() and int(declared) > files.limits.max_file_bytes + _OTHER_BYTES:
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
    try:
        boundary = boundary_of(request.headers.get("content-type", ""))
    except WrongForm:
        raise invalid(f"The content type has no boundary of 1 to {MAX_BOUNDARY} characters.") from None
    if boundary is None:
        raise ApiError(415, "The content type must be multipart/form-data.")
    if request.headers.get("content-encoding", "identity") != "identity":
        raise ApiError(415, "A form cannot have a content encoding.")
    return boundary


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
        yield chunk


async def _file_data(chunks: AsyncIterator[bytes], boundary: bytes, upload: Upload) -> AsyncIterator[bytes]:
    """Yield the contents of the form's file; store its name and the other fields in `upload`."""
    decoder = FormDecoder(boundary)
    name = ""  # of the field that is being read; empty: the file
    try:
        async for chunk in chunks:
            for event in decoder.feed(chunk):
                if isinstance(event, PartHead):
                    name = _begin_part(event, upload)
                elif name:
                    _add(upload, name, event.data)
                else:
                    yield event.data
    except WrongForm:
        raise invalid(_WRONG_FORM) from None
    if not decoder.is_complete:
        raise invalid(_WRONG_FORM)


def _begin_part(head: PartHead, upload: Upload) -> str:
    """Return the name of a field, or an empty text for the file; raises ApiError 400."""
    name = head.name
    if head.filename is not None:
        if name != "file" or upload.filename is not None:
            raise invalid("The form must have one file, in the field `file`.", "file")
        upload.filename = head.filename
        return ""
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
