"""ServedModel: what the routes of one server share."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

from caravan.model.generation_defaults import GenerationDefaults
from caravan.model.sampling_params import Pooling, SamplingParams
from caravan.model.tokenizer import Tokenizer
from caravan.scheduler.config import EngineConfig
from caravan.server.admission import Admission
from caravan.server.asker import Asker
from caravan.server.chat_template import ChatTemplate
from caravan.server.executors import Executors
from caravan.server.grammar_check import GrammarCheck
from caravan.server.metrics import Metrics
from caravan.server.request_limits import RequestLimits
from caravan.server.story_book import StoryBook
from caravan.server.token_stream import TokenStream
from caravan.server.tools.call_format import HERMES, PYTHON_TAG, TOOL_CALLS, CallFormat, format_of


class Engine(Protocol):
    """What the routes ask of the engine."""

    config: EngineConfig

    @property
    def is_ready(self) -> bool:
        """Whether it takes requests."""

    def watch(self, period_seconds: float) -> None:
        """Have views of it handed to whoever watches so often, 0: never."""

    def submit(
        self,
        prompt_token_ids: list[int],
        params: SamplingParams,
        asker: Asker = Asker(),
        grammar: str = "",
        pooling: Pooling | None = None,
        group: int = 0,
        exchange: int = 0,
    ) -> TokenStream:
        """Return the stream of a new request; raises EngineUnavailable."""


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """One model with the parts that answer for it, and the names it answers to."""

    name: str
    aliases: tuple[str, ...] = ()
    version: str  # of the server
    created_at: int  # seconds since 1970
    max_model_len: int  # tokens, prompt and output together
    engine: Engine
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
    metrics: Metrics
    admission: Admission
    stories: StoryBook = field(default_factory=StoryBook)
    defaults: GenerationDefaults = field(default_factory=GenerationDefaults)
    limits: RequestLimits = field(default_factory=RequestLimits)
    grammar_check: GrammarCheck = field(default_factory=GrammarCheck)
    executors: Executors = field(default_factory=Executors)

    @property
    def names(self) -> tuple[str, ...]:
        """All names a request may call the model by."""
        return (self.name, *self.aliases)

    @cached_property
    def call_format(self) -> CallFormat:
        """How the model writes tool calls; as prompts ask for where the template knows no tools."""
        template = None if self.chat_template is None else self.chat_template.for_tools()
        if template is None or not template.knows_tools:
            return HERMES
        call_format = format_of(template.source)
        return replace(call_format, has_short_ids=call_format.has_short_ids or template.shape.takes_short_ids_only)

    @cached_property
    def call_token_ids(self) -> frozenset[int]:
        """The special tokens that open or close tool calls, which readers of a text must see."""
        texts = (TOOL_CALLS, "[CALL_ID]", "[ARGS]", PYTHON_TAG, "<tool_call>", "</tool_call>")
        special = self.tokenizer.special_tokens
        return frozenset(special[text] for text in texts if text in special)

    @cached_property
    def max_token_bytes(self) -> int:
        """The length of the longest token: a text of N bytes has at least N / max_token_bytes tokens."""
        longest = max(len(self.tokenizer.token_bytes(token_id)) for token_id in range(self.tokenizer.vocab_size))
        return max([longest, 1, *(len(text.encode()) for text in self.tokenizer.special_tokens)])
