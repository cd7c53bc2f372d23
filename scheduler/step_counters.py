"""StepCounters: the counters of one step, and StepRecord, with its time."""

from dataclasses import dataclass, field

from caravan.scheduler.messages import SpillCounts
from caravan.scheduler.sequence import DraftSource, ScheduledSequence


@dataclass
class StepCounters:
    """The counters of messages.StepStats while a step is scheduled and committed."""

    num_prefill_tokens: int = 0
    num_decode_tokens: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    num_preemptions: int = 0
    num_evicted_blocks: int = 0
    prefix_cache_queries: int = 0
    prefix_cache_hits: int = 0
    num_answer_draft_tokens: int = 0
    num_answer_accepted_tokens: int = 0
    num_model_draft_tokens: int = 0
    num_model_accepted_tokens: int = 0
    draft_model_seconds: float = 0.0
    spill: SpillCounts | None = None

    def count(self, plan: list[ScheduledSequence]) -> None:
        """Add the tokens of a plan.

        A single last token and draft tokens are decode; all other tokens are prefill, also after a preemption.
        """
        for scheduled in plan:
            if scheduled.draft_token_ids:
                num_drafted = len(scheduled.draft_token_ids)
                self.num_draft_tokens += num_drafted
                self.num_decode_tokens += num_drafted
                self.num_answer_draft_tokens += num_drafted * (scheduled.draft_source == "answers")
                self.num_model_draft_tokens += scheduled.num_model_draft_tokens
            if scheduled.num_tokens == 1 and scheduled.wants_logits and scheduled.sequence.num_output_tokens > 0:
                self.num_decode_tokens += 1
            else:
                self.num_prefill_tokens += scheduled.num_tokens

    def count_accepted(self, source: DraftSource, num_tokens: int) -> None:
        """Add accepted draft tokens from a source."""
        self.num_accepted_tokens += num_tokens
        self.num_answer_accepted_tokens += num_tokens * (source == "answers")
        self.num_model_accepted_tokens += num_tokens * (source == "model")


@dataclass
class StepRecord:
    """What is recorded of a step while it is scheduled and committed; the next one may be scheduled in between."""

    started_seconds: float = 0.0  # on the scheduler's clock
    planned_seconds: float = 0.0  # that its prompts leave it; 0: no limit
    is_launched: bool = False  # computed while others are scheduled and committed
    counters: StepCounters = field(default_factory=StepCounters)
