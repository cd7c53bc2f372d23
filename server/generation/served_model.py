"""ServedModel: the model and the services that all routes share."""

import time
from dataclasses import dataclass, field
from typing import Protocol

from caravan.scheduler.messages import Request
from caravan.server.engine.client import EngineState
from caravan.server.engine.output_queue import OutputQueue
from caravan.server.generation.admission import Admission
from caravan.server.generation.executors import Executors
from caravan.server.generation.request_limits import RequestLimits
from caravan.server.generation.text_model import TextModel
from caravan.server.observe.metrics import Metrics
from caravan.server.observe.request_history import RequestHistory
from caravan.server.sandbox.grammar_check import GrammarCheck


class Engine(Protocol):
    """The engine as routes use it."""

    @property
    def is_ready(self) -> bool:
        """Whether the engine accepts requests."""

    @property
    def state(self) -> EngineState:
        """Whether an engine process has loaded the model, is loading it, or does not exist."""

    def submit(self, request: Request, crash_group: int = 0) -> OutputQueue:
        """Return the output queue of a new request, and assign its `request_id`; raises EngineUnavailable."""


@dataclass(frozen=True, kw_only=True)
class ServedModel(TextModel):
    """A model, its names, and the services that handle its requests."""

    name: str
    aliases: tuple[str, ...] = ()
    created_at: int = field(default_factory=lambda: int(time.time()))  # seconds since 1970
    engine: Engine
    metrics: Metrics
    admission: Admission
    history: RequestHistory = field(default_factory=RequestHistory)
    limits: RequestLimits = field(default_factory=RequestLimits)
    grammar_check: GrammarCheck = field(default_factory=GrammarCheck)
    executors: Executors = field(default_factory=Executors)

    @property
    def names(self) -> tuple[str, ...]:
        """All names that requests may use for the model."""
        return (self.name, *self.aliases)
