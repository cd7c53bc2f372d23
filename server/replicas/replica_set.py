"""ReplicaSet: several engines in the place of one. It routes requests and resumes those of a lost replica."""

import asyncio
import contextlib
import itertools
import logging
import secrets
import time
from functools import partial

import msgspec

from caravan.scheduler.config import EngineConfig
from caravan.scheduler.messages import (
    Abort,
    BatchBegins,
    EngineLog,
    EngineReady,
    EngineSnapshot,
    Request,
    StepOutput,
    Subscribe,
)
from caravan.server.engine.client import (
    FIRST_PAUSE_SECONDS,
    HANG_SECONDS,
    MAX_DOWN_SECONDS,
    MAX_PAUSE_SECONDS,
    READY_SILENCE_SECONDS,
    EngineState,
)
from caravan.server.engine.in_flight import InFlightRequest
from caravan.server.engine.loop_clock import LoopClock
from caravan.server.engine.output_queue import EngineDied, EngineUnavailable, OutputQueue
from caravan.server.engine.process import EngineStartFailed
from caravan.server.replicas.known_prefixes import choose, extend_hashes
from caravan.server.replicas.member import Member, difference
from caravan.server.replicas.replica import Draining, FromReplica, Replica, ReplicaLost, ReplicaMessages
from caravan.server.replicas.replica_listener import ReplicaListener
from caravan.server.replicas.routed_requests import RoutedRequests
from caravan.server.replicas.totals import Totals, total_config

logger = logging.getLogger(__name__)


