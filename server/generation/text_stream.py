"""TextStream: convert the tokens of a choice to text deltas."""

from collections.abc import Collection, Sequence
from itertools import accumulate
from typing import Literal, NamedTuple

from caravan.model.tokenizer.detokenizer import Detokenizer
from caravan.scheduler.messages import SequenceOutput, TokenLogprobs
from caravan.server.engine.output_queue import OutputQueue
from caravan.server.generation.errors import GenerationCancelled, GenerationFailed, InvalidGrammar
from caravan.server.generation.stop_strings import StopStrings, TextCutter
from caravan.server.generation.thought_splitter import ThoughtSplitter


class TokenEntry(NamedTuple):
    """One token of a choice, or of its prompt, with its log-probabilities."""

    token_id: int
    text_offset: int  # characters of the choice's text before this token's
    logprobs: TokenLogprobs | None  # None for the first token of a prompt


class TextDelta(NamedTuple):
    """A part of a choice; the deltas of a choice, joined in order, are the whole choice."""

    text: str
    token_ids: list[int]  # including a stop token, which has neither text nor entry
    entries: list[TokenEntry]  # empty unless log-probabilities were requested
    prompt_entries: list[TokenEntry]  # in the first delta, if prompt log-probabilities were requested
    finish_reason: Literal["stop", "length"] | None
    num_cached_tokens: int
    scheduled_at_seconds: float
    received_at_seconds: float
    embedding: Sequence[float] = ()  # of the prompt, in the last delta of an embedding request
    token_logprobs: Sequence[float] = ()  # of the request's logprob_token_ids, in the first delta
    thought: str = ""  # before the text
    thought_entries: tuple[TokenEntry, ...] = ()  # of the tokens of the thought, its marks included
    stop_reason: str = ""  # why the choice has ended, if neither a stop token nor a string ended it
    stop_string: str = ""  # that ended it
    num_thought_tokens: int = 0  # the same tokens; those of a mark that is incomplete count in a later delta


class ShownPrompt(NamedTuple):
    """The part of the prompt that a response includes."""

    token_ids: list[int]
    texts: list[str]  # of each token; empty if the text is not included
    has_logprobs: bool

    @property
    def text(self) -> str:
        """The text before the choice's text."""
        return "".join(self.texts)

    def entries(self, logprobs: list[TokenLogprobs]) -> list[TokenEntry]:
        """Return each token's entry, given the log-probabilities of all but the first."""
        if not self.has_logprobs:
            return []
        offsets = accumulate(map(len, self.texts or [""] * len(self.token_ids)), initial=0)
        return [TokenEntry(*entry) for entry in zip(self.token_ids, offsets, [None, *logprobs], strict=False)]


