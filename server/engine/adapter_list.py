"""AdapterList: the adapters of an engine: those of its start, and those that are loaded and unloaded while it runs."""

import asyncio
from collections.abc import Callable, Sequence, Set

import msgspec

from caravan.scheduler.messages import AdapterChecked, AdapterSource, CheckAdapter, SetAdapters, StartEngine, ToEngine
from caravan.server.engine.output_queue import EngineUnavailable


class AdapterList:
    """What an engine that takes the place of another one needs to know of adapters.

    An adapter that is removed gets no new requests. The engine keeps it until the requests that it has are ended, also
    those that another engine resumes.
    """

    def __init__(
        self, sources: Sequence[AdapterSource], send: Callable[[ToEngine], bool], in_use: Callable[[], Set[str]]
    ) -> None:
        """`send` returns False if there is no engine now; `in_use` returns the adapters of unfinished requests."""
        self._sources = {source.name: source for source in sources}
        self._send = send
        self._in_use = in_use
        self._leaving: set[str] = set()  # removed, but in use
        self._checks: dict[str, asyncio.Future[str]] = {}
        self._is_changed = False  # since the start

    @property
    def names(self) -> Set[str]:
        """The names of all that the engine has, also of those that are removed but in use."""
        return self._sources.keys()

    def has(self, name: str) -> bool:
        """Return whether new requests can have an adapter."""
        return name in self._sources and name not in self._leaving

    def in_start(self, start: StartEngine) -> StartEngine:
        """Return a start message with the adapters of now."""
        return msgspec.structs.replace(start, adapters=[*self._sources.values()])

    async def check(self, source: AdapterSource) -> str:
        """Let the engine read an adapter; return why it cannot be added, or an empty text. Raises EngineUnavailable."""
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._checks[source.name] = answer
        try:
            if not self._send(CheckAdapter(source=source)):
                raise EngineUnavailable
            return await answer
        finally:
            del self._checks[source.name]

    def add(self, source: AdapterSource) -> None:
        """Let requests have an adapter that was checked; its name is new."""
        self._sources[source.name] = source
        self._change()

    def remove(self, name: str) -> None:
        """Let no new request have an adapter, and remove it as soon as none has it."""
        self._leaving.add(name)
        self.let_go()

    def let_go(self) -> None:
        """Remove the adapters that left and that no request has any more."""
        if not self._leaving:
            return
        gone = self._leaving - self._in_use()
        self._leaving -= gone
        for name in gone:
            del self._sources[name]
        if gone:
            self._change()

    def on_checked(self, message: AdapterChecked) -> None:
        """Take the answer of the engine to `check`."""
        answer = self._checks.get(message.name)
        if answer is not None and not answer.done():
            answer.set_result(message.problem)

    def on_connect(self) -> None:
        """Tell another engine what has changed: a standby was started with the adapters of an earlier time."""
        if self._is_changed:
            self._change()

    def on_disconnect(self) -> None:
        """End all checks: the engine is gone."""
        for answer in self._checks.values():
            if not answer.done():
                answer.set_exception(EngineUnavailable())

    def _change(self) -> None:
        self._is_changed = True
        self._send(SetAdapters(sources=[*self._sources.values()]))
