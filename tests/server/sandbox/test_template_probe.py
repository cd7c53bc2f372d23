"""Template probes: the message format of a template is detected by rendering."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from caravan.server.openai.tool_calls.call_format import format_of
from caravan.server.sandbox.chat_template import ChatTemplate, usable_template
from caravan.server.sandbox.template_shape import ContentShape, TemplateShape
from tests.server.openai.api import CHAT_ML
from tests.support import templates

TEXT = ContentShape(takes_text=True)
PARTS = ContentShape(takes_text=False, takes_parts=True, takes_part=True)
BOTH = ContentShape(takes_text=True, takes_parts=True, takes_part=True)


@contextmanager
def opened(source: str) -> Iterator[ChatTemplate]:
    template = ChatTemplate(source, "<s>", "</s>")
    yield template
    template.close()


def shape_of(source: str) -> TemplateShape:
    with opened(source) as template:
        return template.shape


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (CHAT_ML, TEXT),
        (templates.QWEN, TEXT),
        (templates.MISTRAL_LIST, TEXT),
        (templates.LLAMA_3, TEXT),
        (templates.ALTERNATING, TEXT),
        (templates.LLAMA_GUARD, PARTS),
        (templates.BOTH_FORMS, BOTH),
        (templates.ONE_PART, ContentShape(takes_text=False, takes_parts=False, takes_part=True)),
        ("{{ messages | tojson }}", TEXT),  # a list that is written out is not what it says
        ("{{ messages[1].content if messages | length > 1 else raise_exception('two messages') }}", TEXT),
        ("{{ messages[0].content }}{{ strftime_now('%d %b %Y') }}", TEXT),
    ],
)
def test_the_format_of_user_content_is_detected(source: str, expected: ContentShape) -> None:
    assert shape_of(source).roles["user"] == expected


def test_roles_may_have_different_formats() -> None:
    source = (
        "{% for message in messages %}{% if message.role == 'user' %}{{ message.content[0].text }}"
        "{% else %}{{ message.content }}{% endif %}{% endfor %}"
    )
    shape = shape_of(source)
    assert not shape.roles["user"].takes_text
    assert shape.roles["system"] == shape.roles["assistant"] == TEXT
    assert shape.content("user", "hi") == [{"type": "text", "text": "hi"}]
    assert shape.content("system", [{"type": "text", "text": "Be "}, {"type": "text", "text": "kind."}]) == "Be kind."


@pytest.mark.parametrize("source", [templates.BLIND, "{{ 'Hello' }}", "{{ messages | length }}"])
def test_a_template_that_drops_text_is_rejected(source: str) -> None:
    with pytest.raises(ValueError, match=r"drops the text of user messages.*--chat-template"):
        usable_template(source, "<s>", "</s>")


@pytest.mark.parametrize("source", [CHAT_ML, templates.LLAMA_GUARD, "{{ raise_exception('not today') }}"])
def test_a_template_that_renders_text_or_rejects_every_probe_is_accepted(source: str) -> None:
    usable_template(source, "<s>", "</s>").close()


def test_the_format_of_tool_calls_is_detected() -> None:
    def facts(source: str) -> dict[str, Any]:
        shape = shape_of(source)
        return {name: getattr(shape, name) for name in TemplateShape.__dataclass_fields__ if name.startswith("takes_")}

    usual = {
        "takes_argument_objects": True,
        "takes_argument_texts": True,
        "takes_null_beside_calls": True,
        "takes_empty_beside_calls": True,
        "takes_short_ids_only": False,
        "takes_several_calls": True,
        "takes_late_systems": True,
        "takes_text_after_results": True,
    }
    strict = {"takes_short_ids_only": True, "takes_late_systems": False, "takes_text_after_results": False}
    assert facts(templates.QWEN) == usual
    assert facts(templates.MISTRAL_LIST) == usual | strict
    assert facts(templates.MISTRAL_ARGS) == usual | strict
    assert facts(templates.LLAMA_3) == usual | {"takes_several_calls": False}
    assert facts(templates.DEEPSEEK) == usual | {"takes_argument_objects": False, "takes_empty_beside_calls": False}
    prints_content = (
        "{{ tools }}{% for m in messages %}{{ m.content }}{{ m.tool_calls | default([]) | tojson }}{% endfor %}"
    )
    assert facts(prints_content) == usual | {"takes_null_beside_calls": False}
    walks_arguments = (
        "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}"
        "{% for key, value in c.function.arguments.items() %}{{ key }}={{ value }}{% endfor %}{% endfor %}{% endfor %}"
        "{{ tools }}"
    )
    assert not facts(walks_arguments)["takes_argument_texts"]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (CHAT_ML, True),
        (templates.QWEN, True),
        (templates.BOTH_FORMS, True),
        (templates.LLAMA_GUARD, True),
        (templates.ALTERNATING, False),
        (templates.MISTRAL_ARGS, False),
        (
            "{{ messages[0].content }}{% for m in messages[1:] if m.role != 'system' %}{{ m.content }}{% endfor %}",
            False,
        ),
        (  # which moves them to the front
            "{% for m in messages if m.role == 'system' %}{{ m.content }}{% endfor %}"
            "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}",
            False,
        ),
    ],
)
def test_a_template_that_shows_late_system_messages_in_their_places_is_detected(source: str, expected: bool) -> None:
    assert shape_of(source).takes_late_systems == expected


def test_ids_are_mapped_to_the_same_nine_characters() -> None:
    shape = shape_of(templates.MISTRAL_LIST)
    assert shape.call_id("a1B2c3D4e") == "a1B2c3D4e"
    for call_id in ("call_0123456789abcdef01234567", "", "toolu_01A", "a1B2c3D4é", "a-b2c3D4e"):
        mapped = shape.call_id(call_id)
        assert len(mapped) == 9
        assert mapped.isascii()
        assert mapped.isalnum()
        assert mapped == shape.call_id(call_id)
    assert shape.call_id("call_1") != shape.call_id("call_2")
    assert shape_of(templates.QWEN).call_id("call_1") == "call_1"


def test_a_template_with_slow_probes_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caravan.server.sandbox.template_probe._MAX_PROBE_SECONDS", -1.0)
    shape = shape_of(CHAT_ML)
    assert not shape.is_blind
    assert shape.content("user", "hi") == "hi"


@pytest.mark.parametrize(("source", "expected"), templates.WITH_CALLS.values(), ids=templates.WITH_CALLS)
def test_the_templates_of_these_tests_have_their_formats(source: str, expected: object) -> None:
    assert "tools" not in source or format_of(source) == expected
