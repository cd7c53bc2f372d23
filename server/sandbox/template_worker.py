"""The worker process of a chat template: it renders one template and does nothing else.

Run by path, with three arguments: the processor time limit per line in seconds, the memory limit in bytes, and the
niceness of the process (see nice(2)). Each line of standard input is a JSON object; the reply is one line on standard
output. The first line has the template; its reply says whether it compiles. SIGPROF ends the process at the time limit,
and exit status 77 means that memory ran out. It imports nothing from this project, so that it is small and starts fast.
"""

import json
import os
import resource
import signal
import sys
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import Environment, Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment


class RaisedByTemplate(TemplateError):
    """The template called raise_exception."""


class GenerationBlock(Extension):
    """`{% generation %} ... {% endgeneration %}` marks the assistant's text for training; the content is rendered."""

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self.tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def compile_template(source: str) -> Template:
    """Return the template, compiled in the environment that Hugging Face's chat templates expect."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, GenerationBlock]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment.from_string(source)


def _raise_exception(message: object) -> NoReturn:
    raise RaisedByTemplate(str(message))


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Like json.dumps; jinja2's own filter escapes HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def main() -> None:
    """Reply to lines until standard input ends."""
    time_limit_seconds, memory_limit_bytes = float(sys.argv[1]), int(sys.argv[2])
    os.nice(int(sys.argv[3]))
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # service managers send it to all processes; the server ends this one
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (memory_limit_bytes, memory_limit_bytes))
    first = json.loads(sys.stdin.buffer.readline())
    # The timer counts processor time, so load does not matter. There is no handler: the kernel ends this process.
    # Compiling needs a limit too, since jinja2 evaluates constant expressions then.
    signal.setitimer(signal.ITIMER_PROF, time_limit_seconds)
    try:
        template = compile_template(first["source"])
    except MemoryError:
        os._exit(77)
    except Exception as error:
        _reply({"failed": f"{type(error).__name__}: {error}"})
        return
    signal.setitimer(signal.ITIMER_PROF, 0)
    _reply({"text": ""})
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_PROF, time_limit_seconds)
        try:
            _reply(_render(template, line, first["max_characters"]))
        except MemoryError:
            os._exit(77)
        signal.setitimer(signal.ITIMER_PROF, 0)


def _render(template: Template, line: bytes, max_characters: int) -> dict[str, str]:
    try:
        text = template.render(json.loads(line))
    except RaisedByTemplate as error:
        return {"raised": str(error)}
    except MemoryError:
        raise
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}"}
    if len(text) > max_characters:
        return {"failed": f"the text has {len(text)} characters, more than {max_characters}"}
    return {"text": text}


def _reply(reply: dict[str, str]) -> None:
    try:
        line = json.dumps(reply, ensure_ascii=False).encode()  # faster to parse than escapes
    except UnicodeEncodeError:
        line = b'{"failed": "the text has a lone surrogate, which is not a character"}'
    sys.stdout.buffer.write(line + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
