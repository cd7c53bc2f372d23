"""/v1/files and /v1/batches."""

import errno
import logging
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse

from caravan.server.batches.batches import Batches
from caravan.server.batches.objects import (
    MAX_METADATA,
    MAX_METADATA_KEY,
    MAX_METADATA_VALUE,
    BatchList,
    BatchObject,
    BatchRequest,
    DeletedFile,
    FileList,
    FileObject,
)
from caravan.server.batches.page import page_of, query_parameters
from caravan.server.batches.runner import BatchRunner
from caravan.server.batches.upload import receive_upload
from caravan.server.generation.context import key_name_of
from caravan.server.generation.request_limits import RequestLimits
from caravan.server.http.errors import ApiError, invalid, shown
from caravan.server.http.json_response import json_response
from caravan.server.http.openapi import answers, documented, errors
from caravan.server.openai.protocol.validated_body import read_body

MAX_FILES, MAX_BATCHES, DEFAULT_BATCHES = 10_000, 100, 20  # of a page
EXAMPLE = {"input_file_id": "file-abc123", "endpoint": "/v1/chat/completions", "completion_window": "24h"}

_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string", "enum": ["batch"]},
                    },
                },
                "example": {"file": "requests.jsonl", "purpose": "batch"},
            }
        },
    }
}

_BYTES: dict[int | str, dict[str, Any]] = {
    200: {"description": "The bytes of the file.", "content": {"application/octet-stream": {}}}
}

logger = logging.getLogger(__name__)

Args = ParamSpec("Args")
Result = TypeVar("Result")


def files_router(batches: Batches | None, limits: RequestLimits) -> APIRouter:
    """Return the routes of files; without `batches` they reject requests."""
    router = APIRouter(tags=["batches"])

    @router.post(
        "/v1/files",
        summary="Upload a file",
        responses=answers(FileObject) | errors(400, 401, 404, 408, 413, 415, 429, 503),
        openapi_extra=_FORM,
    )
    @_storage_errors
    async def upload_file(request: Request) -> Response:
        files, key_name = _existing(batches).files, key_name_of(request.scope)
        new, filename = await receive_upload(request, files, key_name, limits)
        try:
            return json_response(await files.add(key_name, new, filename, "batch"))
        except Exception:
            await files.forget(key_name, new)
            raise

    @router.get(
        "/v1/files",
        summary="List files",
        responses=answers(FileList) | errors(400, 401, 404),
        openapi_extra={"parameters": query_parameters("after", "limit", "order", "purpose")},
    )
    @_storage_errors
    async def list_files(request: Request) -> Response:
        files = _existing(batches).files
        page = page_of(request, max_limit=MAX_FILES, default_limit=MAX_FILES, more=("purpose",))
        data, has_more = await files.page(key_name_of(request.scope), page, request.query_params.get("purpose"))
        return _list_response(FileList, data, has_more)

    @router.get("/v1/files/{file_id}", summary="Retrieve a file", responses=answers(FileObject) | errors(401, 404))
    @_storage_errors
    async def retrieve_file(request: Request, file_id: str) -> Response:
        return json_response(await _existing(batches).files.find(key_name_of(request.scope), file_id))

    @router.get(
        "/v1/files/{file_id}/content",
        summary="Download a file",
        response_class=FileResponse,
        responses=errors(401, 404) | _BYTES,
    )
    @_storage_errors
    async def download_file(request: Request, file_id: str) -> Response:
        files = _existing(batches).files
        file = await files.find(key_name_of(request.scope), file_id)
        return FileResponse(files.path_of(file.id), media_type="application/octet-stream")

    @router.delete(
        "/v1/files/{file_id}", summary="Delete a file", responses=answers(DeletedFile) | errors(400, 401, 404)
    )
    @_storage_errors
    async def delete_file(request: Request, file_id: str) -> Response:
        await _existing(batches).files.delete(key_name_of(request.scope), file_id)
        return json_response(DeletedFile(id=file_id))

    return router


