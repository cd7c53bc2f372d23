"""Logs: one line per event, for any content."""

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from caravan.server.generation.errors import GenerationFailed
from caravan.server.observe.logs import bind_request_id, set_up_logs
from caravan.server.observe.settings import LogFormat, LogLevel
from tests.support.running_server import running_server

HOSTILE = "a\r\nINFO forged \x1b[31mred\x00 \u2028 é"
CANARY = "canary-7351"


@pytest.fixture
def root() -> Iterator[None]:
    """What a test does to the root logger is undone."""
    logger = logging.getLogger()
    handlers, level = logger.handlers[:], logger.level
    yield
    logger.handlers[:] = handlers
    logger.setLevel(level)


def logged(kind: LogFormat, level: LogLevel = "info") -> list[str]:
    stream = io.StringIO()
    set_up_logs(kind, level, stream)
    logger = logging.getLogger("some.module")
    bind_request_id("the-id")
    logger.warning("What %s said.", HOSTILE)
    logger.info("request", extra={"status": 200, "route": "/v1/models"})
    try:
        raise KeyError(HOSTILE)
    except KeyError:
        logger.exception("It failed.")
    logger.debug("not shown")
    return stream.getvalue().splitlines(keepends=False)


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("kind", ["json", "auto"])
def test_threat_13_an_event_is_one_line_of_json_for_any_text(kind: LogFormat) -> None:
    events = [json.loads(line) for line in logged(kind)]
    assert [event["event"] for event in events] == [f"What {HOSTILE} said.", "request", "It failed."]
    assert [event["level"] for event in events] == ["warning", "info", "error"]
    assert {event["request_id"] for event in events} == {"the-id"}
    assert events[1]["status"] == 200
    assert "KeyError" in events[2]["exception"]
    assert all(event["timestamp"].endswith("Z") for event in events)


@pytest.mark.usefixtures("root")
def test_at_a_terminal_lines_are_text() -> None:
    lines = logged("text")
    assert lines[1] == "INFO request request_id=the-id status=200 route=/v1/models"
    assert lines[2] == "ERROR It failed. request_id=the-id"
    assert lines[3].startswith("Traceback")


@pytest.mark.usefixtures("root")
def test_lines_below_the_level_are_left_out() -> None:
    assert [line.split()[0] for line in logged("text", "warning")][:2] == ["WARNING", "ERROR"]
    assert logged("text", "error")[0].startswith("ERROR")


class OfALibrary(ValueError):
    """Stands for an exception of a library that quotes what it was given."""


@pytest.mark.usefixtures("root")
def test_threat_31_a_traceback_omits_the_messages_of_libraries() -> None:
    stream = io.StringIO()
    set_up_logs("json", stream=stream)
    try:
        try:
            raise OfALibrary(f"at 1:7: {CANARY}")
        except OfALibrary as error:
            raise ExceptionGroup("several", [RuntimeError(CANARY), GenerationFailed("words of ours")]) from error
    except ExceptionGroup:
        logging.getLogger("some.module").exception("It failed.")
    [line] = stream.getvalue().splitlines()
    assert CANARY not in line
    for name in (
        "OfALibrary",
        "RuntimeError",
        "caravan.server.generation.errors.GenerationFailed: words of ours",
        "ExceptionGroup",
    ):
        assert name in line


@pytest.mark.slow
def test_threat_13_prompts_are_never_logged(tiny_model_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with running_server(tiny_model_path, "--kv-cache-memory", "4MiB", "--access-log") as server:
        for body in (
            {"model": "tiny", "prompt": CANARY, "max_tokens": 3, "ignore_eos": True},
            {"model": CANARY, "prompt": CANARY},
            {"model": "tiny", "prompt": CANARY, CANARY: 1},
            {"model": "tiny", "prompt": CANARY, "regex": f"({CANARY}"},
            {"model": "tiny", "prompt": CANARY * 2000},
            {"model": "tiny", "prompt": CANARY, "response_format": {"type": CANARY}},
        ):
            server.http.post(f"/v1/completions?{CANARY}", json=body, headers={"x-other": CANARY})
        server.http.get(f"/{CANARY}")
        server.http.get("/v1/models", headers={"x-request-id": "mine"})
    said = capfd.readouterr().err
    assert CANARY not in said
    events = [json.loads(line) for line in said.splitlines()]
    requests = [event for event in events if event["event"] == "request"]
    assert [event["status"] for event in requests] == [200, 404, 400, 400, 400, 400, 404, 200]
    assert requests[-1]["request_id"] == "mine"
    assert (requests[0]["completion_tokens"], requests[0]["route"]) == (3, "/v1/completions")
