"""Sequence: one request in progress inside the engine."""

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from caravan.model.pooling import Pool
from caravan.model.sampling.sample import Sample
from caravan.scheduler.earlier_answers import AnswerLookup
from caravan.scheduler.grammar import Matcher
from caravan.scheduler.messages import (
    ErrorKind,
    FinishReason,
    Request,
    SequenceOutput,
    StopReason,
    TokenLogprobs,
    WaitReason,
)
from caravan.scheduler.repetition import RepetitionDetector
from caravan.scheduler.speculation import PromptLookup
from caravan.scheduler.thought_budget import ThoughtPosition
from caravan.scheduler.token_mask import AllowedTokens

DraftSource = Literal["text", "answers", "model"]  # its own text, earlier answers of its key, or the draft model


@dataclass(eq=False)
class Sequence:
    """A request, its tokens so far, and how many of them are in the KV cache.

    Only the scheduler and its block manager change it. There is no prefill or decode state: num_computed_tokens catches
    up with the number of tokens, and then the next token can be sampled.
    """

    request: Request
    token_ids: list[int]  # prompt, then output
    num_computed_tokens: int = 0  # tokens whose keys and values are in the KV cache
    block_table: list[int] = field(default_factory=list)  # block i holds tokens i * block_size onwards
    block_hashes: list[bytes] = field(default_factory=list)  # of full blocks, computed when needed
    num_cached_blocks: int = 0  # of the block table, in the prefix cache
    num_pending_blocks: int = 0  # cached blocks, and full blocks that this sequence will compute
    is_tail_pending: bool = False  # others of its group may wait for the block that their common beginning ends in
    copied_tail: int | None = None  # such a block, held until it is copied
    awaited_hash: bytes | None = None  # of the pending block that it waited for when the scheduler last looked at it
    has_read_prefix: bool = False  # from the spill file, or looked for it there, since it last left the batch
    wait_reason: WaitReason | None = None  # the last one reported
    lookup: PromptLookup | None = None  # set when draft tokens are first considered
    answer_lookup: AnswerLookup | None = None  # the same in earlier answers
    draft_acceptance: float | None = None  # of tokens of the draft model, once it has drafted some
    num_draft_computed_tokens: int = 0  # tokens whose keys and values are in the KV cache of the draft model
    matcher: Matcher | None = None  # of the request's grammar
    allowed: AllowedTokens | None = None  # of the request's allowed_token_ids
    thought: ThoughtPosition | None = None  # of a request with a budget for its thought
    detector: RepetitionDetector | None = None
    stop_reason: StopReason = ""  # why it has ended, beside stop tokens and grammars
    problem: str = ""  # why no token may come next, although the logits are finite
    num_scored_tokens: int = 0  # prompt positions whose log-probability or hidden state the request already has
    scored: list[Sample] = field(default_factory=list)  # log-probabilities for the cache, from token scored_start on
    scored_start: int = 1
    recalled: list[TokenLogprobs] = field(default_factory=list)  # of the prompt's first tokens, not sent yet
    pool: Pool | None = None  # of a request with pooling: the positions scored so far
    num_cached_tokens: int = 0  # prompt tokens found in the prefix cache when it first joined the batch
    scheduled_at_seconds: float = 0.0  # time.monotonic() when it last left the queue

    @classmethod
    def of(cls, request: Request, matcher: Matcher | None = None) -> "Sequence":
        """Return the sequence of a request; one submitted again continues after its earlier output."""
        sequence = cls(request, [*request.prompt_token_ids, *request.output_token_ids], matcher=matcher)
        if request.params.allowed_token_ids:
            sequence.allowed = AllowedTokens(request.params.allowed_token_ids)
        if request.params.repetition is not None:
            sequence.detector = RepetitionDetector(request.params.repetition)
        if request.thought is not None:
            sequence.thought = ThoughtPosition.of(request.thought)
        if request.pooling == "last" or (sequence.is_end_scored and request.params.num_prompt_logprobs is None):
            sequence.num_scored_tokens = sequence.num_prompt_tokens - 1
        return sequence

    @property
    def num_tokens(self) -> int:
        """Tokens so far, prompt and output."""
        return len(self.token_ids)

    @property
    def num_missing_tokens(self) -> int:
        """Tokens whose keys and values are still to be computed; the last one gives the next token."""
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.request.prompt_token_ids)

    @property
    def num_output_tokens(self) -> int:
        """Tokens produced so far, including those before a replay."""
        return len(self.token_ids) - len(self.request.prompt_token_ids)

    @property
    def output_token_ids(self) -> list[int]:
        """Tokens produced so far."""
        return self.token_ids[self.num_prompt_tokens :]

    @property
    def is_end_scored(self) -> bool:
        """Whether the last position of the prompt is scored, for the token after it."""
        return bool(self.request.params.logprob_token_ids)

    @property
    def scored_end(self) -> int:
        """The end of the prompt positions that are scored, for log-probabilities or pooling."""
        if self.request.pooling is not None or self.is_end_scored:
            return self.num_prompt_tokens
        is_scored = self.request.params.num_prompt_logprobs is not None
        return self.num_prompt_tokens - 1 if is_scored else 0  # a position scores the token after it

    @property
    def num_reusable_tokens(self) -> int:
        """Tokens that need not be computed if cached: all before the last one, or before the first to score."""
        return self.num_tokens - 1 if self.num_scored_tokens >= self.scored_end else self.num_scored_tokens

    def take_scored(self, end: int, samples: Seq[Sample], pool: Pool | None) -> None:
        """Store the results of a step that has scored the prompt up to position `end`."""
        self.num_scored_tokens = end
        self.scored += samples
        self.pool = pool

    def output(
        self,
        samples: list[Sample],
        reason: FinishReason | None,
        prompt_samples: Seq[Sample] = (),
        token_logprobs: Seq[float] = (),
    ) -> SequenceOutput:
        """Return the message to the API process about the samples of a step and the scored tokens of the prompt."""
        recalled, self.recalled = self.recalled, []
        return SequenceOutput(
            request_id=self.request.request_id,
            token_ids=[sample.token_id for sample in samples],
            logprobs=_logprobs(samples),
            prompt_logprobs=[*recalled, *_logprobs(prompt_samples)],
            embedding=self.pool.embedding() if self.pool is not None and reason is not None else [],
            finish_reason=reason,
            stop_reason=self.stop_reason,
            num_cached_tokens=self.num_cached_tokens,
            scheduled_at_seconds=self.scheduled_at_seconds,
            token_logprobs=[*token_logprobs],
        )

    def finish_reason(self, max_model_len: int) -> FinishReason | None:
        """Return why the sequence ends with its newest token, or None."""
        params, num_tokens = self.request.params, len(self.token_ids)
        if self.token_ids[-1] in params.stop_token_ids or (self.matcher and self.matcher.is_complete):
            return "stop"
        if self.detector is not None and self.detector.repeats(self.token_ids, self.num_prompt_tokens):
            self.stop_reason = "repetition"
            return "stop"
        if num_tokens - len(self.request.prompt_token_ids) >= params.max_tokens or num_tokens >= max_model_len:
            return "length"
        return None

    def end_with_error(self, error: str, kind: ErrorKind) -> SequenceOutput:
        """Close the matcher of a sequence that has left the batch, and return its error_output."""
        if self.matcher is not None:
            self.matcher.close()
        return self.error_output(error, kind)

    def error_output(self, error: str, kind: ErrorKind = "engine") -> SequenceOutput:
        """Return the message to the API process about a sequence that ends with an error."""
        request_id = self.request.request_id
        return SequenceOutput(request_id=request_id, token_ids=[], finish_reason="error", error=error, error_kind=kind)


