"""ServedModel: what the routes of one server share."""

from dataclasses import dataclass, field
from typing import Protocol

from caravan.scheduler.config import EngineConfig
from caravan.scheduler.messages import Request
from caravan.server.engine.output_queue import OutputQueue
from caravan.server.generation.admission import Admission
from caravan.server.generation.executors import Executors
from caravan.server.generation.request_limits import RequestLimits
from caravan.server.generation.text_model import TextModel
from caravan.server.observe.metrics import Metrics
from caravan.server.observe.request_history import RequestHistory
from caravan.server.sandbox.grammar_check import GrammarCheck


class Engine(Protocol):
    """What the routes ask of the engine."""

    config: EngineConfig

    @property
    def is_ready(self) -> bool:
        """Whether it takes requests."""

    def subscribe(self, period_seconds: float) -> None:
        """Have a snapshot handed to the listener once in a period; 0: never."""

    def submit(self, request: Request, crash_group: int = 0) -> OutputQueue:
        """Return the stream of a new request, which gets its `request_id` here; raises EngineUnavailable."""


@dataclass(frozen=True, kw_only=True)
class ServedModel(TextModel):
    """One model with the parts that answer for it, and the names it answers to."""

    name: str
    aliases: tuple[str, ...] = ()
    version: str  # of the server
    created_at: int  # seconds since 1970
    engine: Engine
    shown_token_ids: frozenset[int] = frozenset()  # special tokens that answers show: the marks of tool calls
    metrics: Metrics
    admission: Admission
    history: RequestHistory = field(default_factory=RequestHistory)
    limits: RequestLimits = field(default_factory=RequestLimits)
    grammar_check: GrammarCheck = field(default_factory=GrammarCheck)
    executors: Executors = field(default_factory=Executors)

    @property
    def names(self) -> tuple[str, ...]:
        """All names a request may call the model by."""
        return (self.name, *self.aliases)
