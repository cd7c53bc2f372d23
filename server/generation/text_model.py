"""TextModel: the tokenizer, chat template and defaults of a model."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from caravan.model.sampling.generation_defaults import GenerationDefaults
from caravan.model.tokenizer.loader import load_tokenizer
from caravan.model.tokenizer.tokenizer import Tokenizer
from caravan.scheduler.thought_budget import MarkAutomaton
from caravan.server.generation.mark_automaton import mark_automaton
from caravan.server.sandbox.chat_template import ChatTemplate, usable_template
from caravan.server.sandbox.thought_marks import ThoughtMarks

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TextModel:
    """A model without its weights: context length, tokenizer, chat template and sampling defaults."""

    max_model_len: int  # tokens, prompt and output together
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
    shown_token_ids: frozenset[int] = frozenset()  # special tokens kept in the text: the marks of tool calls
    defaults: GenerationDefaults = field(default_factory=GenerationDefaults)
    template_variables: Mapping[str, str | int | float | bool | None] = field(default_factory=dict)  # unless requested

    @cached_property
    def max_token_bytes(self) -> int:
        """The length of the longest token in bytes: a text of N bytes has at least N / max_token_bytes tokens."""
        longest = max(len(self.tokenizer.token_bytes(token_id)) for token_id in range(self.tokenizer.vocab_size))
        return max([longest, 1, *(len(text.encode()) for text in self.tokenizer.special_tokens)])

    @cached_property
    def _automata(self) -> dict[ThoughtMarks, MarkAutomaton]:
        return {}

    def mark_automaton(self, marks: ThoughtMarks) -> MarkAutomaton:
        """Return the automaton of marks over the vocabulary; the first call takes about 5 us for each token."""
        automaton = self._automata.get(marks)
        if automaton is None:
            tokenizer, shown = self.tokenizer, self.shown_token_ids

            def text_of(token_id: int) -> bytes:
                is_hidden = tokenizer.is_special(token_id) and token_id not in shown
                return b"" if is_hidden else tokenizer.token_bytes(token_id)

            automaton = self._automata[marks] = mark_automaton(marks, text_of, tokenizer.vocab_size)
        return automaton


def text_parts(model_path: Path, template_file: Path | None) -> tuple[Tokenizer, ChatTemplate | None]:
    """Return the tokenizer and the chat template, None if the model has no valid one.

    A template file must be valid; without the model's template completions can still be used.
    """
    tokenizer = load_tokenizer(model_path)
    if template_file is not None:
        source = template_file.read_text("utf-8")
        return tokenizer, usable_template(source, tokenizer.bos_token, tokenizer.eos_token)
    if tokenizer.chat_template is None:
        logger.warning(
            "The model has no %schat template; chats are rejected.",
            "default " if tokenizer.named_templates else "",
        )
        return tokenizer, None
    try:
        tool_use = tokenizer.named_templates.get("tool_use")
        return tokenizer, usable_template(tokenizer.chat_template, tokenizer.bos_token, tokenizer.eos_token, tool_use)
    except ValueError as error:
        logger.warning("%s Chats are rejected.", error)
        return tokenizer, None