def batches_router(batches: Batches | None, limits: RequestLimits) -> APIRouter:
    """Return the routes of batches; without `batches` they reject requests."""
    router = APIRouter(tags=["batches"])

    @router.post("/v1/batches", summary="Create a batch", **documented(BatchRequest, EXAMPLE, answer=BatchObject))
    @_storage_errors
    async def create_batch(request: Request) -> Response:
        existing, key_name = _existing(batches), key_name_of(request.scope)
        body = await read_body(request, BatchRequest, limits)
        _check_metadata(body.metadata)
        existing.files.reserve(key_name, 0)  # its answers need disk space
        batch = await existing.batches.create(key_name, body.input_file_id, body.endpoint, body.metadata)
        _runner(existing).begin(batch.id)
        return json_response(batch.shown)

    @router.get(
        "/v1/batches",
        summary="List batches",
        responses=answers(BatchList) | errors(400, 401, 404),
        openapi_extra={"parameters": query_parameters("after", "limit", "order")},
    )
    @_storage_errors
    async def list_batches(request: Request) -> Response:
        store = _existing(batches).batches
        page = page_of(request, max_limit=MAX_BATCHES, default_limit=DEFAULT_BATCHES)
        data, has_more = await store.page(key_name_of(request.scope), page)
        return _list_response(BatchList, data, has_more)

    @router.get("/v1/batches/{batch_id}", summary="Retrieve a batch", responses=answers(BatchObject) | errors(401, 404))
    @_storage_errors
    async def retrieve_batch(request: Request, batch_id: str) -> Response:
        return json_response(await _existing(batches).batches.find(key_name_of(request.scope), batch_id))

    @router.post(
        "/v1/batches/{batch_id}/cancel",
        summary="Cancel a batch",
        responses=answers(BatchObject) | errors(400, 401, 404, 429, 503),
    )
    @_storage_errors
    async def cancel_batch(request: Request, batch_id: str) -> Response:
        existing = _existing(batches)
        batch = await existing.batches.cancel(key_name_of(request.scope), batch_id)
        _runner(existing).cancel(batch_id)
        return json_response(batch)

    return router


def _existing(batches: Batches | None) -> Batches:
    if batches is None:
        raise ApiError(404, "This server keeps no files and batches. Start it with --batch-folder PATH.")
    return batches


def _runner(batches: Batches) -> BatchRunner:
    assert batches.runner is not None, "the application connects it"
    return batches.runner


def _list_response(
    kind: Callable[..., FileList | BatchList], data: Sequence[FileObject] | Sequence[BatchObject], has_more: bool
) -> Response:
    """Return a page of a list, which names its first and its last object."""
    first_id, last_id = (data[0].id, data[-1].id) if data else (None, None)
    return json_response(kind(data=data, first_id=first_id, last_id=last_id, has_more=has_more))


def _check_metadata(metadata: dict[str, str]) -> None:
    if len(metadata) > MAX_METADATA:
        raise invalid(f"`metadata` has {len(metadata)} entries; the limit is {MAX_METADATA}.", "metadata")
    for name, value in metadata.items():
        if len(name) > MAX_METADATA_KEY or len(value) > MAX_METADATA_VALUE:
            raise invalid(
                f"`metadata` has the entry {shown(name)}; names can have {MAX_METADATA_KEY} characters and texts "
                f"{MAX_METADATA_VALUE}.",
                "metadata",
            )


def _storage_errors(route: Callable[Args, Awaitable[Result]]) -> Callable[Args, Awaitable[Result]]:
    """Return a route whose errors of the disk are responses: 507 if it is full, otherwise 500."""

    @wraps(route)
    async def checked(*args: Args.args, **kwargs: Args.kwargs) -> Result:
        try:
            return await route(*args, **kwargs)
        except (OSError, sqlite3.OperationalError) as error:
            logger.error("The batch folder cannot be used: %s", error)
            is_full = error.errno == errno.ENOSPC if isinstance(error, OSError) else "full" in str(error)
            message = "The disk of the batch folder is full." if is_full else "The batch folder cannot be used."
            raise ApiError(
                507 if is_full else 500,
                f"{message} The server's log has the cause.",
                kind="server_error",
                code="disk_full" if is_full else "internal_error",
            ) from None

    return checked
