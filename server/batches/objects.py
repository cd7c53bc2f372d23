"""Files and batches as OpenAI's API shows them."""

from typing import Literal

import msgspec
from pydantic import Field

from caravan.server.openai.protocol.strict_model import StrictModel

Purpose = Literal["batch", "batch_output"]
BatchStatus = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
]
Endpoint = Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"]
MAX_METADATA, MAX_METADATA_KEY, MAX_METADATA_VALUE = 16, 64, 512  # pairs, characters, characters


class FileObject(msgspec.Struct, kw_only=True):
    """A file."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int  # seconds since 1970
    filename: str
    purpose: Purpose
    status: Literal["processed"] = "processed"


class FileList(msgspec.Struct, kw_only=True):
    """A page of files."""

    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedFile(msgspec.Struct, kw_only=True):
    """A file that was deleted."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class BatchError(msgspec.Struct, kw_only=True):
    """A problem with a line of the input file, or with the file."""

    code: str
    line: int | None  # from 1
    message: str
    param: str | None = None


class BatchErrors(msgspec.Struct, kw_only=True):
    """The first problems of an input file."""

    object: Literal["list"] = "list"
    data: list[BatchError]


class RequestCounts(msgspec.Struct, kw_only=True):
    """Lines of a batch. Those that an expired or cancelled batch did not run are neither completed nor failed."""

    total: int
    completed: int
    failed: int  # the status of the response was not 200


class BatchObject(msgspec.Struct, kw_only=True):
    """A batch; times are in seconds since 1970."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    errors: BatchErrors | None
    input_file_id: str
    completion_window: Literal["24h"] = "24h"
    status: BatchStatus
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int | None
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    metadata: dict[str, str] | None


class BatchList(msgspec.Struct, kw_only=True):
    """A page of batches."""

    object: Literal["list"] = "list"
    data: list[BatchObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class BatchRequest(StrictModel):
    """Create a batch of the requests in a file."""

    input_file_id: str = Field(description="A file with the purpose `batch`: one request per line.")
    endpoint: Endpoint = Field(description="The `url` of all lines.")
    completion_window: Literal["24h"] = Field(description="Time after which the batch expires.")
    metadata: dict[str, str] = Field(default={}, description="Up to 16 names of 64 and texts of 512 characters.")
