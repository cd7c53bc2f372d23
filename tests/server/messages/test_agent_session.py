"""A session of an agent with Anthropic's client: requests in the shapes of Claude Code, and a scripted model."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import anthropic
import pytest

from caravan.model.sampling.sampling_params import SamplingParams
from caravan.server.openai.tool_calls.call_format import HERMES
from caravan.server.sandbox.chat_template import ChatTemplate
from tests.server.openai.api import Api, Body, open_api
from tests.support.anthropic_client import anthropic_client
from tests.support.fakes import EOS, byte_tokenizer
from tests.support.message_events import HI, WEATHER

# Thoughts, tools, and system messages anywhere.
TEMPLATE = (
    "{% if tools %}<tools>{{ tools | tojson }}</tools>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.reasoning_content %}<think>\n{{ message.reasoning_content }}\n</think>\n\n{% endif %}"
    "{{ message.content or '' }}"
    "{% for call in message.tool_calls or [] %}<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}'
    "\n</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
READ: Body = {
    "name": "Read",
    "description": "Read a file.",
    "input_schema": {"type": "object", "properties": {"file_path": {"type": "string"}}, "required": ["file_path"]},
}
WRITE: Body = {
    "name": "Write",
    "description": "Write a file.",
    "input_schema": {
        "type": "object",
        "properties": {"file_path": {"type": "string"}, "content": {"type": "string"}},
        "required": ["file_path", "content"],
    },
}
LATER: Body = {"name": "Later", "description": "Not yet.", "input_schema": {}, "defer_loading": True}
EPHEMERAL: Body = {"cache_control": {"type": "ephemeral"}}
ENVIRONMENT = "# Environment\nThe folder is /tmp/project."
SYSTEM: list[Body] = [
    {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.332.0b8; cc_entrypoint=sdk-cli;"},
    {"type": "text", "text": "You are an agent.", **EPHEMERAL},
    {"type": "text", "text": "Use the tools.", **EPHEMERAL},
]
FIELDS: Body = {
    "model": "fake",
    "max_tokens": 32000,
    "system": SYSTEM,
    "tools": [READ, WRITE, LATER],
    "betas": ["claude-code-20250219", "context-management-2025-06-27"],
    "extra_body": {
        "metadata": {"user_id": json.dumps({"device_id": "a", "session_id": "b"})},
        "thinking": {"type": "adaptive", "display": "omitted"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "output_config": {"effort": "high"},
    },
}


def call(name: str, **arguments: str) -> str:
    return HERMES.written([(name, json.dumps(arguments))])


def script(prompt: list[int], _: SamplingParams) -> list[int]:
    """Read the file, write another one, and say that it is done; summarize when asked."""
    tokenizer = byte_tokenizer()
    text = b"".join(map(tokenizer.token_bytes, prompt)).decode()
    last = text.rpartition("<|im_end|>")[0].rpartition("<|im_start|>")[2]
    if "summary of the conversation" in last:
        said = "<summary>Copied.</summary>"
    elif "Copy a.txt" in last or ENVIRONMENT in last:
        said = f"<think>\nFirst the file.\n</think>\n\nLet me read it.\n{call('Read', file_path='a.txt')}"
    elif "the content" in last:
        said = f"<think>\nNow the copy.\n</think>\n\n{call('Write', file_path='b.txt', content='the content')}"
    else:
        said = "<think>\nDone.\n</think>\n\nI copied it."
    return [*said.encode(), EOS]


@asynccontextmanager
async def agent_api(max_model_len: int = 16384) -> AsyncIterator[tuple[Api, anthropic.AsyncAnthropic]]:
    template = ChatTemplate(TEMPLATE, "<s>", "</s>")
    opened = open_api(script, chat_template=template, max_model_len=max_model_len)
    async with opened as api, anthropic_client(api) as client:
        yield api, client
    template.close()


async def next_message(client: anthropic.AsyncAnthropic, messages: list[Body], **fields: Any) -> Any:
    """Return the message that the client gathers from a stream."""
    async with client.beta.messages.stream(**(FIELDS | fields | {"messages": messages})) as stream:
        return await stream.get_final_message()


def played_back(message: Any) -> Body:
    """Return a message as an agent sends it back."""
    content = [block.to_dict() for block in message.content]
    return {"role": "assistant", "content": content}


def results(message: Any, *texts: str) -> Body:
    """Return the results of the calls of a message."""
    calls = [block for block in message.content if block.type == "tool_use"]
    blocks = [
        {"tool_use_id": one.id, "type": "tool_result", "content": text, "is_error": False}
        for one, text in zip(calls, texts, strict=True)
    ]
    return {"role": "user", "content": [*blocks[:-1], blocks[-1] | EPHEMERAL]}


async def test_an_agent_reads_and_writes_a_file_in_a_session_whose_prompts_grow() -> None:
    async with agent_api() as (api, client):
        first: Body = {
            "role": "user",
            "content": [
                {"type": "text", "text": "<system-reminder>Be careful.</system-reminder>"},
                {"type": "text", "text": "Copy a.txt.", **EPHEMERAL},
            ],
        }
        environment = {"role": "system", "content": [{"type": "text", "text": ENVIRONMENT}]}
        reading = await next_message(client, [first, environment])
        assert [block.type for block in reading.content] == ["thinking", "text", "tool_use"]
        assert reading.stop_reason == "tool_use"
        assert reading.content[0].thinking == "First the file."
        assert reading.content[0].signature
        assert (reading.content[2].name, reading.content[2].input) == ("Read", {"file_path": "a.txt"})

        environment = {"role": "system", "content": ENVIRONMENT}  # now as a string
        messages = [first, environment, played_back(reading), results(reading, "the content")]
        writing = await next_message(client, messages)
        assert [block.type for block in writing.content] == ["thinking", "tool_use"]
        assert writing.content[1].input == {"file_path": "b.txt", "content": "the content"}

        messages += [played_back(writing), results(writing, "written")]
        done = await next_message(client, messages)
        assert [block.type for block in done.content] == ["thinking", "text"]
        assert (done.content[1].text, done.stop_reason) == ("I copied it.", "end_turn")

        messages += [played_back(done), {"role": "user", "content": "Write a summary of the conversation."}]
        summary = await next_message(client, messages)
        assert summary.content[0].text == "<summary>Copied.</summary>"

        prompts = [submitted[0] for submitted in api.engine.submitted]
        for earlier, later in pairwise(prompts):
            assert later[: len(earlier)] == earlier  # nothing before the answer has moved
        text = api.prompt_text()
        assert "billing" not in text
        assert text.index("Copy a.txt.") < text.index(ENVIRONMENT) < text.index("First the file.")
        assert summary.usage.input_tokens == len(prompts[-1])


async def test_the_warnings_of_a_session_name_what_has_no_effect() -> None:
    async with agent_api() as (_, client):
        message = await next_message(client, [{"role": "user", "content": "Copy a.txt."}])
        assert set(message.warnings) == {
            "The header `anthropic-beta` has no effect on this server.",
            "The line `x-anthropic-billing-header` of the system prompt is left out.",
            *(
                f"`{path}` has no effect on this server."
                for path in (
                    "metadata",
                    "context_management",
                    "system[].cache_control",
                    "tools[].defer_loading",
                    "thinking.display",
                )
            ),
            "`output_config.effort` has no effect with the chat template of this model.",
            "`thinking` has no effect with the chat template of this model.",
            *(warning for warning in message.warnings if "`max_tokens` is limited to" in warning),
        }


async def test_a_session_that_fills_the_context_gets_the_words_at_which_agents_compact() -> None:
    async with agent_api(max_model_len=1500) as (_, client):
        with pytest.raises(anthropic.BadRequestError) as refused:
            await next_message(client, [{"role": "user", "content": "Copy a.txt. " * 100}])
        error: Any = refused.value.body
        assert error["type"] == "error"
        num_tokens, maximum = (int(word) for word in error["error"]["message"].split() if word.isdigit())
        assert error["error"]["message"] == f"prompt is too long: {num_tokens} tokens > {maximum} maximum"
        assert num_tokens > maximum == 1499
        count = await client.messages.count_tokens(model="fake", messages=HI, system="Be kind.")  # type: ignore[arg-type]
        assert 10 < count.input_tokens < 100


async def test_the_client_reads_whole_messages_streams_and_errors() -> None:
    async with agent_api() as (_, client):
        ask: Body = {"model": "fake", "max_tokens": 100, "messages": HI}
        message = await client.messages.create(**ask)
        assert [block.type for block in message.content] == ["thinking", "text"]
        assert message.usage.cache_read_input_tokens == 0
        async with client.messages.stream(**ask) as stream:
            text = "".join([part async for part in stream.text_stream])
            final = await stream.get_final_message()
        assert text == "I copied it."
        assert [block.to_dict() for block in final.content] == [block.to_dict() for block in message.content]
        assert final.usage.output_tokens == message.usage.output_tokens
        kinds = [event.type async for event in await client.messages.create(**ask, stream=True)]
        assert (kinds[0], kinds[-1]) == ("message_start", "message_stop")
        with pytest.raises(anthropic.NotFoundError, match="The model `claude` does not exist"):
            await client.messages.create(**(ask | {"model": "claude"}))
        forced = await client.messages.create(
            **(ask | {"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "weather"}})
        )
        assert forced.role == "assistant"
