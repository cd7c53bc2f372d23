"""OutputQueue: the engine's outputs for one request, on their way to one reader."""

import time
from collections.abc import Callable

import msgspec

from caravan.scheduler.messages import SequenceOutput


class EngineUnavailable(Exception):
    """The engine takes no request now: it is loading, draining, or has fallen silent."""


class EngineDied(Exception):
    """The engine process ended while it worked on a request."""


class OutputQueue:
    """The outputs of one request, each once and in order, until the one with a finish reason.

    The engine never waits for a reader. What gathers while the reader is busy is handed over as one output, so a
    slow reader catches up in one step, and what is held is bounded by the `max_tokens` of the request.
    """

    def __init__(self, request_id: int, on_abort: Callable[[int], None]) -> None:
        self.request_id = request_id
        self.received_at_seconds = 0.0  # time.monotonic() of the newest output
        self.on_news: Callable[[], None] = lambda: None  # called when there is something to take; set by the reader
        self._on_abort = on_abort
        self._outputs: list[SequenceOutput] = []
        self._error: Exception | None = None
        self._is_closed = False  # nothing more will come from the engine

    def put(self, output: SequenceOutput) -> None:
        """Add what one step did; outputs after the end are dropped."""
        if self._is_closed:
            return
        self.received_at_seconds = time.monotonic()
        self._outputs.append(output)
        self._is_closed = output.finish_reason is not None
        self.on_news()

    def fail(self, error: Exception) -> None:
        """End the stream: the reader gets what has gathered, then `error`."""
        if self._is_closed:
            return
        self._error = error
        self._is_closed = True
        self.on_news()

    def abort(self) -> None:
        """End the stream because its reader wants no more; the engine is told once, and only if it is still at work."""
        self._outputs.clear()
        self._error = None
        if self._is_closed:
            return
        self._is_closed = True
        self._on_abort(self.request_id)

    def take(self) -> SequenceOutput | None:
        """Return what has gathered, None if that is nothing; raises the error that ended the stream.

        An end that is no good comes by itself, after what was produced before it.
        """
        if not self._outputs:
            if self._error is not None:
                raise self._error
            return None
        outputs, self._outputs = self._outputs, []
        if len(outputs) > 1 and outputs[-1].finish_reason in ("error", "abort"):
            self._outputs.append(outputs.pop())
        if self._outputs or self._error is not None:
            self.on_news()  # there is more to take
        return outputs[0] if len(outputs) == 1 else _joined(outputs)


def _joined(outputs: list[SequenceOutput]) -> SequenceOutput:
    return msgspec.structs.replace(
        outputs[-1],
        token_ids=[token_id for output in outputs for token_id in output.token_ids],
        logprobs=[entry for output in outputs for entry in output.logprobs],
        prompt_logprobs=[entry for output in outputs for entry in output.prompt_logprobs],
        num_cached_tokens=outputs[0].num_cached_tokens,
    )
