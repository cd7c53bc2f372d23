"""ChatTemplate: render a conversation as one prompt, with the model's Jinja template."""

import logging
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

from caravan.model.tokenizer.literal_search import LiteralSearch
from caravan.server.sandbox import template_worker
from caravan.server.sandbox.special_tokens import Json, SpecialTokenGuard, all_strings, unused_characters
from caravan.server.sandbox.template_probe import probe_template
from caravan.server.sandbox.template_shape import TemplateShape, text_part
from caravan.server.sandbox.thought_marks import ThoughtMarks, thought_marks
from caravan.server.sandbox.worker_pool import WorkerPool
from caravan.server.sandbox.worker_process import LimitExceeded, MemoryLimitExceeded, TimeLimitExceeded, WorkerProcess

MAX_CHARACTERS = 16 * 2**20  # of a rendered prompt
MEMORY_LIMIT_BYTES = 2**30  # address space of the worker

logger = logging.getLogger(__name__)


class TemplateRefused(ValueError):
    """The template called raise_exception; its message is for the client."""


class TemplateFailed(ValueError):
    """Rendering failed for these messages, or exceeded a limit; the text is for the log."""


@dataclass(frozen=True)
class RenderedPrompt:
    """A prompt to encode with `parse_special=True, guard=guard`."""

    text: str
    guard: str


class ChatTemplate:
    """A Jinja chat template, rendered by worker processes, one for each concurrent call of `render`.

    Neither the template, which is part of the weights, nor the messages are trusted. jinja2's sandbox isolates a
    template, but limits neither time nor memory, and a thread cannot interrupt a call into C. A process can be killed
    and its memory limited. It costs about 10 MB per process and a fraction of a millisecond per prompt.

    `tool_use` is the model's separate template for conversations with tools, if it has one.
    Raises ValueError if `source` is not a valid template.
    """

    def __init__(
        self,
        source: str,
        bos_token: str,
        eos_token: str,
        *,
        time_limit_seconds: float = 2.0,
        memory_limit_bytes: int = MEMORY_LIMIT_BYTES,
        max_characters: int = MAX_CHARACTERS,
        tool_use: "ChatTemplate | None" = None,
        is_for_tools: bool = False,
    ) -> None:
        self.source = source
        self._tool_use = tool_use
        self._is_for_tools = is_for_tools
        self._special = {"bos_token": bos_token, "eos_token": eos_token}
        self._time_limit_seconds = time_limit_seconds  # processor time
        self._memory_limit_bytes = memory_limit_bytes
        self._max_characters = max_characters
        self._search = LiteralSearch(())  # the most recent one
        self._workers = WorkerPool(self._start_worker)
        self._workers.start_one()

    @property
    def pids(self) -> list[int]:
        """The process ids of all workers."""
        return self._workers.pids

    @property
    def knows_tools(self) -> bool:
        """Whether the template itself renders tools."""
        return "tools" in self.source

    def names(self, variable: str) -> bool:
        """Return whether the template's source has the name of a variable."""
        return re.search(rf"\b{re.escape(variable)}\b", self.source) is not None

    @cached_property
    def thought_marks(self) -> ThoughtMarks | None:
        """The marks around the model's thoughts, None if the template shows none."""
        return thought_marks(self.source)

    @cached_property
    def shape(self) -> TemplateShape:
        """The message format that the template expects; probed on first access."""
        return probe_template(
            lambda messages, tools: self.render(messages, special_tokens=(), tools=tools).text,
            knows_tools=self.knows_tools,
            has_tools=self._is_for_tools,
        )

    def render(
        self,
        messages: list[dict[str, Json]],
        *,
        special_tokens: Collection[str],
        tools: list[dict[str, Json]] | None = None,
        variables: Mapping[str, Json] = MappingProxyType({}),
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
    ) -> RenderedPrompt:
        """Return the prompt for `messages`, ready for the tokenizer; blocks until a worker has rendered it.

        `variables` are additional ones of the template; the other arguments override them.
        With `continue_final_message` the prompt ends where the content of the last message ends.
        Raises TemplateRefused or TemplateFailed, WorkerUnavailable if workers are lost for reasons unrelated to the
        messages, and ValueError if the messages use every character that could serve as the guard.
        """
        texts = [*all_strings(list(messages)), *all_strings(list(tools or [])), *all_strings(dict(variables))]
        guard, mark = unused_characters([self.source, *special_tokens, *texts], 2)
        special_token_guard = SpecialTokenGuard(self._search_for(special_tokens), guard)
        guarded = special_token_guard.apply(list(messages))
        if continue_final_message:
            _append_mark(guarded, mark)
        text = self._render(
            {
                **{name: special_token_guard.apply(value) for name, value in variables.items()},
                "messages": guarded,
                "tools": special_token_guard.apply(list(tools)) if tools else None,
                "add_generation_prompt": add_generation_prompt,
                **self._special,
            }
        )
        return RenderedPrompt(_cut_at_mark(text, mark) if continue_final_message else text, guard)

    def for_tools(self) -> "ChatTemplate":
        """Return the template for conversations with tools; usually this one."""
        return self if self._tool_use is None else self._tool_use

    def close(self) -> None:
        """End the workers. This also happens when the template is garbage-collected."""
        if self._tool_use is not None:
            self._tool_use.close()
        self._workers.close()

    def _search_for(self, special_tokens: Collection[str]) -> LiteralSearch:
        """Return the search for special tokens, cached: all prompts of a server have the same ones."""
        search = self._search
        if search.literals != tuple(filter(None, special_tokens)):
            self._search = search = LiteralSearch(special_tokens)
        return search

    def _render(self, request: dict[str, Json]) -> str:
        try:
            reply = self._workers.call(request)
        except TimeLimitExceeded:
            raise TemplateFailed(f"it takes more than {self._time_limit_seconds:g} s of processor time") from None
        except MemoryLimitExceeded:
            raise TemplateFailed(f"it takes more than {self._memory_limit_bytes >> 20} MiB of memory") from None
        if "raised" in reply:
            raise TemplateRefused(reply["raised"])
        if "failed" in reply:
            raise TemplateFailed(reply["failed"])
        return reply["text"]

    def _start_worker(self) -> WorkerProcess:
        worker = WorkerProcess(template_worker.__file__, self._time_limit_seconds, self._memory_limit_bytes)
        try:
            reply = worker.call({"source": self.source, "max_characters": self._max_characters})
        except LimitExceeded:
            reply = {"failed": "it takes too much time or memory"}
        if "failed" in reply:
            worker.close()
            raise ValueError(f"The model's chat template cannot be used: {reply['failed']}.")
        return worker