class ReplicaSet:
    """Replicas of one engine, as routes use them.

    A request goes to the replica that has computed the longest part of its prompt before, unless that one is much
    busier. When a replica is lost, each of its requests is resumed at once by another one, after its last generated
    token. Crashes are counted here, or a request that crashes its engine would do so on every replica. Such a request
    waits for a replica without other requests. While all replicas are lost, requests
    wait, for MAX_DOWN_SECONDS at most.
    """

    def __init__(self, *, hang_seconds: float = HANG_SECONDS) -> None:
        """A replica that sends nothing for `hang_seconds` is lost."""
        self.listener = ReplicaListener()
        self.totals = Totals()
        self._hang_seconds = hang_seconds
        self._clock = LoopClock()
        self._members: dict[str, Member] = {}  # connected, by name
        self._tasks: dict[str, asyncio.Task[None]] = {}  # that follow a replica, by name
        self._checks: asyncio.Task[None] | None = None
        self._requests = RoutedRequests()
        self._request_ids = itertools.count(1)
        self._decoder = msgspec.msgpack.Decoder(ReplicaMessages)
        self.report: EngineReady | None = None  # of the first replica; the others must equal it
        self._has_report = asyncio.Event()
        self._refusal = ""  # why a replica was not used, for the operator
        self._snapshot_period_seconds = 0.0
        self._empty_since_seconds = time.monotonic()  # since when there is no replica
        self._is_given_up = False  # there has been none for MAX_DOWN_SECONDS, or all were left

    @property
    def is_ready(self) -> bool:
        """Whether a replica works on requests: it has sent something recently."""
        return any(one.silence.seconds() < READY_SILENCE_SECONDS for one in self._members.values())

    @property
    def is_accepting(self) -> bool:
        """Whether new requests are accepted: they wait for a replica while there is none."""
        return self.report is not None and not self._is_given_up

    @property
    def state(self) -> EngineState:
        """Whether a replica has loaded the model; `replacing` while all have been lost."""
        if self._members:
            return "loaded"
        return "loading" if self.report is None else "replacing"

    def start_seconds(self) -> float:
        """Return the expected time until there is a replica again, 0 if there is one: that of a load."""
        if self._members or self.report is None:
            return 0.0
        return max(self.report.load_seconds - (time.monotonic() - self._empty_since_seconds), 0.0)

    @property
    def fingerprint(self) -> str:
        """The fingerprint of all replicas, whose reports are equal; empty before the first one is connected."""
        return self.report.fingerprint if self.report is not None else ""

    @property
    def members(self) -> dict[str, Member]:
        """The connected replicas, by name."""
        return self._members

    @property
    def names(self) -> list[str]:
        """The names of all replicas, connected or not."""
        return [*self._tasks]

    @property
    def num_requests(self) -> int:
        """The number of unfinished requests."""
        return len(self._requests)

    def is_standby_ready(self) -> bool:
        """Return False: replicas have no standby, as the others take over."""
        return False

    def add(self, replica: Replica) -> None:
        """Connect to a replica, and again whenever its engine has ended."""
        if self._checks is None:
            self._checks = asyncio.create_task(self._check())
        self._tasks[replica.name] = asyncio.create_task(self._follow(replica))

    def remove(self, name: str) -> None:
        """Leave a replica that has ended; its requests go to others."""
        self._tasks.pop(name).cancel()
        self._lose(name, "it has ended")

    async def ready(self, timeout_seconds: float) -> EngineReady:
        """Return the report of the first replica that has loaded the model; raises EngineStartFailed."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._has_report.wait()
        except TimeoutError:
            raise EngineStartFailed(f"No replica has loaded the model within {timeout_seconds:g} seconds.") from None
        assert self.report is not None
        return self.report

    def config(self) -> EngineConfig:
        """Return the limits of all connected replicas together, those of the first one if none is connected."""
        assert self.report is not None, "`ready` has returned"
        return total_config([one.config for one in self._members.values()] or [self.report.config])

    def submit(self, request: Request, crash_group: int = 0) -> OutputQueue:
        """Return the output queue of a new request, and assign its `request_id`; raises EngineUnavailable.

        Crashes are counted together for all requests of a `crash_group` other than 0.
        """
        if not self.is_accepting:
            raise EngineUnavailable
        outputs = OutputQueue(next(self._request_ids), self._abort)
        request = msgspec.structs.replace(request, request_id=outputs.request_id)
        self._requests.add(InFlightRequest(request, outputs, crash_group or -outputs.request_id))
        self._route()
        return outputs

    def subscribe(self, period_seconds: float) -> None:
        """Send the listener a snapshot every `period_seconds`; 0 stops the snapshots."""
        self._snapshot_period_seconds = period_seconds
        for member in self._members.values():
            member.sender.put(Subscribe(period_seconds=period_seconds))

    async def stop(self) -> None:
        """Leave all replicas; open output queues fail with EngineDied."""
        tasks = [*self._tasks.values(), *([self._checks] if self._checks is not None else [])]
        for task in tasks:
            task.cancel()
        for member in self._members.values():
            member.sender.close()
        self._members.clear()
        self._is_given_up = True
        self.listener.on_disconnect()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._requests.fail(EngineDied())

    def _abort(self, request_id: int) -> None:
        self._requests.drop(request_id)
        self._abort_at_member(request_id)
        self._route()

    def _abort_at_member(self, request_id: int) -> None:
        for member in self._members.values():
            if request_id in member.requests:
                member.drop(request_id)
                member.sender.put(Abort(request_id=request_id))

    async def _follow(self, replica: Replica) -> None:
        """Connect to a replica and pass on its messages until its engine ends; repeat."""
        pause_seconds = FIRST_PAUSE_SECONDS
        while True:
            connection = secrets.token_hex(8)
            cause = "its engine has ended"
            member: Member | None = None
            try:
                async with contextlib.aclosing(replica.messages(connection)) as bodies:
                    async for body in bodies:
                        received = self._decoder.decode(body)
                        for message in received.messages:
                            if isinstance(message, EngineReady):
                                member = self._connect(replica, connection, message)
                            elif member is not None:
                                member.hear(received.sent_at_seconds)
                                self._on_message(member, message)
                        if member is None:
                            break  # it was refused
            except (ReplicaLost, msgspec.DecodeError) as error:
                cause = str(error)
            pause_seconds = FIRST_PAUSE_SECONDS if member is not None else min(2 * pause_seconds, MAX_PAUSE_SECONDS)
            if member is not None:
                self._lose(replica.name, cause)
            await asyncio.sleep(pause_seconds)

    def _connect(self, replica: Replica, connection: str, report: EngineReady) -> Member | None:
        """Use a replica from now on; return None if its engine differs from the others."""
        if self.report is not None and (found := difference(report, self.report)):
            if found != self._refusal:
                logger.error("Replica %s is not used: %s.", replica.name, found)
                self._refusal = found
            return None

        member = Member(replica, connection, report, self._clock, partial(self._leave, replica))
        self._members[replica.name] = member
        self._is_given_up = False
        self.totals.connect(replica.name, report.config)
        if self.report is None:
            self.report = report
            self._has_report.set()
        if self._snapshot_period_seconds:
            member.sender.put(Subscribe(period_seconds=self._snapshot_period_seconds))
        self.listener.on_capacity(self.config(), len(self._members))
        self._route()
        return member

    def _leave(self, replica: Replica, cause: str) -> None:
        """Lose a replica whose connection is still open, and connect to it anew."""
        self._lose(replica.name, cause)
        self._tasks[replica.name].cancel()
        self._tasks[replica.name] = asyncio.create_task(self._follow(replica))

    def _lose(self, name: str, cause: str) -> None:
        """Give the requests of a replica to others, if it is connected."""
        member = self._members.pop(name, None)
        if member is None:
            return
        member.sender.close()
        self.totals.lose(name)
        moved, failed = self._requests.lose(member.requests, member.batch)
        for request_id in failed:
            self._abort_at_member(request_id)
        logger.warning("Replica %s was lost (%s); %d requests go to others.", name, cause, len(moved))
        self.listener.on_loss(name, moved)
        if self._members:
            self.listener.on_capacity(self.config(), len(self._members))
        else:
            self._empty_since_seconds = time.monotonic()
            self.listener.on_disconnect()
        self._route()

    def _on_message(self, member: Member, message: FromReplica) -> None:
        match message:
            case StepOutput():
                self._on_step(member, message)
            case BatchBegins(request_ids=request_ids):
                member.batch = {*request_ids}
            case Draining():
                member.is_draining = True
            case EngineLog(level=level, text=text):
                logger.log(level, "%s: %s", member.name, text)
            case EngineSnapshot():
                if (snapshot := self.totals.snapshot(member.name, message)) is not None:
                    self.listener.on_snapshot(snapshot)
            case _:  # a heartbeat
                pass

    def _on_step(self, member: Member, output: StepOutput) -> None:
        outputs = [
            msgspec.structs.replace(one, scheduled_at_seconds=member.here(one.scheduled_at_seconds))
            for one in member.receive(output)
        ]
        output = msgspec.structs.replace(output, outputs=outputs)
        self.listener.on_step(output, self.totals.step(member.name, output))
        for one in outputs:
            self._requests.put(one)
            if one.finish_reason is not None:
                member.end(one.request_id)
        self._route()

    def _route(self) -> None:
        """Send the waiting requests to replicas, as far as those can take them."""
        members = [*self._members.values()]
        for request in self._requests.waiting:
            candidates = self._candidates(request.group, members)
            if not candidates:
                continue
            message = request.resumed()
            text = [*message.prompt_token_ids, *message.output_token_ids]
            hashes: list[bytes] = []
            extend_hashes(hashes, text, message.cache_salt, candidates[0].config.block_size)
            member, num_known = choose(candidates, hashes)
            self._requests.send(message.request_id)
            member.take(request, hashes)
            self.listener.on_route(message.request_id, member.name, num_known * member.config.block_size)

    def _candidates(self, group: int, members: list[Member]) -> list[Member]:
        """Return the replicas that can take a request of this group now.

        A quarantined group gets one replica for itself: it is reserved, and taken when its other requests have ended.
        """
        for member in members:
            if member.reserved_for is not None and not self._requests.is_quarantined(member.reserved_for):
                member.reserved_for = None
        if not self._requests.is_quarantined(group):
            members = [one for one in members if one.reserved_for is None]
            members = [one for one in members if not one.is_draining] or members
            return [one for one in members if one.silence.seconds() < READY_SILENCE_SECONDS] or members
        reserved = next((one for one in members if one.reserved_for is not None), None)
        if reserved is None and members:
            reserved = min(members, key=lambda one: (one.is_draining, one.num_requests))
            reserved.reserved_for = group
        if reserved is None or reserved.reserved_for != group:
            return []
        return [reserved] if all(one.group == group for one in reserved.requests.values()) else []

    async def _check(self) -> None:
        """Leave replicas that are silent for too long, and fail requests that no replica takes."""
        async for late_seconds in self._clock.ticks():
            for member in [*self._members.values()]:
                member.silence.excuse(late_seconds)
                if member.silence.seconds() > self._hang_seconds:
                    self._leave(member.replica, f"it sent nothing for {self._hang_seconds:g} seconds")
            if not self._members and time.monotonic() - self._empty_since_seconds > MAX_DOWN_SECONDS:
                self._is_given_up = True
                self._requests.fail(EngineDied())
