"""The store of a process group: values by key, by which its ranks tell each other where they listen.

torch.distributed has a store of its own on TCP, which anyone can connect to and change. This one is a table in the
first rank; the others call it through the connections on which they have shown their secret.
"""

import socket
import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import msgspec
from typing_extensions import override

from caravan.scheduler.channel import encode_frame
from caravan.scheduler.rank_messages import CallStore, FromJoining, GroupJoined, RankFailed, StoreAnswer, receive

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store  # torch.distributed has it without saying so
else:
    from torch.distributed import Store


class RankStore(Store):
    """The store of the first rank. `get` waits until a key is set, or the start of a rank has failed."""

    def __init__(self) -> None:
        super().__init__()
        self._values: dict[str, bytes] = {}
        self._changed = threading.Condition()
        self.failure = ""  # why no call that waits returns

    def call(self, call: CallStore) -> StoreAnswer:
        """Return the result of a call; raises RuntimeError if a rank has failed."""
        with self._changed:
            match call.operation:
                case "set":
                    self._values[call.key] = call.value
                case "get":
                    self._changed.wait_for(lambda: call.key in self._values or self.failure)
                    if self.failure:
                        raise RuntimeError(self.failure)
                    return StoreAnswer(value=self._values[call.key])
                case "add":
                    number = int(self._values.get(call.key, b"0")) + call.amount
                    self._values[call.key] = str(number).encode()
                    self._changed.notify_all()
                    return StoreAnswer(number=number)
                case "check":
                    return StoreAnswer(number=int(call.key in self._values))
            self._changed.notify_all()
        return StoreAnswer()

    def fail(self, reason: str) -> None:
        """Make all calls of `get` that wait fail."""
        with self._changed:
            self.failure = self.failure or reason
            self._changed.notify_all()

    def serve(self, connection: socket.socket, name: str) -> None:
        """Answer the calls of a rank until it has joined the group. If it fails, so does the store."""
        decoder: msgspec.msgpack.Decoder[FromJoining] = msgspec.msgpack.Decoder(FromJoining)
        try:
            while True:
                match decoder.decode(receive(connection)):
                    case CallStore() as call:
                        connection.sendall(encode_frame(self.call(call)))
                    case GroupJoined():
                        return
                    case RankFailed(reason=reason):
                        self.fail(f"{name} cannot start: {reason}")
                        return
        except (OSError, RuntimeError, ValueError):
            self.fail(f"{name} ended while it joined the others.")

    @override
    def set(self, key: str, value: Any) -> None:
        self.call(CallStore(operation="set", key=key, value=_bytes(value)))

    @override
    def get(self, key: str) -> bytes:
        return self.call(CallStore(operation="get", key=key)).value

    @override
    def add(self, key: str, value: int) -> int:
        return self.call(CallStore(operation="add", key=key, amount=value)).number

    @override
    def check(self, keys: list[str]) -> bool:
        return all(self.call(CallStore(operation="check", key=key)).number for key in keys)

    @override
    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        """Wait without a timeout: a rank that starts slowly is no error, and one that ends is noticed."""
        for key in keys:
            self.get(key)


class CalledStore(RankStore):
    """The same store, called by another rank through its connection to the first one."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__()
        self._connection = connection

    @override
    def call(self, call: CallStore) -> StoreAnswer:
        self._connection.sendall(encode_frame(call))
        return msgspec.msgpack.decode(receive(self._connection), type=StoreAnswer)


def _bytes(value: Any) -> bytes:
    """Return what torch passes as a value: bytes, or text."""
    return value.encode() if isinstance(value, str) else bytes(value)
