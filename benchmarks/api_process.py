"""Measure the CPU time of the API process for each streamed token and for each request.

`python -m benchmarks.api_process` starts the real API process and reads its streams from another process. The engine
has no model and sends one frame each step; with --real-engine it is the real one, in int8. Long and short streams are
run in turn; their difference is the cost of a token, and the rest of the short ones is the cost of a request. With
--profile it prints a profile of cProfile, which itself costs about as much.
"""

import argparse
import cProfile
import json
import pstats
import re
import selectors
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from caravan.download.resolve import DEFAULT_MODEL, resolve_model
from caravan.server.engine.client import EngineClient
from caravan.server.serve import bind, run, run_server
from caravan.server.settings import load_settings

FAKE_ENGINE = str(Path(__file__).with_name("fake_engine.py"))
SHORT = 8  # tokens of a short stream
_FORMS = {  # path, and field of the number of tokens
    "completions": ("/v1/completions", "max_tokens"),
    "chat": ("/v1/chat/completions", "max_tokens"),
    "responses": ("/v1/responses", "max_output_tokens"),
    "messages": ("/v1/messages", "max_tokens"),
    "ollama": ("/api/chat", "num_predict"),  # the fake tokens never end a text
}


def main() -> None:
    """Print a line for each level, the median of the repeats."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", default="1,8,32,64", help="numbers of streams, separated by commas")
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--step-ms", type=float, default=10, help="time of a step of the engine")
    parser.add_argument("--tokens-per-step", type=int, default=1)
    parser.add_argument("--form", choices=_FORMS, default="completions", help="of the requests")
    parser.add_argument("--resume", action="store_true", help="streams that can be read again")
    parser.add_argument("--with", dest="fields", type=json.loads, default={}, help="more request fields, as JSON")
    parser.add_argument("--real-engine", action="store_true", help="the real engine with the default model, in int8")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)  # for the process that this one starts
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments)
        return
    print(f"{arguments.max_tokens} tokens a stream, {arguments.step_ms:g} ms a step, {arguments.repeats} repeats")
    print("streams  us/token  system part  events/token  ms/request   tokens/s", flush=True)
    with api_process() as (pid, port):
        for num_streams in map(int, arguments.streams.split(",")):
            print(f"{num_streams:>7}  {cost_of(pid, port, num_streams, arguments)}", flush=True)


def cost_of(pid: int, port: int, num_streams: int, arguments: argparse.Namespace) -> str:
    """Return a line of figures for `num_streams` streams at once."""
    run_streams(port, num_streams, arguments, SHORT)  # warm-up
    per_token, per_request, system_parts, events, rates = [], [], [], [], []
    for _ in range(arguments.repeats):
        started = time.perf_counter()
        short_seconds, _, _ = timed_streams(pid, port, num_streams, arguments, SHORT)
        between = time.perf_counter()
        long_seconds, system_part, num_events = timed_streams(pid, port, num_streams, arguments, arguments.max_tokens)
        wall_seconds = time.perf_counter() - between - (between - started)
        rates.append(num_streams * (arguments.max_tokens - SHORT) / wall_seconds)
        per_token.append((long_seconds - short_seconds) / num_streams / (arguments.max_tokens - SHORT))
        per_request.append(short_seconds / num_streams - SHORT * per_token[-1])
        system_parts.append(system_part)
        events.append(num_events / num_streams / arguments.max_tokens)
    return (
        f"{1e6 * statistics.median(per_token):>8.1f}  {statistics.median(system_parts):>11.0%}  "
        f"{statistics.median(events):>12.2f}  {1e3 * statistics.median(per_request):>10.2f}  "
        f"{statistics.median(rates):>9.0f}"
    )


def timed_streams(
    pid: int, port: int, num_streams: int, arguments: argparse.Namespace, max_tokens: int
) -> tuple[float, float, int]:
    """Return the CPU seconds that the process spent on these streams, the system's part of them, and their events."""
    clock = (~pid << 3) | 2  # CLOCK_PROCESS_CPUTIME_ID of another process, see clock_getcpuclockid(3)
    started, times = time.clock_gettime(clock), psutil.Process(pid).cpu_times()
    num_events = run_streams(port, num_streams, arguments, max_tokens)
    later = psutil.Process(pid).cpu_times()
    system_seconds, user_seconds = later.system - times.system, later.user - times.user
    system_part = system_seconds / (system_seconds + user_seconds) if system_seconds + user_seconds else 0.0
    return time.clock_gettime(clock) - started, system_part, num_events


def run_streams(port: int, num_streams: int, arguments: argparse.Namespace, max_tokens: int) -> int:
    """Open the streams together, read them to their ends, and return the number of events."""
    request = request_of(arguments, max_tokens)
    num_events = 0
    statuses = set()  # of the responses
    with selectors.DefaultSelector() as selector:
        for _ in range(num_streams):
            opened = socket.create_connection(("127.0.0.1", port))
            opened.sendall(request)
            selector.register(opened, selectors.EVENT_READ, opened)
        while selector.get_map():
            for key, _ in selector.select():
                connection: socket.socket = key.data
                received = connection.recv(1 << 16)
                num_events += received.count(b"data: {") + received.count(b'"done":false')
                if received.startswith(b"HTTP/1.1 "):
                    statuses.add(received[9:12])
                if not received:
                    selector.unregister(connection)
                    connection.close()
    if statuses != {b"200"}:
        raise SystemExit(f"the API process answered with status {', '.join(sorted(map(bytes.decode, statuses)))}")
    return num_events


def request_of(arguments: argparse.Namespace, max_tokens: int) -> bytes:
    """Return the request that every stream makes."""
    path, limit = _FORMS[arguments.form]
    prompt: dict[str, Any] = {"messages": [{"role": "user", "content": "word " * 100}]}
    if arguments.form == "completions":
        prompt = {"prompt": "word " * 100}
    elif arguments.form == "responses":
        prompt = {"input": "word " * 100}
    options = {limit: max_tokens, "temperature": 0}
    common = {"model": "bench", "stream": True}
    common |= {"options": options} if arguments.form == "ollama" else options | {"ignore_eos": True}
    body = json.dumps(common | prompt | arguments.fields).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n"
    if arguments.resume:
        head += "x-caravan-resume: 1\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


@contextmanager
def api_process() -> Iterator[tuple[int, int]]:
    """Start this module as the API process; yield its process id and port."""
    command = [sys.executable, "-m", "benchmarks.api_process", *sys.argv[1:], "--serve"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        try:
            found = next(filter(None, (re.search(r"^Ready\s+http://\S+:(\d+)/v1 ", line) for line in lines)), None)
            if found is None:
                raise SystemExit("the API process did not start")
            yield process.pid, int(found[1])
        finally:
            process.terminate()
            print("".join(lines), end="")  # the profile


def serve(arguments: argparse.Namespace) -> None:
    """Run the API process, with the fake engine as its child."""
    model_path = resolve_model(DEFAULT_MODEL, print)
    settings = load_settings({"port": 0, "served_model_name": "bench", "quantization": "int8"})
    start = settings.start_engine(model_path)
    if arguments.real_engine:
        engine = EngineClient(start)
    else:
        engine = EngineClient(start, (FAKE_ENGINE, str(arguments.step_ms), str(arguments.tokens_per_step)))
    listener = bind(settings.host, settings.port)
    profile: Any = cProfile.Profile()
    if arguments.profile:
        profile.enable()
    run(run_server(settings, model_path, engine, listener))
    if arguments.profile:
        profile.disable()
        pstats.Stats(profile).sort_stats("tottime").print_stats(45)


if __name__ == "__main__":
    main()
