"""Logs: one line per event, as JSON or, at a terminal, as text.

Every module uses `logging`; the engine process logs through its socket. Lines logged while a request is handled
carry its id. The text of a prompt or a response is never logged, and tracebacks omit the messages of libraries, which
may quote it.
"""

import logging
import sys
from types import TracebackType
from typing import TextIO

import structlog
from structlog.types import Processor

from caravan.scheduler.tracebacks import traceback_text
from caravan.server.observe.settings import LogFormat, LogLevel


def set_up_logs(kind: LogFormat, level: LogLevel = "info", stream: TextIO | None = None) -> None:
    """Send logs from `level` on to `stream`, standard error by default; `auto` is text at a terminal, else JSON."""
    stream = stream or sys.stderr
    is_json = kind == "json" or (kind == "auto" and not stream.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        _without_foreign_fields,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.ExceptionRenderer(_safe_traceback),
    ]
    renderer: list[Processor] = [structlog.processors.JSONRenderer()] if is_json else [_text]
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # a wrong form is answered with status 400


def bind_request_id(request_id: str) -> None:
    """Add the request id to all further log lines of the current task."""
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(request_id=request_id)


def _safe_traceback(exc_info: tuple[type[BaseException], BaseException, TracebackType | None]) -> str:
    return traceback_text(exc_info[1])


def _without_foreign_fields(_: object, __: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
    """Remove uvicorn's copy of the message with colours, and the time that Ray adds to every record."""
    event.pop("color_message", None)
    event.pop("_ray_timestamp_ns", None)
    return event


def _text(_: object, __: str, event: structlog.types.EventDict) -> str:
    """Return a line of text: level, message and fields, with a traceback below it."""
    traceback = event.pop("exception", None)
    level, text, _ = str(event.pop("level")).upper(), event.pop("event"), event.pop("timestamp")
    fields = " ".join(f"{name}={value}" for name, value in event.items())
    line = " ".join(filter(None, [level, str(text), fields]))
    line = "".join(character if character.isprintable() else " " for character in line)
    return line if traceback is None else f"{line}\n{traceback}"
