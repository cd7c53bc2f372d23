"""Cancel work when the client disconnects."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive

Result = TypeVar("Result")


async def until_disconnect(receive: Receive, work: Awaitable[Result]) -> Result:
    """Return the result of `work`; if the client disconnects first, cancel it and raise ClientDisconnect.

    The request body must have been read. `work` has ended when this returns or raises. Raises what `receive` raises,
    too: RequestCancelled for a resumable response that another request has ended.
    """
    working = asyncio.ensure_future(work)
    waiting = asyncio.create_task(_disconnect(receive))
    try:
        await asyncio.wait({working, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        waiting.result()
        raise ClientDisconnect
    finally:
        working.cancel()
        waiting.cancel()
        await asyncio.gather(working, waiting, return_exceptions=True)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
