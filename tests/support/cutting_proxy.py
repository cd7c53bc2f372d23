"""A proxy that cuts connections after some bytes of the response, as networks do."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class CuttingProxy:
    """Forwards connections to a port of this machine; each is closed after a number of bytes of the response."""

    def __init__(self, port: int, num_bytes: list[int]) -> None:
        """`num_bytes` are those of the first connections; later ones are not cut."""
        self._upstream = ("127.0.0.1", port)
        self._num_bytes = iter(num_bytes)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.num_connections = 0
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def close(self) -> None:
        """Accept no more connections, and wait for the thread."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(60)

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                self.num_connections += 1
                with client, socket.create_connection(self._upstream) as server:
                    self._forward(client, server, next(self._num_bytes, None))

    def _forward(self, client: socket.socket, server: socket.socket, num_bytes: int | None) -> None:
        sending = threading.Thread(target=_copy, args=(client, server))
        sending.start()
        with suppress(OSError):
            while num_bytes is None or num_bytes > 0:
                part = server.recv(4096 if num_bytes is None else min(4096, num_bytes))
                if not part:
                    break
                client.sendall(part)
                num_bytes = None if num_bytes is None else num_bytes - len(part)
        for one in (client, server):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        sending.join(60)


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while part := source.recv(4096):
            target.sendall(part)
        target.shutdown(socket.SHUT_RDWR)  # its other direction ends too


@contextmanager
def cutting_proxy(port: int, num_bytes: list[int]) -> Iterator[CuttingProxy]:
    """Start a proxy and close it at the end; one connection at a time."""
    proxy = CuttingProxy(port, num_bytes)
    try:
        yield proxy
    finally:
        proxy.close()
