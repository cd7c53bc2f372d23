"""The chat template's worker: a process that renders one template and does nothing else.

Run by path, with three arguments: the limit of processor time for each line in seconds, the memory limit in bytes, and
how much the process yields to others (see nice(2)). Each line on standard input is a JSON object and is answered by one
line on standard output. The first line is the template; its answer says whether it compiles. SIGPROF ends the process
at the time limit, and exit status 77 says that memory ran out. It imports nothing of this project, so that it is small
and starts fast.
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
    """`{% generation %} ... {% endgeneration %}` marks the assistant's text for training; here it is its content."""

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self.tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def compile_template(source: str) -> Template:
    """Return the template with the surroundings that Hugging Face's chat templates expect."""
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
    """Like json.dumps; jinja2's own filter would escape HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def main() -> None:
    """Answer lines until standard input ends."""
    time_limit_seconds, memory_limit_bytes = float(sys.argv[1]), int(sys.argv[2])
    os.nice(int(sys.argv[3]))
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # sent to all processes of a service; the server ends this one
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (memory_limit_bytes, memory_limit_bytes))
    first = json.loads(sys.stdin.buffer.readline())
    # The timer counts processor time, so that a busy machine makes no template slow. It has no handler: the kernel ends
    # this process, whatever it is doing. Compiling needs it too, since jinja2 computes what is constant then.
    signal.setitimer(signal.ITIMER_PROF, time_limit_seconds)
    try:
        template = compile_template(first["source"])
    except MemoryError:
        os._exit(77)
    except Exception as error:
        _answer({"failed": f"{type(error).__name__}: {error}"})
        return
    signal.setitimer(signal.ITIMER_PROF, 0)
    _answer({"text": ""})
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_PROF, time_limit_seconds)
        try:
            _answer(_render(template, line, first["max_characters"]))
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


def _answer(answer: dict[str, str]) -> None:
    try:
        line = json.dumps(answer, ensure_ascii=False).encode()  # quicker to read than escapes
    except UnicodeEncodeError:
        line = b'{"failed": "the text has a lone surrogate, which is not a character"}'
    sys.stdout.buffer.write(line + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
