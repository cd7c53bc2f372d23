"""OutputQueue: the engine's outputs for one request, buffered for one reader."""

import time
from collections.abc import Callable

import msgspec

from caravan.scheduler.messages import SequenceOutput


class EngineUnavailable(Exception):
    """No requests are accepted now: the engine was never loaded, has been stopped, or could not be replaced."""


class EngineDied(Exception):
    """The engine process ended before the request did."""


class AdapterUnloaded(Exception):
    """The adapter of a request was unloaded while the request was prepared; the text is its name."""


class ModelLoadFailed(Exception):
    """The model of a request could not be loaded; the text is for the client."""

    def __init__(self, fact: str, *, is_permanent: bool = False) -> None:
        """`is_permanent` if the model or its options are at fault: another try fails, too."""
        super().__init__(fact)
        self.is_permanent = is_permanent


class OutputQueue:
    """The outputs of one request, each once and in order, until the one with a finish reason.

    The engine never waits for a reader. Outputs that accumulate while the reader is busy are merged into one, so a slow
    reader catches up in one step, and the buffer is limited by the `max_tokens` of the request.
    """

    def __init__(self, request_id: int, on_abort: Callable[[int], None]) -> None:
        self.request_id = request_id
        self.received_at_seconds = 0.0  # time.monotonic() of the newest output
        self.on_output: Callable[[], None] = lambda: None  # called when `take` has an output; set by the reader
        self._on_abort = on_abort
        self._outputs: list[SequenceOutput] = []
        self._error: Exception | None = None
        self._is_closed = False  # the engine sends no more

    def put(self, output: SequenceOutput) -> None:
        """Add the output of a step; outputs after the last one are dropped."""
        if self._is_closed:
            return
        self.received_at_seconds = time.monotonic()
        self._outputs.append(output)
        self._is_closed = output.finish_reason is not None
        self.on_output()

    def fail(self, error: Exception) -> None:
        """Close the queue: the reader gets the buffered outputs, then `error`."""
        if self._is_closed:
            return
        self._error = error
        self._is_closed = True
        self.on_output()

    def abort(self) -> None:
        """Close the queue for the reader; `on_abort` is called once, and only if the request has not ended."""
        self._outputs.clear()
        self._error = None
        if self._is_closed:
            return
        self._is_closed = True
        self._on_abort(self.request_id)

    def take(self) -> SequenceOutput | None:
        """Return the buffered outputs as one, None if there are none; raises the error that closed the queue.

        An output with finish reason "error" or "abort" is returned separately, after those before it.
        """
        if not self._outputs:
            if self._error is not None:
                raise self._error
            return None
        outputs, self._outputs = self._outputs, []
        if len(outputs) > 1 and outputs[-1].finish_reason in ("error", "abort"):
            self._outputs.append(outputs.pop())
        if self._outputs or self._error is not None:
            self.on_output()  # there is more to return
        return outputs[0] if len(outputs) == 1 else _joined(outputs)


def _joined(outputs: list[SequenceOutput]) -> SequenceOutput:
    return msgspec.structs.replace(
        outputs[-1],
        token_ids=[token_id for output in outputs for token_id in output.token_ids],
        logprobs=[entry for output in outputs for entry in output.logprobs],
        prompt_logprobs=[entry for output in outputs for entry in output.prompt_logprobs],
        token_logprobs=next((output.token_logprobs for output in outputs if output.token_logprobs), []),
        num_cached_tokens=outputs[0].num_cached_tokens,
    )
