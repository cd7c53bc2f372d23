"""ServedModel: what the routes of one server share."""

from dataclasses import dataclass, field
from typing import Protocol

from caravan.model.sampling_params import Pooling, SamplingParams
from caravan.scheduler.config import EngineConfig
from caravan.server.admission import Admission
from caravan.server.asker import Asker
from caravan.server.executors import Executors
from caravan.server.grammar_check import GrammarCheck
from caravan.server.metrics import Metrics
from caravan.server.request_limits import RequestLimits
from caravan.server.story_book import StoryBook
from caravan.server.text_model import TextModel
from caravan.server.token_stream import TokenStream


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
class ServedModel(TextModel):
    """One model with the parts that answer for it, and the names it answers to."""

    name: str
    aliases: tuple[str, ...] = ()
    version: str  # of the server
    created_at: int  # seconds since 1970
    engine: Engine
    metrics: Metrics
    admission: Admission
    stories: StoryBook = field(default_factory=StoryBook)
    limits: RequestLimits = field(default_factory=RequestLimits)
    grammar_check: GrammarCheck = field(default_factory=GrammarCheck)
    executors: Executors = field(default_factory=Executors)

    @property
    def names(self) -> tuple[str, ...]:
        """All names a request may call the model by."""
        return (self.name, *self.aliases)
