"""ServedModel: the model and the services that all routes share."""

import hashlib
import time
from dataclasses import dataclass, field, replace
from typing import Protocol

from caravan.scheduler.messages import AdapterSource, EngineReady, Request
from caravan.server.engine.client import EngineState
from caravan.server.engine.output_queue import OutputQueue
from caravan.server.generation.admission import Admission
from caravan.server.generation.answer_codes import NO_TEMPLATE, AnswerCodes
from caravan.server.generation.executors import Executors
from caravan.server.generation.request_limits import RequestLimits
from caravan.server.generation.text_model import TextModel
from caravan.server.observe.metrics import Metrics
from caravan.server.observe.request_history import RequestHistory
from caravan.server.sandbox.grammar_check import GrammarCheck


class Engine(Protocol):
    """The engine as routes use it."""

    @property
    def fingerprint(self) -> str:
        """Changes when the bits of answers may change; empty before the engine is loaded."""

    @property
    def report(self) -> EngineReady | None:
        """What the engine has reported when it was first loaded, None before."""

    @property
    def is_ready(self) -> bool:
        """Whether an engine works on requests; those that are accepted while none does wait for it."""

    @property
    def state(self) -> EngineState:
        """Whether an engine process has loaded the model, loads it, takes the place of another, or does not exist."""

    def submit(self, request: Request, crash_group: int = 0) -> OutputQueue:
        """Return the output queue of a new request, and assign its `request_id`.

        Raises EngineUnavailable, AdapterUnloaded.
        """


@dataclass(frozen=True, kw_only=True)
class ServedModel(TextModel):
    """A model, its names, and the services that handle its requests."""

    name: str
    aliases: tuple[str, ...] = ()
    adapter: AdapterSource | None = None  # of the requests that choose this name
    parent: str = ""  # name of the model that the adapter changes
    created_at: int = field(default_factory=lambda: int(time.time()))  # seconds since 1970
    engine: Engine
    metrics: Metrics
    admission: Admission
    history: RequestHistory = field(default_factory=RequestHistory)
    codes: AnswerCodes = field(default_factory=lambda: AnswerCodes(problem=NO_TEMPLATE))
    limits: RequestLimits = field(default_factory=RequestLimits)
    grammar_check: GrammarCheck = field(default_factory=GrammarCheck)
    executors: Executors = field(default_factory=Executors)

    @property
    def names(self) -> tuple[str, ...]:
        """All names that requests may use for the model."""
        return (self.name, *self.aliases)

    @property
    def fingerprint(self) -> str:
        """Changes when the bits of answers may change; empty before the engine is loaded."""
        fingerprint = self.engine.fingerprint
        if self.adapter is None or not fingerprint:
            return fingerprint
        digest = hashlib.sha256(f"{fingerprint} {self.adapter.digest}".encode()).hexdigest()
        return f"fp_{digest[: len(fingerprint) - 3]}"

    @property
    def adapter_name(self) -> str:
        """The name of the adapter; empty: none."""
        return "" if self.adapter is None else self.adapter.name

    def cache_salt(self, salt: str) -> str:
        """Return the salt of a request for the prefix cache. Those of adapters begin as no other salt does."""
        return salt if self.adapter is None else f"adapter {self.adapter.digest}\n{salt}"

    def with_adapter(self, adapter: AdapterSource) -> "ServedModel":
        """Return the model under the name of an adapter, with the same services."""
        return replace(self, name=adapter.name, aliases=(), adapter=adapter, parent=self.name)
