"""The routes, limits and threats in SECURITY.md are those of the code and of its tests."""

import re
from pathlib import Path

from starlette.routing import Route

from caravan.server.generation.request_limits import QueueLimits, RequestLimits
from caravan.server.http.auth import is_open
from caravan.server.http.framing import MAX_HEAD_BYTES
from caravan.server.http.json_scan import MAX_DEPTH, MAX_VALUES
from caravan.server.http.protocol import HEAD_SECONDS
from caravan.server.sandbox.grammar_check import (
    FIRST_LIMIT_SECONDS,
    MAX_SLOW_PER_KEY,
    MAX_WAITING_PER_KEY,
    MEMORY_LIMIT_BYTES,
    TIME_LIMIT_SECONDS,
)
from caravan.server.settings import Settings, load_settings
from tests.server.openai.api import open_api

TEXT = (Path(__file__).parents[2] / "SECURITY.md").read_text("utf-8")


def rows(title: str) -> list[list[str]]:
    """Return the cells of the table below a heading, without its head."""
    section = TEXT.partition(f"## {title}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


async def test_the_table_of_routes_is_that_of_the_application() -> None:
    async with open_api() as api:
        methods = {path: {*map(str.upper, operations)} for path, operations in api.app.openapi()["paths"].items()}
        methods |= {route.path: {*(route.methods or ())} for route in api.app.routes if isinstance(route, Route)}
        left_out = ("/", "/docs", "/web/{name}", "/web/code/{path}")
        methods |= {path: {"GET"} for path in left_out}  # of the document
        for path, names in methods.items():
            example = path.replace("{name}", "style.css").replace("{path}", "scheduler/engine.py")
            if (await api.http.head(example)).status_code not in (404, 405):
                names.add("HEAD")
    routes = {
        f"`{path}`": [", ".join(sorted(names)), "no" if is_open(path) else "yes"] for path, names in methods.items()
    }
    listed = {
        path: [methods, re.split("[,:;]", needs)[0]] for path, methods, needs in rows("Routes and who may call them")
    }
    assert listed == routes


def test_the_limits_are_those_of_the_code() -> None:
    limits, queue, settings = RequestLimits(), QueueLimits(), load_settings({}, {})
    resume = settings.resume_limits
    listed = {what: limit for what, limit, _ in rows("Limits")}
    assert listed == {
        "head of a request": f"{MAX_HEAD_BYTES:,} bytes, {HEAD_SECONDS:g} s",
        "body of a request": f"{limits.max_body_bytes:,} bytes, {limits.body_timeout_seconds:g} s",
        "time without a read of a stream": f"{limits.write_timeout_seconds:g} s",
        "idle connection": f"{settings.keep_alive_timeout} s",
        "bodies of all requests together": f"{int(settings.max_body_memory):,} bytes",
        "strings, lists and objects in a body": f"{MAX_VALUES:,}, {MAX_DEPTH} levels deep",
        "time without an event before a comment": f"{limits.keep_alive_seconds:g} s",
        "resumable responses": f"{resume.max_streams}",
        "events of resumable responses": f"{resume.max_bytes:,} bytes",
        "time without a reader of a resumable response": f"{resume.idle_seconds:g} s",
        "choices of a request": f"{limits.max_choices}",
        "check of a grammar": (
            f"{FIRST_LIMIT_SECONDS:g} s of processor time, then {TIME_LIMIT_SECONDS:g} s in the queue for slow ones; "
            f"{MEMORY_LIMIT_BYTES >> 20:,} MiB"
        ),
        "queued grammar checks of a key": (f"{MAX_WAITING_PER_KEY}, of which {MAX_SLOW_PER_KEY} slow ones"),
        "tokens of `/tokenize`": f"{limits.max_shown_tokens:,}, or the model's context if it is longer",
        "waiting sequences": f"{queue.max_requests}",
        "tokens of waiting sequences": f"{queue.max_tokens:,}",
        "expected time in the queue": "none" if queue.max_wait_seconds is None else f"{queue.max_wait_seconds:g} s",
        "time without a heartbeat of the engine": f"{settings.engine_timeout:g} s",
        "time for accepted requests after SIGTERM": f"{settings.drain_timeout:g} s",
    }
    assert settings.queue_limits == queue
    for _, _, option in rows("Limits"):
        if option:
            assert re.sub("[`-]", " ", option).strip().replace(" ", "_") in Settings.model_fields


def test_every_threat_has_a_test_with_its_number_and_every_number_is_a_threat() -> None:
    section = TEXT.partition("## Threats, by number\n")[2].partition("\n## ")[0]
    threats = {int(number) for number in re.findall(r"^(\d+)\. ", section, re.MULTILINE)}
    tests = Path(__file__).parents[1].rglob("test_*.py")
    tested = {
        int(number) for test in tests for number in re.findall(r"def test_threat_(\d+)_", test.read_text("utf-8"))
    }
    assert tested == threats == {*range(1, 43)}
