"""TextStream: one choice's tokens turned into text that may be shown."""

from collections.abc import Collection, Sequence
from itertools import accumulate
from typing import Literal, NamedTuple

from caravan.model.tokenizer.detokenizer import Detokenizer
from caravan.scheduler.messages import SequenceOutput, TokenLogprobs
from caravan.server.engine.output_queue import OutputQueue
from caravan.server.generation.errors import GenerationCancelled, GenerationFailed, InvalidGrammar
from caravan.server.generation.stop_strings import StopStrings, TextCutter


class TokenEntry(NamedTuple):
    """One token of a choice, or of its prompt, with its log-probabilities."""

    token_id: int
    text_offset: int  # characters of the choice's text before this token's
    logprobs: TokenLogprobs | None  # None: the first token of a prompt, before which there is nothing


class TextDelta(NamedTuple):
    """What became known of a choice at once; joined in order, deltas are the choice."""

    text: str
    token_ids: list[int]  # a stop token included: it is counted, though it has neither text nor entry
    entries: list[TokenEntry]  # empty unless log-probabilities were asked for
    prompt_entries: list[TokenEntry]  # in the first delta, if those of the prompt were asked for
    finish_reason: Literal["stop", "length"] | None
    num_cached_tokens: int
    scheduled_at_seconds: float
    received_at_seconds: float
    embedding: Sequence[float] = ()  # of the prompt, in the last delta of a request for vectors


class ShownPrompt(NamedTuple):
    """What an answer shows of its prompt."""

    token_ids: list[int]
    texts: list[str]  # the characters of each token; empty if the text itself is not repeated
    has_logprobs: bool

    @property
    def text(self) -> str:
        """What comes before the choice's own text."""
        return "".join(self.texts)

    def entries(self, logprobs: list[TokenLogprobs]) -> list[TokenEntry]:
        """Return each token's entry, given the log-probabilities of all but the first."""
        if not self.has_logprobs:
            return []
        offsets = accumulate(map(len, self.texts or [""] * len(self.token_ids)), initial=0)
        return [TokenEntry(*entry) for entry in zip(self.token_ids, offsets, [None, *logprobs], strict=False)]


class TextStream:
    """The deltas of one choice; the last one carries the finish reason.

    Nothing is shown that might have to be taken back: bytes wait until they form a character, and the beginning of a
    possible stop string waits until it is one or is not. A stop string ends the engine's work on the request.
    """

    def __init__(
        self,
        tokens: OutputQueue,
        detokenizer: Detokenizer,
        stop_strings: StopStrings,
        *,
        stop_token_ids: Collection[int],
        include_stop_string: bool = False,
        min_tokens: int = 0,
        prompt: ShownPrompt | None = None,
    ) -> None:
        """`prompt` is what of the prompt comes before the choice's own first text."""
        self._tokens = tokens
        self._detokenizer = detokenizer
        self._stop_token_ids = stop_token_ids
        self._cutter = TextCutter(stop_strings, include_match=include_stop_string)
        self._is_never_cut = stop_strings.is_empty
        self._min_tokens = min_tokens
        self._num_tokens = 0
        self._prompt = prompt  # until it is shown
        self._prompt_logprobs: list[TokenLogprobs] = []
        self._num_characters = 0 if prompt is None else len(prompt.text)

    def abort(self) -> None:
        """Stop the engine's work on this choice, if it still goes on."""
        self._tokens.abort()

    def take(self) -> TextDelta | None:
        """Return what has come since the last delta, None if that is nothing.

        Raises GenerationFailed, InvalidGrammar, GenerationCancelled, and EngineDied when the engine ended before the
        choice did.
        """
        output = self._tokens.take()
        if output is None:
            return None
        if output.finish_reason == "error" and output.error_kind == "grammar":
            raise InvalidGrammar(output.error or "")
        if output.finish_reason == "error":
            raise GenerationFailed(output.error or "the engine gave no reason")
        if output.finish_reason == "abort":
            raise GenerationCancelled
        self._prompt_logprobs += output.prompt_logprobs
        if not output.token_ids and output.finish_reason is None:
            return None
        if output.finish_reason is None and not output.logprobs and self._is_never_cut:
            delta = self._plain_delta(output)
        else:
            delta = self._delta(output, output.finish_reason)
        if self._prompt is not None:
            entries = self._prompt.entries(self._prompt_logprobs)
            delta = delta._replace(text=self._prompt.text + delta.text, prompt_entries=entries)
            self._prompt = None
        return delta

    def _plain_delta(self, output: SequenceOutput) -> TextDelta:
        """Return the same as `_delta`, for the tokens of most requests at less than half of the price."""
        text = "".join(map(self._detokenizer.push, output.token_ids))
        self._num_tokens += len(output.token_ids)
        self._num_characters += len(text)
        return TextDelta(
            text,
            output.token_ids,
            entries=[],
            prompt_entries=[],
            finish_reason=None,
            num_cached_tokens=output.num_cached_tokens,
            scheduled_at_seconds=output.scheduled_at_seconds,
            received_at_seconds=self._tokens.received_at_seconds,
        )

    def _delta(self, output: SequenceOutput, finish_reason: Literal["stop", "length"] | None) -> TextDelta:
        # The engine says "stop" for a stop token, which is the last one, or behind the last token a grammar allows.
        ends_with_stop_token = finish_reason == "stop" and output.token_ids[-1] in self._stop_token_ids
        num_text_tokens = len(output.token_ids) - ends_with_stop_token
        shown: list[str] = []
        entries: list[TokenEntry] = []
        num_taken = 0
        is_cut = False
        while num_taken < num_text_tokens and not is_cut:
            token_id = output.token_ids[num_taken]
            if output.logprobs:
                entries.append(TokenEntry(token_id, self._num_characters, output.logprobs[num_taken]))
            num_taken += 1
            is_cut = self._show(self._detokenizer.push(token_id), self._num_tokens + num_taken, shown)
        if not is_cut:
            num_taken = len(output.token_ids)
            if finish_reason is not None:
                is_cut = self._show(self._detokenizer.flush(), self._num_tokens + num_taken, shown)
                shown.append(self._cutter.flush())
        self._num_tokens += num_taken
        if is_cut:
            self._tokens.abort()
        return TextDelta(
            text="".join(shown),
            token_ids=output.token_ids[:num_taken],
            entries=entries,
            prompt_entries=[],
            finish_reason="stop" if is_cut else finish_reason,
            num_cached_tokens=output.num_cached_tokens,
            scheduled_at_seconds=output.scheduled_at_seconds,
            received_at_seconds=self._tokens.received_at_seconds,
            embedding=output.embedding or (),
        )

    def _show(self, text: str, num_tokens: int, shown: list[str]) -> bool:
        """Append what may be shown of `text` to `shown`; return whether a stop string ended the choice."""
        self._num_characters += len(text)
        released, is_cut = self._cutter.push(text, may_stop=num_tokens >= self._min_tokens)
        shown.append(released)
        return is_cut


def join_deltas(deltas: list[TextDelta]) -> TextDelta:
    """Return a whole choice as one delta; there must be at least one."""
    return deltas[-1]._replace(
        text="".join(delta.text for delta in deltas),
        token_ids=[token_id for delta in deltas for token_id in delta.token_ids],
        entries=[entry for delta in deltas for entry in delta.entries],
        prompt_entries=deltas[0].prompt_entries,
    )
