"""Load: requests sent in a closed loop (a fixed number at a time) or an open one (at their times)."""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator

from caravan.cli.bench.answer import AnswerFailed
from caravan.cli.bench.endpoint import CONNECTION_ERRORS, Endpoint, connection_error
from caravan.cli.bench.measurement import Measurement
from caravan.cli.bench.prompts import PromptMaker
from caravan.cli.bench.workload import PlannedRequest

OnEnd = Callable[[Measurement], None]


async def closed_loop(
    endpoint: Endpoint,
    prompts: PromptMaker,
    requests: Iterator[PlannedRequest],
    *,
    concurrency: int,
    max_seconds: float | None,
    timeout_seconds: float,
    on_end: OnEnd,
) -> None:
    """Keep `concurrency` requests running until none is left or the time is over, then complete those that run."""
    start = time.perf_counter()

    async def client() -> None:
        for request in requests:
            due = time.perf_counter() - start
            if max_seconds is not None and due > max_seconds:
                return
            on_end(await _send(endpoint, prompts, request, start, due, timeout_seconds))

    async with asyncio.TaskGroup() as tasks:
        for _ in range(concurrency):
            tasks.create_task(client())


async def open_loop(
    endpoint: Endpoint,
    prompts: PromptMaker,
    requests: Iterable[PlannedRequest],
    *,
    timeout_seconds: float,
    on_end: OnEnd,
) -> None:
    """Send each request when it is due, and wait for all responses."""
    start = time.perf_counter()

    async def client(request: PlannedRequest, due: float) -> None:
        on_end(await _send(endpoint, prompts, request, start, due, timeout_seconds))

    async with asyncio.TaskGroup() as tasks:
        for request in requests:
            due = request.arrival_seconds or 0.0
            await asyncio.sleep(max(0.0, start + due - time.perf_counter()))
            tasks.create_task(client(request, due))


async def _send(
    endpoint: Endpoint,
    prompts: PromptMaker,
    request: PlannedRequest,
    start: float,
    due: float,
    timeout_seconds: float,
) -> Measurement:
    prompt = prompts.prompt(request.prompt_tokens)
    sent = time.perf_counter() - start
    try:
        async with asyncio.timeout(timeout_seconds):
            answer = await endpoint.ask(prompt, request.output_tokens)
    except AnswerFailed as error:
        return Measurement(due, sent, time.perf_counter() - start, error=error.kind, error_text=error.text)
    except CONNECTION_ERRORS as error:  # TimeoutError is an OSError
        return Measurement(due, sent, time.perf_counter() - start, error=connection_error(error))
    ended = time.perf_counter()
    asked_tokens = prompts.shared_prefix_tokens + request.prompt_tokens
    return Measurement(
        due,
        sent,
        ended - start,
        prompt_tokens=asked_tokens if answer.prompt_tokens is None else answer.prompt_tokens,
        output_tokens=len(answer.token_times) if answer.output_tokens is None else answer.output_tokens,
        token_times=[moment - start for moment in answer.token_times],
    )