class TextStream:
    """The deltas of one choice; the last one carries the finish reason.

    Text is final once returned: incomplete characters and prefixes of stop strings are held back until they are
    decided. A stop string aborts the request in the engine.
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
        splitter: ThoughtSplitter | None = None,
    ) -> None:
        """`prompt` is included in the first delta. Without a splitter all text is content."""
        self._tokens = tokens
        self._detokenizer = detokenizer
        self._stop_token_ids = stop_token_ids
        self._cutter = TextCutter(stop_strings, include_match=include_stop_string)
        self._is_never_cut = stop_strings.is_empty
        self._min_tokens = min_tokens
        self._num_tokens = 0
        self._splitter = splitter  # None when the content has begun
        self._undecided: list[TokenEntry | None] = []  # of tokens that may belong to the thought or to the content
        self._prompt = prompt  # None after the first delta
        self._prompt_logprobs: list[TokenLogprobs] = []
        self._token_logprobs: list[float] = []  # until the first delta
        self._num_characters = 0 if prompt is None else len(prompt.text)

    def abort(self) -> None:
        """Abort this choice in the engine, if it has not ended."""
        self._tokens.abort()

    def take(self) -> TextDelta | None:
        """Return the output since the last delta, None if there is none.

        Raises GenerationFailed, InvalidGrammar, GenerationCancelled, or EngineDied if the engine ended first.
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
        self._token_logprobs = output.token_logprobs or self._token_logprobs
        if not output.token_ids and output.finish_reason is None:
            return None
        if output.finish_reason is None and not output.logprobs and self._is_never_cut and self._splitter is None:
            delta = self._plain_delta(output)
        else:
            delta = self._delta(output, output.finish_reason)
        if self._prompt is not None:
            entries = self._prompt.entries(self._prompt_logprobs)
            delta = delta._replace(text=self._prompt.text + delta.text, prompt_entries=entries)
            self._prompt = None
        if self._token_logprobs:
            delta, self._token_logprobs = delta._replace(token_logprobs=self._token_logprobs), []
        return delta

    def _plain_delta(self, output: SequenceOutput) -> TextDelta:
        """Return the same as `_delta` in less than half the time, for outputs without logprobs and stop strings."""
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
        # The engine reports "stop" after a stop token, which is then the last token, or at the end of a grammar.
        ends_with_stop_token = (
            finish_reason == "stop" and not output.stop_reason and output.token_ids[-1] in self._stop_token_ids
        )
        num_text_tokens = len(output.token_ids) - ends_with_stop_token
        shown: list[str] = []
        thought: list[str] = []
        entries: list[TokenEntry] = []
        thought_entries: list[TokenEntry | None] = []
        num_taken, is_cut = 0, False
        while num_taken < num_text_tokens and not is_cut:
            token_id = output.token_ids[num_taken]
            entry = TokenEntry(token_id, self._num_characters, output.logprobs[num_taken]) if output.logprobs else None
            num_taken += 1
            text = self._detokenizer.push(token_id)
            if self._splitter is not None:
                self._splitter.count(token_id)
                self._undecided.append(entry)
                text = self._split(text, thought, thought_entries, entries)
            elif entry is not None:
                entries.append(entry)
            is_cut = self._show(text, self._num_tokens + num_taken, shown)
        if not is_cut:
            num_taken = len(output.token_ids)
            if finish_reason is not None:
                text = self._detokenizer.flush()
                if self._splitter is not None:
                    text = self._split(text, thought, thought_entries, entries, is_last=True)
                is_cut = self._show(text, self._num_tokens + num_taken, shown)
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
            stop_reason="" if is_cut else output.stop_reason,
            stop_string=self._cutter.match,
            thought="".join(thought),
            thought_entries=tuple(entry for entry in thought_entries if entry is not None),
            num_thought_tokens=len(thought_entries),
        )

    def _split(
        self,
        text: str,
        thought: list[str],
        thought_entries: list[TokenEntry | None],
        entries: list[TokenEntry],
        *,
        is_last: bool = False,
    ) -> str:
        """Return the content of the next text, and append the rest of it to `thought`.

        The tokens whose place is now known leave the undecided ones. A token without text, such as the first bytes of a
        character, belongs to where the next text does.
        """
        splitter = self._splitter
        assert splitter is not None
        inside, content = splitter.push(text)
        if is_last:
            more, rest = splitter.flush()
            inside, content = inside + more, content + rest
        thought.append(inside)
        if is_last or (text and not splitter.is_undecided):
            if splitter.is_over:
                entries += [entry for entry in self._undecided if entry is not None]
                self._splitter = None
            else:
                thought_entries += self._undecided
            self._undecided = []
        return content

    def _show(self, text: str, num_tokens: int, shown: list[str]) -> bool:
        """Append the text that can be sent to `shown`; return whether a stop string ended the choice."""
        self._num_characters += len(text)
        released, is_cut = self._cutter.push(text, may_stop=num_tokens >= self._min_tokens)
        shown.append(released)
        return is_cut


def join_deltas(deltas: list[TextDelta]) -> TextDelta:
    """Return the deltas of a whole choice as one; there must be at least one."""
    return deltas[-1]._replace(
        text="".join(delta.text for delta in deltas),
        token_ids=[token_id for delta in deltas for token_id in delta.token_ids],
        entries=[entry for delta in deltas for entry in delta.entries],
        thought="".join(delta.thought for delta in deltas),
        thought_entries=tuple(entry for delta in deltas for entry in delta.thought_entries),
        num_thought_tokens=sum(delta.num_thought_tokens for delta in deltas),
        prompt_entries=deltas[0].prompt_entries,
        token_logprobs=deltas[0].token_logprobs,
    )
