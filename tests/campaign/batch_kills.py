"""A server that is killed while a batch runs: every line is answered once, as without kills.

`python -m tests.campaign.batch_kills MODEL FOLDER NUM_LINES NUM_KILLS` prints the figures.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.running_server import RunningServer, running_server

OPTIONS = ("--kv-cache-memory", "16MiB", "--dtype", "float32", "--served-model-name", "tiny")

Body = dict[str, Any]


def batch_lines(num_lines: int) -> bytes:
    """Return lines of which every other one is sampled with a seed."""
    lines = []
    for number in range(num_lines):
        body = {
            "model": "tiny",
            "messages": [{"role": "user", "content": f"Question {number}"}],
            "max_tokens": 4 + number % 13,
            "temperature": number % 2,
            "seed": number,
        }
        line = {"custom_id": f"line-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
        lines.append(json.dumps(line))
    return "\n".join(lines).encode()


def begin(server: RunningServer, num_lines: int) -> str:
    """Return the id of a new batch."""
    files = {"file": ("in.jsonl", batch_lines(num_lines))}
    file = server.http.post("/v1/files", files=files, data={"purpose": "batch"}).json()
    body = {"input_file_id": file["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    return str(server.http.post("/v1/batches", json=body).json()["id"])


def wait(server: RunningServer, batch_id: str, holds: Callable[[Body], bool]) -> Body:
    """Return the batch when a condition holds."""
    deadline = time.monotonic() + 600
    while not holds(batch := server.http.get(f"/v1/batches/{batch_id}").json()):
        assert time.monotonic() < deadline, batch
        time.sleep(0.01)
    return batch


def answers(server: RunningServer, batch: Body) -> dict[str, Body]:
    """Return what a completed batch answered, by line, without ids and times."""
    assert batch["error_file_id"] is None, batch
    found: dict[str, Body] = {}
    for text in server.http.get(f"/v1/files/{batch['output_file_id']}/content").text.splitlines():
        line = json.loads(text)
        assert line["custom_id"] not in found, "a line was answered twice"
        body = line["response"]["body"]
        found[line["custom_id"]] = {"choices": body["choices"], "tokens": body["usage"]["completion_tokens"]}
    return found


def run_batch(model: Path, folder: Path, num_lines: int, num_kills: int) -> dict[str, Body]:
    """Return the answers to a batch whose server is killed at even distances; asserts that each line has one."""
    batch_id = ""
    for number in range(num_kills + 1):
        with running_server(model, *OPTIONS, "--batch-folder", str(folder)) as server:
            if number == 0:
                batch_id = begin(server, num_lines)
            if number < num_kills:
                due = (number + 1) * num_lines // (num_kills + 1)
                wait(server, batch_id, lambda batch, due=due: batch["request_counts"]["completed"] >= due)  # type: ignore[misc]
                server.process.kill()
                continue
            batch = wait(server, batch_id, lambda batch: batch["status"] == "completed")
            assert batch["request_counts"] == {"total": num_lines, "completed": num_lines, "failed": 0}
            return answers(server, batch)
    raise AssertionError


def compared_batches(model: Path, folder: Path, num_lines: int, num_kills: int) -> dict[str, Any]:
    """Return the figures of a batch with kills, compared with one without."""
    times = [time.monotonic()]
    undisturbed = run_batch(model, folder / "undisturbed", num_lines, 0)
    times.append(time.monotonic())
    killed = run_batch(model, folder / "killed", num_lines, num_kills)
    times.append(time.monotonic())
    return {
        "num_lines": num_lines,
        "num_kills": num_kills,
        "num_answered_once": len(killed),
        "wrong": [name for name in undisturbed if killed.get(name) != undisturbed[name]],
        "seconds_without_kills": times[1] - times[0],
        "seconds_with_kills": times[2] - times[1],
    }


def main() -> None:
    """Compare a batch with and without kills."""
    print(json.dumps(compared_batches(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))))


if __name__ == "__main__":
    main()
