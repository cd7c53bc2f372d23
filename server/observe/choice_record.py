"""ChoiceRecord: the times and counts of one choice of a request."""

import time
from typing import Any

from caravan.server.observe.explanation import ChoiceSteps


class ChoiceRecord:
    """One sequence, from the queue to its end; times are time.monotonic(), 0 for what has not happened."""

    def __init__(self, index: int, num_prompt_tokens: int, max_tokens: int) -> None:
        self.index = index
        self.num_prompt_tokens = num_prompt_tokens
        self.max_tokens = max_tokens
        self.submitted_at_seconds = time.monotonic()
        self.queued_at_seconds = self.submitted_at_seconds  # again after a preemption or a new engine
        self.scheduled_at_seconds = 0.0  # when it last left the queue
        self.first_token_at_seconds = 0.0
        self.last_token_at_seconds = 0.0
        self.has_joined = False  # the batch, at least once
        self.finish_reason = ""  # empty until it has ended
        self.end_event: dict[str, Any] = {}
        self.num_tokens = 0  # produced by the engine; at the end those that the client got
        self.num_read_tokens = 0  # handed to the response
        self.num_cached_tokens: int | None = None  # None: nothing was read yet
        self.num_steps = 0  # that produced tokens
        self._num_in_batch = 0  # sequences in these steps, in sum
        self._largest_batch = 0

    @property
    def queue_seconds(self) -> float:
        """From its submission to when it last left the queue."""
        return self.scheduled_at_seconds - self.submitted_at_seconds

    def add_step(self, num_tokens: int, batch_size: int) -> None:
        """Count a step over `batch_size` sequences that produced `num_tokens` tokens of this one."""
        self.num_tokens += num_tokens
        self.num_steps += 1
        self._num_in_batch += batch_size
        self._largest_batch = max(self._largest_batch, batch_size)

    def read(self, num_tokens: int, received_at_seconds: float) -> None:
        """Count tokens that were handed to the response."""
        if not self.num_read_tokens:
            self.first_token_at_seconds = received_at_seconds
        self.num_read_tokens += num_tokens
        self.last_token_at_seconds = received_at_seconds

    def summary(self, engine_number: int) -> ChoiceSteps:
        """Return its steps, the batches it ran in and how it ended, for an explanation."""
        return ChoiceSteps(
            engine_request=engine_number,
            choice=self.index,
            tokens=self.num_tokens,
            steps=self.num_steps,
            mean_batch=round(self._num_in_batch / self.num_steps, 1) if self.num_steps else 0,
            largest_batch=self._largest_batch,
            finish_reason=self.finish_reason or None,
        )
