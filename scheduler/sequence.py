"""Sequence: one request in progress inside the engine."""

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import NamedTuple

from caravan.model.pooling import Pool
from caravan.model.sampling.sample import Sample
from caravan.scheduler.block_pool import block_hash, root_hash
from caravan.scheduler.grammar import Matcher
from caravan.scheduler.messages import ErrorKind, FinishReason, Request, SequenceOutput, TokenLogprobs, WaitReason
from caravan.scheduler.speculation import PromptLookup


@dataclass(eq=False)
class Sequence:
    """A request, the tokens it has so far, and how many of them are in the KV cache.

    Only the scheduler changes it. There is no prefill or decode state: num_computed_tokens catches up with
    the number of tokens, and when it has, the next token can be drawn.
    """

    request: Request
    token_ids: list[int]  # prompt, then output
    num_computed_tokens: int = 0  # tokens whose keys and values are in the KV cache
    block_table: list[int] = field(default_factory=list)  # block i holds tokens i * block_size onwards
    block_hashes: list[bytes] = field(default_factory=list)  # of the full blocks, as far as they were needed
    num_published_blocks: int = 0
    num_expected_blocks: int = 0  # full blocks that are published or that others may wait for
    is_tail_expected: bool = False  # others of its group may wait for the block its prompt ends in
    awaited_hash: bytes | None = None  # of the block it waited for when the scheduler last looked at it
    wait_reason: WaitReason | None = None  # that was last told of it
    lookup: PromptLookup | None = None  # once guesses were considered
    matcher: Matcher | None = None  # of the request's grammar
    num_read_tokens: int = 0  # prompt positions of which the request knows what it wanted to know
    pool: Pool | None = None  # of a request with pooling: the positions read so far
    num_cached_tokens: int = 0  # prompt tokens found in the prefix cache when it was first admitted
    scheduled_at_seconds: float = 0.0  # time.monotonic() when it last left the queue

    @classmethod
    def of(cls, request: Request, matcher: Matcher | None = None) -> "Sequence":
        """Return the sequence of a request; one submitted again goes on behind its earlier output."""
        sequence = cls(request, [*request.prompt_token_ids, *request.output_token_ids], matcher=matcher)
        if request.pooling == "last":
            sequence.num_read_tokens = sequence.num_prompt_tokens - 1
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
        """Tokens produced so far, before a replay included."""
        return len(self.token_ids) - len(self.request.prompt_token_ids)

    @property
    def output_token_ids(self) -> list[int]:
        """Tokens produced so far."""
        return self.token_ids[self.num_prompt_tokens :]

    @property
    def read_end(self) -> int:
        """The prompt position before which the request wants to know something."""
        if self.request.pooling is not None:
            return self.num_prompt_tokens
        is_scored = self.request.params.num_prompt_logprobs is not None
        return self.num_prompt_tokens - 1 if is_scored else 0  # a position tells of the token behind it

    @property
    def num_reusable_tokens(self) -> int:
        """Tokens that need not be computed if their keys and values are found: the last one gives the next token."""
        return self.num_tokens - 1 if self.num_read_tokens >= self.read_end else self.num_read_tokens

    def output(
        self, samples: list[Sample], reason: FinishReason | None, prompt_samples: Seq[Sample] = ()
    ) -> SequenceOutput:
        """Return what the API process hears of the tokens that a step brought, and of those it read."""
        return SequenceOutput(
            request_id=self.request.request_id,
            token_ids=[sample.token_id for sample in samples],
            logprobs=_logprobs(samples),
            prompt_logprobs=_logprobs(prompt_samples),
            embedding=self.pool.embedding() if self.pool is not None and reason is not None else [],
            finish_reason=reason,
            num_cached_tokens=self.num_cached_tokens,
            scheduled_at_seconds=self.scheduled_at_seconds,
        )

    def finish_reason(self, max_model_len: int) -> FinishReason | None:
        """Return why the sequence ends with the token it has just got, or None."""
        params = self.request.params
        if self.token_ids[-1] in params.stop_token_ids or (self.matcher and self.matcher.is_complete):
            return "stop"
        if self.num_output_tokens >= params.max_tokens or self.num_tokens >= max_model_len:
            return "length"
        return None

    def error_output(self, error: str, kind: ErrorKind = "engine") -> SequenceOutput:
        """Return what the API process hears of a sequence that ends too early."""
        request_id = self.request.request_id
        return SequenceOutput(request_id=request_id, token_ids=[], finish_reason="error", error=error, error_kind=kind)

    def hashes(self, num_blocks: int, block_size: int) -> list[bytes]:
        """Return the prefix hashes of the first num_blocks blocks, which must be full of tokens."""
        while len(self.block_hashes) < num_blocks:
            start = len(self.block_hashes) * block_size
            parent = self.block_hashes[-1] if self.block_hashes else root_hash(self.request.cache_salt)
            self.block_hashes.append(block_hash(parent, self.token_ids[start : start + block_size]))
        return self.block_hashes[:num_blocks]

    def tail_hash(self, block_size: int) -> bytes | None:
        """Return the name of what the prompt has behind its full blocks, without its last token, for its group.

        None if that is nothing, or if nobody else will ask for it.
        """
        end = self.num_prompt_tokens - 1
        num_full = end // block_size
        if not self.request.group or end == num_full * block_size:
            return None
        full = self.hashes(num_full, block_size)
        parent = full[-1] if full else root_hash(self.request.cache_salt)
        return block_hash(parent, [self.request.group, *self.token_ids[num_full * block_size : end]])


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
    """A sequence and what this step computes of it: its next num_tokens tokens, and a guess at those after its last."""

    sequence: Sequence
    num_tokens: int
    draft_token_ids: tuple[int, ...] = ()  # only if the step reaches the last token
    copied_block: int | None = None  # whose content the block of its first token gets before the step

    @property
    def num_rows(self) -> int:
        """Tokens this step computes, guessed ones included."""
        return self.num_tokens + len(self.draft_token_ids)

    def first_block(self, block_size: int) -> int:
        """Return the block of the first token of this step."""
        return self.sequence.block_table[self.sequence.num_computed_tokens // block_size]

    @property
    def reaches_end(self) -> bool:
        """Whether this step computes the last token."""
        return self.sequence.num_computed_tokens + self.num_tokens == len(self.sequence.token_ids)

    @property
    def wants_logits(self) -> bool:
        """Whether the token after the last one is drawn from this step."""
        return self.reaches_end and self.sequence.request.params.max_tokens > 0

    @property
    def num_logits(self) -> int:
        """Rows whose next token is drawn: that of the last token and those of guessed ones."""
        return 1 + len(self.draft_token_ids) if self.wants_logits else 0

    @property
    def read_positions(self) -> range:
        """Prompt positions of this step of which the request wants to know something."""
        sequence = self.sequence
        start = max(sequence.num_computed_tokens, sequence.num_read_tokens)
        return range(start, max(start, min(sequence.num_computed_tokens + self.num_tokens, sequence.read_end)))

    def read_rows(self, end: int) -> range:
        """Return the rows of the step that read_positions are, if the last of this sequence is the one before `end`."""
        first = end - self.num_rows - self.sequence.num_computed_tokens  # the row of position 0
        positions = self.read_positions
        return range(first + positions.start, first + positions.stop)

    @property
    def token_ids(self) -> list[int]:
        """The tokens this step computes."""
        start = self.sequence.num_computed_tokens
        return [*self.sequence.token_ids[start : start + self.num_tokens], *self.draft_token_ids]
