"""ChatTemplate: renders as Hugging Face's templates expect, and isolates hostile templates."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import pytest

from caravan.server.sandbox.chat_template import ChatTemplate, TemplateFailed, TemplateRefused, usable_template
from caravan.server.sandbox.worker_pool import WorkerPool
from caravan.server.sandbox.worker_process import MemoryLimitExceeded, TimeLimitExceeded, WorkerProcess
from tests.server.openai.api import CHAT_ML

TALK: list[dict[str, Any]] = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes "}]


@contextmanager
def opened(source: str, **limits: Any) -> Iterator[ChatTemplate]:
    template = ChatTemplate(source, "<s>", "</s>", **limits)
    yield template
    template.close()


def render(source: str, messages: list[dict[str, Any]] | None = None, **options: Any) -> str:
    with opened(source) as template:
        rendered = template.render(messages or TALK, special_tokens=["<s>", "</s>"], **options)
        return rendered.text.replace(rendered.guard, "")


def test_messages_and_special_tokens_are_rendered() -> None:
    source = "{{ bos_token }}{% for m in messages %}{{ m['role'] }}:{{ m.content }};{% endfor %}{{ eos_token }}"
    assert render(source) == "<s>user:hi;assistant:yes ;</s>"


def test_the_generation_prompt_is_optional() -> None:
    source = "{% if add_generation_prompt %}go{% endif %}"
    assert render(source) == "go"
    assert render(source, add_generation_prompt=False) == ""


def test_blocks_are_trimmed_as_hugging_face_does() -> None:
    assert render("a\n  {% if true %}\nb\n  {% endif %}\nc\n") == "a\nb\nc"


def test_loop_controls_and_generation_blocks_are_supported() -> None:
    assert render("{% for m in messages %}{{ m.role }}{% break %}{% endfor %}") == "user"
    assert render("{% generation %}x{{ 1 + 1 }}{% endgeneration %}") == "x2"


def test_tojson_writes_json_and_not_html() -> None:
    assert render("{{ messages[0] | tojson }}") == json.dumps(TALK[0])
    assert render("{{ {'a': '<é>'} | tojson(indent=1) }}") == '{\n "a": "<é>"\n}'


def test_strftime_now_is_the_date() -> None:
    assert render("{{ strftime_now('%Y') }}") == datetime.now().strftime("%Y")


def test_raise_exception_raises_template_refused() -> None:
    with pytest.raises(TemplateRefused, match="after user"):
        render("{{ raise_exception('after ' + messages[0].role) }}")


@pytest.mark.parametrize("source", ["{% if %}", "{{ ", "{% unknown %}", "{% for x in y %}"])
def test_an_invalid_template_is_rejected_at_once(source: str) -> None:
    with pytest.raises(ValueError, match="chat template cannot be used"):
        ChatTemplate(source, "", "")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (CHAT_ML, "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyes "),
        ("{% for m in messages %}[{{ m.content | trim }}]{% endfor %}", "[hi][yes"),
        ("{% for m in messages %}[{{ m.content }} ]{% endfor %}", "[hi ][yes "),
    ],
)
def test_a_final_message_is_continued_where_its_content_ends(source: str, expected: str) -> None:
    assert render(source, add_generation_prompt=False, continue_final_message=True) == expected


def test_a_template_that_omits_the_final_message_cannot_continue_it() -> None:
    with pytest.raises(TemplateFailed, match="omits the content"):
        render("{{ messages[0].content }}", continue_final_message=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception.__globals__.sys }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{% include 'x' %}",
        "{% import 'os' as os %}",
    ],
)
def test_threat_7_a_template_cannot_escape_the_sandbox(source: str) -> None:
    with opened("{% if messages|length > 2 %}" + source + "{% endif %}") as template:
        with pytest.raises(TemplateFailed):
            template.render([*TALK, *TALK], special_tokens=[])
        assert template.render(TALK, special_tokens=[]).text == ""


SLOW = "{% for a in range(3000) %}{% for b in range(3000) %}{% endfor %}{% endfor %}"  # a second of processor time
MIB = 2**20


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "limits", "words"),
    [
        (SLOW, {"time_limit_seconds": 0.1}, "0.1 s of processor time"),
        ("{{ 'x' * (messages|length * 25000000) }}", {"memory_limit_bytes": 96 * MIB}, "96 MiB of memory"),
        ("{{ 'x' * (messages|length * 500) }}", {"max_characters": 1000}, "more than 1000"),
    ],
    ids=["time", "memory", "length"],
)
def test_threat_7_a_template_that_exceeds_a_limit_is_stopped(source: str, limits: dict[str, Any], words: str) -> None:
    with opened("{% if messages|length > 2 %}" + source + "{% endif %}ok", **limits) as template:
        with pytest.raises(TemplateFailed, match=words):
            template.render([*TALK, *TALK], special_tokens=[])
        assert template.render(TALK, special_tokens=[]).text == "ok"  # the next prompt is not harmed


@pytest.mark.slow
def test_threat_7_a_template_that_exceeds_a_limit_while_it_is_compiled_is_rejected() -> None:
    constant = "('x' * 2000000)" + 8 * "|list|join"  # jinja2 computes it at once
    with pytest.raises(ValueError, match="too much time or memory"):
        ChatTemplate("{{ " + constant + " }}", "", "", time_limit_seconds=0.1)


def test_concurrent_prompts_are_rendered_separately() -> None:
    with opened("{{ messages[0].content }}") as template, ThreadPoolExecutor(8) as pool:
        contents = [f"text {index}" for index in range(100)]

        def one(content: str) -> str:
            return template.render([{"role": "user", "content": content}], special_tokens=[]).text

        assert list(pool.map(one, contents)) == contents


@pytest.mark.slow
@pytest.mark.parametrize("harm", [signal.SIGKILL, signal.SIGSTOP])
def test_threat_27_a_template_worker_killed_or_stopped_is_replaced_and_the_prompt_is_rendered(
    harm: signal.Signals,
) -> None:
    with opened("{{ messages[0].content }}", time_limit_seconds=0.1) as template:  # so it has 5.5 s by the clock
        for pid in template.pids:
            os.kill(pid, harm)
        began = time.monotonic()
        assert template.render(TALK, special_tokens=[]).text == "hi"
        assert time.monotonic() - began < 10


@pytest.mark.timing
@pytest.mark.slow
def test_threat_27_a_slow_prompt_does_not_delay_others() -> None:
    source = "{% if messages|length > 2 %}" + 20 * SLOW
    with opened(source + "{% endif %}ok", time_limit_seconds=1.5) as template, ThreadPoolExecutor(1) as pool:
        has_begun = threading.Event()

        def slow() -> None:
            has_begun.set()
            with pytest.raises(TemplateFailed, match="1.5 s of processor time"):
                template.render([*TALK, *TALK], special_tokens=[])

        slow_prompt = pool.submit(slow)
        has_begun.wait()
        time.sleep(0.2)
        began = time.monotonic()
        assert template.render(TALK, special_tokens=[]).text == "ok"
        assert time.monotonic() - began < 1
        assert not slow_prompt.done()
        slow_prompt.result(60)


def test_a_template_that_renders_half_a_surrogate_pair_fails() -> None:
    with pytest.raises(TemplateFailed, match="lone surrogate"):
        render(r"{{ '\ud83d' }}")


def test_messages_that_use_every_guard_character_raise_value_error() -> None:
    everything = "".join(map(chr, range(0xE000, 0xF900)))
    with opened(CHAT_ML) as template, pytest.raises(ValueError, match="private-use"):
        template.render([{"role": "user", "content": everything}], special_tokens=[])


def test_a_template_for_tools_is_probed_with_tools() -> None:
    plain = "{% for m in messages %}{{ m.content }}{% endfor %}"
    with_tools = "{% for tool in tools %}{{ tool.function.name }}{% endfor %}" + plain  # which fails without any
    template = usable_template(plain, "", "", with_tools)
    try:
        assert template.for_tools().source == with_tools
        assert template.for_tools().shape.content("user", "hi") == "hi"
        tools: list[Any] = [{"type": "function", "function": {"name": "find"}}]
        assert template.for_tools().render(TALK[:1], special_tokens=[], tools=tools).text == "findhi"
    finally:
        template.close()


def test_a_template_for_tools_that_drops_user_messages_is_rejected() -> None:
    with pytest.raises(ValueError, match="it drops the text of user messages"):
        usable_template("{{ messages[0].content }}", "", "", "nothing{{ tools | length }}")


@pytest.mark.parametrize(
    ("error", "words"),
    [(TimeLimitExceeded(), "more than 2 s of processor time"), (MemoryLimitExceeded(), "more than 64 MiB of memory")],
)
def test_an_exceeded_limit_is_named(error: Exception, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def call(*_: object) -> dict[str, str]:
        raise error

    with opened("{{ messages }}", time_limit_seconds=2, memory_limit_bytes=64 * 2**20) as template:
        monkeypatch.setattr(WorkerPool, "call", call)
        with pytest.raises(TemplateFailed, match=words):
            template.render(TALK, special_tokens=[])


def test_a_template_that_exceeds_a_limit_when_it_is_compiled_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def call(*_: object) -> dict[str, str]:
        raise TimeLimitExceeded

    monkeypatch.setattr(WorkerProcess, "call", call)
    with pytest.raises(ValueError, match="cannot be used: it takes too much time or memory"):
        ChatTemplate("{{ messages }}", "", "")