def usable_template(source: str, bos_token: str, eos_token: str, tool_use_source: str | None = None) -> ChatTemplate:
    """Return the template, with a separate one for conversations with tools if `tool_use_source` is given.

    Raises ValueError if a source is not a valid template, or if it drops the text of user messages.
    """
    tool_use = None
    if tool_use_source is not None:
        tool_use = ChatTemplate(tool_use_source, bos_token, eos_token, is_for_tools=True)
    template = ChatTemplate(source, bos_token, eos_token, tool_use=tool_use)
    if template.shape.is_blind or template.for_tools().shape.is_blind:
        template.close()
        raise ValueError(
            "The model's chat template cannot be used: it drops the text of user messages, both as a string and as a "
            "list of text parts. Specify another one with --chat-template."
        )
    return template


def _append_mark(messages: Json, mark: str) -> None:
    """Append the mark and a space to the last message; a template that trims content removes the space."""
    assert isinstance(messages, list)
    final = messages[-1]
    assert isinstance(final, dict)
    content = final["content"]
    if not isinstance(content, list):
        final["content"] = f"{'' if content is None else content}{mark} "
    elif content:
        part = content[-1]
        assert isinstance(part, dict)
        part["text"] = f"{part['text']}{mark} "
    else:
        content.append(text_part(f"{mark} "))


def _cut_at_mark(text: str, mark: str) -> str:
    end = text.rfind(mark)
    if end < 0:
        raise TemplateFailed("the template omits the content of the final message")
    is_trimmed = text[end + 1 : end + 2] != " "
    return text[:end].rstrip() if is_trimmed else text[:end]