def _logprobs(samples: Seq[Sample]) -> list[TokenLogprobs]:
    return [
        TokenLogprobs(
            logprob=sample.logprob,
            top_token_ids=list(sample.top_token_ids),
            top_logprobs=list(sample.top_logprobs),
        )
        for sample in samples
        if sample.logprob is not None
    ]


class ScheduledSequence(NamedTuple):
    """A sequence and what this step computes of it: its next num_tokens tokens, then its draft tokens."""

    sequence: Sequence
    num_tokens: int
    draft_token_ids: tuple[int, ...] = ()  # only if the step reaches the last token
    copied_block: int | None = None  # copied before the step to the block of its first token
    draft_source: DraftSource = "text"
    num_draft_model_rows: int = 0  # tokens that the draft model computes first; the last one if it is to draft

    @property
    def num_rows(self) -> int:
        """Tokens this step computes, draft tokens included."""
        return self.num_tokens + len(self.draft_token_ids)

    @property
    def num_model_draft_tokens(self) -> int:
        """Draft tokens that come from the draft model."""
        return len(self.draft_token_ids) if self.draft_source == "model" else 0

    def first_block(self, block_size: int) -> int:
        """Return the block of the first token of this step."""
        return self.sequence.block_table[self.sequence.num_computed_tokens // block_size]

    @property
    def reaches_end(self) -> bool:
        """Whether this step computes the last token."""
        return self.sequence.num_computed_tokens + self.num_tokens == len(self.sequence.token_ids)

    @property
    def wants_logits(self) -> bool:
        """Whether this step samples the token after the last one."""
        sequence = self.sequence  # a decode step asks for each row: reaches_end is spelled out
        is_last = sequence.num_computed_tokens + self.num_tokens == len(sequence.token_ids)
        return is_last and sequence.request.params.max_tokens > 0

    @property
    def num_logits(self) -> int:
        """Rows to sample from: that of the last token and those of draft tokens."""
        return 1 + len(self.draft_token_ids) if self.wants_logits else 0

    @property
    def scored_positions(self) -> range:
        """Prompt positions that this step scores."""
        sequence = self.sequence
        start = max(sequence.num_computed_tokens, sequence.num_scored_tokens)
        return range(start, max(start, min(sequence.num_computed_tokens + self.num_tokens, sequence.scored_end)))

    def scored_rows(self, end: int) -> range:
        """Return the rows of scored_positions in the step, where this sequence's rows end before row `end`.

        Without that of the last token if it is one to sample from: no row is wanted twice.
        """
        first = end - self.num_rows - self.sequence.num_computed_tokens  # the row of position 0
        positions = self.scored_positions
        stop = min(positions.stop, self.sequence.num_tokens - 1) if self.num_logits else positions.stop
        return range(first + positions.start, first + max(positions.start, stop))

    @property
    def token_ids(self) -> list[int]:
        """The tokens this step computes, draft tokens included."""
        start = self.sequence.num_computed_tokens
        return [*self.sequence.token_ids[start : start + self.num_tokens], *self.draft_token_ids]
