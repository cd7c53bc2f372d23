"""`python -m tests.support.alone COMMAND...`: run a command where it can reach nothing but itself.

Ray listens on all interfaces, whatever address it is given. In a network namespace of its own there is only the
loopback interface, and in a process namespace of its own all its processes end with it. Needs Linux and unshare(1).
"""

import fcntl
import os
import shutil
import socket
import struct
import sys
from pathlib import Path

_GET_FLAGS, _SET_FLAGS = 0x8913, 0x8914  # SIOCGIFFLAGS, SIOCSIFFLAGS of ioctl(2)
_UP = 1  # IFF_UP
_INSIDE = "CARAVAN_TEST_ALONE"


def is_alone() -> bool:
    """Return whether this process sees the loopback interface only."""
    return sys.platform == "linux" and {name for _, name in socket.if_nameindex()} == {"lo"}


def main() -> None:
    """Become the command, in new namespaces."""
    command = sys.argv[1:]
    if os.environ.pop(_INSIDE, ""):
        _raise_loopback()
        os.execvp(command[0], command)
    unshare = shutil.which("unshare")
    if unshare is None:
        sys.exit("unshare(1) is missing. It is part of util-linux.")
    # As a user who is not root, the command is root in a user namespace of its own.
    options = [
        "--net",
        "--pid",
        "--fork",
        "--mount-proc",
        "--kill-child",
        *(["--map-root-user"] if os.getuid() else []),
    ]
    again = [unshare, *options, sys.executable, "-m", "tests.support.alone", *command]
    os.execve(unshare, again, os.environ | {_INSIDE: "1"})


def _raise_loopback() -> None:
    """Bring up the loopback interface, which a new namespace has down."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        request = struct.pack("16sH14s", b"lo", 0, b"")
        flags = struct.unpack("16sH14s", fcntl.ioctl(asked, _GET_FLAGS, request))[1]
        fcntl.ioctl(asked, _SET_FLAGS, struct.pack("16sH14s", b"lo", flags | _UP, b""))
    assert Path("/proc/self").exists()


if __name__ == "__main__":
    main()
