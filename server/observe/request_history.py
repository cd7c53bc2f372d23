"""RequestHistory: the records of running requests and of the latest finished ones."""

from collections import OrderedDict
from collections.abc import Iterable

from typing_extensions import override

from caravan.scheduler.messages import StepOutput
from caravan.server.engine.listener import EngineListener
from caravan.server.observe.choice_record import ChoiceRecord
from caravan.server.observe.request_record import RequestRecord

MAX_RECORDS = 1000
MAX_CHOICES = 10_000  # of all records together


class RequestHistory(EngineListener):
    """Finds the record of a request by its id, and updates it from the engine's events."""

    def __init__(self, max_records: int = MAX_RECORDS, max_choices: int = MAX_CHOICES) -> None:
        self._max_records = max_records
        self._max_choices = max_choices
        self._num_choices = 0  # of all stored records
        self._records: OrderedDict[str, RequestRecord] = OrderedDict()  # by response id, the latest last
        self._by_request: dict[tuple[str, str], RequestRecord] = {}  # the latest by key and HTTP request id
        self._running: dict[int, RequestRecord] = {}  # by the engine's number of a choice

    def begin(self, record: RequestRecord) -> None:
        """Add a record whose choices are submitted; remove the oldest finished ones beyond the limits."""
        self._num_choices += record.num_choices
        self._records[record.response_id] = record
        self._by_request[record.key_name, record.request_id] = record
        while len(self._records) > self._max_records or self._num_choices > self._max_choices:
            oldest = next((kept for kept in self._records.values() if kept.is_finished), None)
            if oldest is None:
                return
            del self._records[oldest.response_id]
            self._num_choices -= oldest.num_choices
            if self._by_request.get(place := (oldest.key_name, oldest.request_id)) is oldest:
                del self._by_request[place]

    def queue(
        self,
        record: RequestRecord,
        engine_number: int,
        num_before: int = 0,
        *,
        num_prompt_tokens: int = 0,
        max_tokens: int = 0,
    ) -> ChoiceRecord:
        """Record that the next choice was submitted; from now on engine events update it."""
        self._running[engine_number] = record
        return record.queue(engine_number, num_before, num_prompt_tokens=num_prompt_tokens, max_tokens=max_tokens)

    @override
    def on_step(self, output: StepOutput) -> None:
        """Add the events and outputs of one step to the records of their requests."""
        for event in output.events:
            if (record := self._running.get(event.request_id)) is not None:
                record.add_engine_event(event, output.stats.step_seconds)
        ended = sum(one.finish_reason is not None for one in output.outputs)
        batch_size = output.stats.num_running + ended  # finished sequences are not running
        for one in output.outputs:
            if (record := self._running.get(one.request_id)) is not None:
                record.add_output(one, batch_size)

    @override
    def on_replay(self, num_requests: int, down_seconds: float) -> None:
        """Record the engine restart in all running requests."""
        for record in {id(record): record for record in self._running.values() if not record.is_finished}.values():
            record.replay(down_seconds)

    def route(self, engine_number: int, replica: str, num_known_tokens: int) -> None:
        """Record which replica gets a choice, and how many of its first tokens that one has."""
        if (record := self._running.get(engine_number)) is not None:
            record.add_choice_event(engine_number, "routed", replica=replica, known_tokens=num_known_tokens)

    def lose(self, engine_numbers: Iterable[int], replica: str) -> None:
        """Record that a replica was lost, in the records of choices that it had."""
        for number in engine_numbers:
            if (record := self._running.get(number)) is not None:
                record.requeue(number)
                record.add_choice_event(number, "replica lost", replica=replica)

    @override
    def on_wake(self, load_seconds: float) -> None:
        """Record in all requests that waited for it that the model was loaded."""
        for record in {id(record): record for record in self._running.values() if not record.is_finished}.values():
            record.add_event("model loaded", load_ms=round(1000 * load_seconds, 1))

    def drop(self, engine_number: int, reason: str = "abort", num_tokens: int | None = None) -> None:
        """Record the finish reason and the number of tokens of a choice; only the first call counts."""
        record = self._running.pop(engine_number, None)
        if record is not None:
            record.end(engine_number, reason, num_tokens)

    def find(self, name: str, key_name: str) -> RequestRecord | None:
        """Return the record with this response id or HTTP request id, if it belongs to the key."""
        record = self._records.get(name) or self._by_request.get((key_name, name))
        return record if record is not None and record.key_name == key_name else None
