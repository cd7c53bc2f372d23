"""Unix sockets to listen on."""

import errno
import socket
from pathlib import Path


def bind_unix(path: Path) -> socket.socket:
    """Return a Unix socket bound to a path, to which only this user can connect; raises OSError.

    A socket that an ended server has left is replaced.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.is_socket():
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
                if client.connect_ex(str(path)) == errno.ECONNREFUSED:  # nobody listens
                    path.unlink()
        listener.bind(str(path))
        path.chmod(0o600)  # before anybody can connect: it does not listen yet
    except OSError:
        listener.close()
        raise
    return listener


def remove_unix(path: Path | None) -> None:
    """Remove the file of a socket, if there is one."""
    if path is not None:
        path.unlink(missing_ok=True)
