"""A server that ends with the process that has started it: `python -m caravan.cli.attached_server MODEL [OPTIONS]`.

The options are those of `caravan serve`. The server ends when its standard input does.
"""

import os
import signal
import sys
import threading


def main() -> None:
    """Serve until the standard input ends."""
    threading.Thread(target=end_with_input, args=(sys.stdin.fileno(),), daemon=True).start()
    from caravan.cli.main import make_app

    make_app()(["serve", *sys.argv[1:]], prog_name="caravan")


def end_with_input(descriptor: int) -> None:
    """Send SIGTERM to this process when a file ends."""
    while os.read(descriptor, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
