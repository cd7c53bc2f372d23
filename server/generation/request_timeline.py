"""RequestTimeline: when things happened to one sequence."""

import time
from dataclasses import dataclass

from caravan.scheduler.messages import FinishReason
from caravan.server.generation.admission import Admission, Reservation
from caravan.server.observe.metrics import Metrics


@dataclass(kw_only=True)
class RequestTimeline:
    """The moments of one sequence, turned into histograms as they pass; all are time.monotonic()."""

    metrics: Metrics
    admission: Admission
    reservation: Reservation
    num_prompt_tokens: int
    max_tokens: int
    arrived_at_seconds: float  # at the front, before tokenizing
    queued_at_seconds: float
    _num_tokens: int = 0
    _scheduled_at_seconds: float = 0.0
    _first_token_at_seconds: float = 0.0
    _last_token_at_seconds: float = 0.0
    _is_finished: bool = False

    def on_tokens(self, num_tokens: int, received_at_seconds: float, scheduled_at_seconds: float) -> None:
        """Take in tokens that came together; their distance to the tokens before is shared out evenly."""
        if scheduled_at_seconds:
            self._scheduled_at_seconds = scheduled_at_seconds
        if num_tokens == 0:
            return
        self.admission.count_tokens(self.reservation, num_tokens, self._scheduled_at_seconds - self.queued_at_seconds)
        if self._num_tokens == 0:
            self._first_token_at_seconds = received_at_seconds
            self.metrics.first_token.observe(received_at_seconds - self.arrived_at_seconds)
            self.metrics.count_prompt_tokens(self.num_prompt_tokens)
        else:
            latency_seconds = (received_at_seconds - self._last_token_at_seconds) / num_tokens
            self.metrics.inter_token.observe(latency_seconds, num_tokens)
        self._num_tokens += num_tokens
        self._last_token_at_seconds = received_at_seconds

    def finish(self, reason: FinishReason) -> None:
        """Close the timeline; only the first call counts."""
        if self._is_finished:
            return
        self._is_finished = True
        self.admission.leave(self.reservation, is_complete=reason in ("stop", "length"))
        self.metrics.count_finished(reason)
        self.metrics.end_to_end.observe(time.monotonic() - self.arrived_at_seconds)
        self.metrics.prompt_lengths.observe(self.num_prompt_tokens)
        self.metrics.generation_lengths.observe(self._num_tokens)
        self.metrics.max_tokens.observe(self.max_tokens)
        if self._num_tokens == 0:
            if reason == "length":  # only the prompt was wanted
                self.metrics.count_prompt_tokens(self.num_prompt_tokens)
            return
        decode_seconds = self._last_token_at_seconds - self._first_token_at_seconds
        self.metrics.decode_time.observe(decode_seconds)
        if self._num_tokens > 1:
            self.metrics.per_token.observe(decode_seconds / (self._num_tokens - 1))
        if self._scheduled_at_seconds:
            scheduled_at_seconds = self._scheduled_at_seconds
            self.metrics.queue_time.observe(max(0.0, scheduled_at_seconds - self.queued_at_seconds))
            # A sequence preempted after its first token was last scheduled after it: no prefill time then.
            self.metrics.prefill_time.observe(max(0.0, self._first_token_at_seconds - scheduled_at_seconds))
            self.metrics.inference_time.observe(max(0.0, self._last_token_at_seconds - scheduled_at_seconds))
