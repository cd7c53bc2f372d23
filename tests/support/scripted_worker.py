"""A worker that does what its question says, within the limits of a worker; run by path, as the real ones are."""

import json
import os
import signal
import sys
import time
from pathlib import Path


def main() -> None:
    """Answer lines until standard input ends. A question is a list of steps in JSON, as {"grammar": ...}."""
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_PROF, float(sys.argv[1]))
        failed = ""
        for name, value in json.loads(json.loads(line)["grammar"]):
            match name:
                case "append to":
                    with Path(value).open("a") as file:
                        file.write("asked\n")
                case "burn":
                    end = time.process_time() + value
                    while time.process_time() < end:
                        pass
                case "sleep":
                    time.sleep(value)
                case "signal":
                    os.kill(os.getpid(), value)
                case "signal once":
                    if not Path(value).exists():
                        Path(value).touch()
                        os.kill(os.getpid(), signal.SIGKILL)
                case "exit":
                    os._exit(value)
                case "say and abort":
                    os.write(2, value.encode())
                    os.abort()
                case "fail":
                    failed = value
        signal.setitimer(signal.ITIMER_PROF, 0)
        answer = {"failed": failed} if failed else {}
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
