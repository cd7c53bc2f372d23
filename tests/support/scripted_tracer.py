"""A process of traces that does what the path of its model says; run by path, as WorkerProcess runs programs."""

import json
import os
import signal
import sys
import time
from pathlib import Path

REFUSALS = {"too large": "too_large", "unreadable": "unreadable", "unsupported": "unsupported"}


def main() -> None:
    """Reply to lines until standard input ends. The last part of the model's path is a word below, or an answer."""
    path = Path()
    for line in sys.stdin.buffer:
        request = json.loads(line)
        reply: dict[str, str] = {}
        if "path" in request:
            path = Path(request["path"])
            if path.name in REFUSALS:
                reply = {"failed": f"It is {path.name}.", "code": REFUSALS[path.name]}
        else:
            match path.name:
                case "lost":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "slow":
                    os.kill(os.getpid(), signal.SIGPROF)
                case "full":
                    os._exit(77)
                case "waits":
                    time.sleep(60)
                case _ if request["layer"] > 1:
                    reply = {"failed": "`layer` is too large.", "code": "invalid", "param": "layer"}
                case _:
                    reply = {"trace": path.read_text()}
        sys.stdout.buffer.write(json.dumps(reply).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
