"""An application with a batch folder over a fake engine, and requests to it."""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from caravan.server.batches.batches import Batches
from caravan.server.batches.settings import BatchLimits
from caravan.server.generation.context import NO_KEY
from caravan.server.generation.request_limits import RequestLimits
from tests.server.openai.api import COMPLETIONS, Api, answered, open_api
from tests.support.waiting import until

Body = dict[str, Any]


class Clock:
    """The time since 1970, which a test sets."""

    def __init__(self) -> None:
        self.seconds = 1_800_000_000.0

    def __call__(self) -> float:
        return self.seconds


@asynccontextmanager
async def open_batches(
    folder: Path,
    *args: Any,
    limits: BatchLimits | None = None,
    request_limits: RequestLimits | None = None,
    clock: Clock | None = None,
    **options: Any,
) -> AsyncIterator[Api]:
    """Return an application; at the end its batches stop as if it had been killed after its last transaction."""
    keys = options.get("keys")
    batches = Batches(
        folder,
        limits or BatchLimits(),
        key_names=frozenset({NO_KEY}) if keys is None else keys.names,
        clock=clock or Clock(),
        clock_seconds=0.01,
        retry_seconds=0.01,
    )
    try:
        async with open_api(*args, batches=batches, limits=request_limits, **options) as api:
            await batches.start()
            yield api
    finally:
        await batches.close()


def a_line(custom_id: str = "one", url: str = COMPLETIONS, method: str = "POST", **body: Any) -> Body:
    """Return a line with a completion of "hi"."""
    return {
        "custom_id": custom_id,
        "method": method,
        "url": url,
        "body": {"model": "fake", "prompt": "hi", "max_tokens": 20} | body,
    }


def json_lines(lines: Sequence[Body]) -> bytes:
    """Return the contents of a file."""
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


async def upload(api: Api, content: bytes, headers: dict[str, str] | None = None) -> Body:
    """Return the file object of an upload."""
    sent = await api.http.post(
        "/v1/files", files={"file": ("in.jsonl", content)}, data={"purpose": "batch"}, headers=headers
    )
    return answered(sent)


async def create(api: Api, lines: Sequence[Body] | bytes, *, endpoint: str = COMPLETIONS, **options: Any) -> Body:
    """Upload lines and return the batch object of a new batch of them."""
    headers = options.pop("headers", None)
    content = lines if isinstance(lines, bytes) else json_lines(lines)
    file = await upload(api, content, headers)
    body = {"input_file_id": file["id"], "endpoint": endpoint, "completion_window": "24h"} | options
    return answered(await api.http.post("/v1/batches", json=body, headers=headers))


async def retrieve(api: Api, batch_id: str, headers: dict[str, str] | None = None) -> Body:
    """Return a batch object."""
    return answered(await api.http.get(f"/v1/batches/{batch_id}", headers=headers))


async def ended(api: Api, batch_id: str, headers: dict[str, str] | None = None) -> Body:
    """Return the object of a batch that has ended."""
    batch: Body = {}

    while batch.get("status") not in ("completed", "failed", "expired", "cancelled"):
        await wait_a_moment()
        batch = await retrieve(api, batch_id, headers)
    return batch


async def wait_a_moment() -> None:
    """Let other tasks and threads run."""
    turns = iter(range(2))
    await until(lambda: next(turns, 0) == 1)


async def lines_of(api: Api, file_id: str | None, headers: dict[str, str] | None = None) -> list[Body]:
    """Return the lines of a file, none if there is no file."""
    if file_id is None:
        return []
    return in_lines(await api.http.get(f"/v1/files/{file_id}/content", headers=headers))


def in_lines(response: httpx.Response) -> list[Body]:
    """Return the lines of a download."""
    assert response.status_code == 200, response.text
    return [json.loads(line) for line in response.text.splitlines()]


def message_of(response: httpx.Response, status: int) -> str:
    """Return the message of an error."""
    assert response.status_code == status, response.text
    return str(response.json()["error"]["message"])
