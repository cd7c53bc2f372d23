"""POST /v1/messages: the message, its usage and the reason of its end, what is limited, and what has no effect."""

from typing import Any

import pytest

from caravan.server.messages.protocol import known_fields
from caravan.server.messages.protocol.request import CountTokensRequest, MessagesRequest
from caravan.server.openai.tool_calls.call_format import HERMES
from caravan.server.sandbox.chat_template import ChatTemplate
from tests.server.openai.api import Api, Body, a_chat, answered, open_api
from tests.support.fakes import says
from tests.support.message_events import (
    COUNT,
    HI,
    MESSAGES,
    PLAIN,
    WEATHER,
    gathered,
    message_events,
    message_of,
    refused,
    shown,
)

CALL = HERMES.written([("weather", '{"city": "Rome"}')])


async def test_a_message_has_blocks_a_reason_and_its_usage(api: Api) -> None:
    message = await message_of(api)
    assert message.pop("id").startswith("msg_")
    assert message == {
        "type": "message",
        "role": "assistant",
        "model": "fake",
        "content": [{"type": "text", "text": "Hello!"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": len(api.engine.submitted[0][0]),
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 7,
        },
    }
    assert api.prompt_text() == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


async def test_cached_tokens_are_not_among_the_input_tokens(chat_ml: ChatTemplate) -> None:
    async with open_api(chat_template=chat_ml, num_cached_tokens=16) as api:
        num_tokens = len((await message_of(api), api.engine.submitted[0][0])[1])
        expected = {"input_tokens": num_tokens - 16, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 16}
        assert (await message_of(api))["usage"] == expected | {"output_tokens": 7}
        events = await message_events(api)
        assert events[0]["message"]["usage"].items() > expected.items()
        assert events[-2]["usage"] == expected | {"output_tokens": 7}


async def test_the_beta_form_of_the_path_is_accepted(api: Api) -> None:
    response = await api.http.post(f"{MESSAGES}?beta=true", json=PLAIN, headers={"anthropic-beta": "a,b"})
    assert response.json()["warnings"] == ["The header `anthropic-beta` has no effect on this server."]


@pytest.mark.parametrize(
    ("text", "fields", "reason", "sequence"),
    [
        ("Hello!", {}, "end_turn", None),
        ("Hello!", {"max_tokens": 2}, "max_tokens", None),
        ("Hello!", {"stop_sequences": ["x", "lo"]}, "stop_sequence", "lo"),
        ("Hello!", {"stop_sequences": ["o", "lo"]}, "stop_sequence", "lo"),
        ("Hello!", {"stop": "lo"}, "stop_sequence", "lo"),
        ("Hello!", {"stop_sequences": ["x"]}, "end_turn", None),
        ("Hello!", {"stop_token_ids": [111]}, "end_turn", None),
        (CALL, {"tools": [WEATHER]}, "tool_use", None),
        (CALL, {"tools": [WEATHER], "max_tokens": 50}, "max_tokens", None),
        (CALL, {"tools": [WEATHER], "stop_sequences": ["Ro"]}, "stop_sequence", "Ro"),
        (CALL, {"tools": [WEATHER], "tool_choice": {"type": "any"}, "stop_sequences": ["Ro"]}, "tool_use", None),
        (f"{CALL}\nDone.", {"tools": [WEATHER]}, "tool_use", None),
    ],
)
async def test_the_reason_says_what_has_ended_the_message(
    chat_ml: ChatTemplate, text: str, fields: Body, reason: str, sequence: str | None
) -> None:
    async with open_api(says(text), chat_template=chat_ml, max_model_len=4096) as api:
        whole = await message_of(api, **fields)
        assert (whole["stop_reason"], whole["stop_sequence"]) == (reason, sequence)
        streamed = gathered(await message_events(api, **fields))
        assert (streamed["stop_reason"], streamed["stop_sequence"]) == (reason, sequence)
        assert shown(streamed) == shown(whole)


async def test_a_text_that_is_empty_is_one_empty_block(chat_ml: ChatTemplate) -> None:
    async with open_api(says(""), chat_template=chat_ml) as api:
        assert (await message_of(api))["content"] == [{"type": "text", "text": ""}]
        assert shown(gathered(await message_events(api))) == [{"type": "text", "text": ""}]


async def test_max_tokens_is_limited_to_the_room_with_a_warning(chat_ml: ChatTemplate) -> None:
    async with open_api(lambda _, params: [97] * params.max_tokens, chat_template=chat_ml) as api:
        whole = await message_of(api, max_tokens=32000)
        room = 512 - len(api.engine.submitted[0][0])
        assert whole["warnings"] == [
            f"`max_tokens` is limited to {room}, the room that the prompt leaves in the context."
        ]
        assert whole["usage"]["output_tokens"] == room
        assert whole["stop_reason"] == "model_context_window_exceeded"
        exact = await message_of(api, max_tokens=room)
        assert "warnings" not in exact
        assert exact["stop_reason"] == "max_tokens"
        assert (await message_events(api, max_tokens=10**20))[0]["message"]["warnings"] == whole["warnings"]


@pytest.mark.parametrize("length", [500, 512, 3000, 50_000])
async def test_a_prompt_that_is_too_long_is_refused_in_the_words_that_clients_look_for(api: Api, length: int) -> None:
    message = await refused(api, messages=[{"role": "user", "content": "a" * length}])
    num_tokens = int(message.removeprefix("prompt is too long: ").removesuffix(" tokens > 511 maximum"))
    assert 511 < num_tokens <= length + 50
    assert api.engine.submitted == []
    stream = await refused(api, messages=[{"role": "user", "content": "a" * length}], stream=True)
    assert stream == message


async def test_no_token_is_generated_if_none_is_asked_for(api: Api) -> None:
    whole = await message_of(api, max_tokens=0)
    assert whole["content"] == [{"type": "text", "text": ""}]
    assert (whole["stop_reason"], whole["usage"]["output_tokens"]) == ("max_tokens", 0)
    assert gathered(await message_events(api, max_tokens=0))["content"] == whole["content"]


async def test_the_longest_prompt_leaves_room_for_one_token(api: Api) -> None:
    frame = len("<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n") - len("<|im_start|><|im_end|><|im_start|>") + 3
    longest = [{"role": "user", "content": "a" * (511 - frame)}]
    assert (await message_of(api, messages=longest))["usage"]["output_tokens"] == 1
    longest[0]["content"] += "a"
    assert await refused(api, messages=longest) == "prompt is too long: 512 tokens > 511 maximum"


async def test_count_tokens_counts_the_tokens_of_the_prompt(api: Api) -> None:
    fields: Body = {
        "system": "Be brief.",
        "tools": [WEATHER],
        "messages": [*HI, {"role": "assistant", "content": "So"}],
    }
    count = answered(await api.http.post(COUNT, json={"model": "fake"} | fields))
    async with open_api(chat_template=None, max_model_len=4096) as without:
        assert "no chat template" in await refused(without, path=COUNT)
    assert "warnings" not in count
    await message_of(api, **fields, max_tokens=1)
    assert count["input_tokens"] == len(api.engine.submitted[0][0])
    small = answered(await api.http.post(COUNT, json=PLAIN))
    assert small["warnings"] == ["`max_tokens` has no effect on this server."]
    await message_of(api)
    assert small["input_tokens"] == len(api.engine.submitted[1][0])


async def test_count_tokens_is_not_limited_to_the_context_but_to_a_number(api: Api) -> None:
    for length in (10_000, 200_000):
        body = {"model": "fake", "messages": [{"role": "user", "content": "a" * length}]}
        assert answered(await api.http.post(COUNT, json=body))["input_tokens"] > length
    message = await refused(api, path=COUNT, messages=[{"role": "user", "content": "a" * 700_000}])
    assert "262144 tokens" in message


async def test_sampling_fields_mean_what_they_mean_in_a_chat(api: Api) -> None:
    fields: Body = {
        "top_k": 3,
        "min_p": 0.1,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "logit_bias": {"97": 2},
        "seed": 5,
        "stop_token_ids": [33],
        "ignore_eos": True,
        "min_tokens": 1,
        "temperature": 0.5,
        "top_p": 0.9,
        "bad_words": ["x"],
    }
    chat = await api.chat(**fields, max_completion_tokens=40, stop=["lo"])
    message = await message_of(api, **fields, max_tokens=40, stop_sequences=["lo"])
    assert api.engine.submitted[0][1] == api.engine.submitted[1][1]
    assert message["content"][0]["text"] == chat["choices"][0]["message"]["content"] == "Hel"
    assert "warnings" not in message


async def test_a_repetition_that_ends_a_message_is_its_detail(api: Api) -> None:
    api.engine.repeats_after = 3
    rule = {"repetition_detection": {"max_pattern_size": 4, "min_count": 3}}
    whole = await message_of(api, **rule)
    assert whole["stop_reason"] == "end_turn"
    assert whole["stop_details"] == {"type": "repetition"}
    assert gathered(await message_events(api, **rule))["stop_details"] == {"type": "repetition"}


async def test_token_ids_timings_and_an_explanation_are_added_on_request(api: Api) -> None:
    fields = {"return_token_ids": True, "timings": True, "explain": True}
    whole = await message_of(api, **fields)
    assert bytes(whole["token_ids"][:-1]) == b"Hello!"
    assert whole["prompt_token_ids"] == api.engine.submitted[0][0]
    assert whole["usage"]["timings"]["tokens_per_second"] > 0
    assert whole["explanation"]["choices"][0]["tokens"] == 7
    streamed = gathered(await message_events(api, **fields))
    for name in ("token_ids", "prompt_token_ids"):
        assert streamed[name] == whole[name]
    assert streamed["explanation"]["choices"][0]["tokens"] == 7
    explained = answered(await api.http.get(f"/v1/requests/{whole['id']}/explain"))
    assert explained["choices"][0]["tokens"] == 7


async def test_a_salt_and_a_priority_reach_the_engine(api: Api) -> None:
    await message_of(api, cache_salt="mine", priority=3)
    (request,) = api.engine.requests
    assert request.cache_salt.endswith("\nmine")
    assert request.priority == 3


async def test_a_schema_of_the_output_is_enforced(api: Api) -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    await message_of(api, output_config={"format": {"type": "json_schema", "schema": schema}})
    response = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    await api.chat(response_format=response)
    assert api.engine.grammars[0] == api.engine.grammars[1] != ""
    wrong = {"format": {"type": "json_schema", "schema": {"type": "frob"}}}
    assert (await refused(api, output_config=wrong)).startswith("`output_config.format")
    unknown = {"format": {"type": "json_schema", "schema": {"type": "object", "tone": "a"}}}
    (warning,) = (await message_of(api, output_config=unknown))["warnings"]
    assert warning.startswith("`output_config.format`: these schema keywords have no effect")


@pytest.mark.parametrize("name", [name for name, field in known_fields.BODY.items() if not field.is_refused])
async def test_every_known_field_is_a_warning(api: Api, name: str) -> None:
    whole = await message_of(api, **{name: {"some": ["thing", 7]}})
    assert whole["warnings"] == [f"`{name}` has no effect on this server."]
    assert api.sample("ignored_fields_total", field=name) == 1


@pytest.mark.parametrize("name", [name for name, field in known_fields.BODY.items() if field.is_refused])
async def test_a_field_that_asks_for_something_else_is_refused(api: Api, name: str) -> None:
    fields: dict[str, Any] = {name: {"some": ["thing", 7]}}
    assert f"`{name}` is" in await refused(api, **fields)


async def test_a_client_that_wants_a_thread_learns_to_send_the_whole_conversation(api: Api) -> None:
    answer = await api.http.post(MESSAGES, json=PLAIN | {"thread": {"type": "create"}})
    assert answer.status_code == 400
    details = {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}
    assert answer.json()["error"]["details"] == details


def test_every_known_field_has_a_source() -> None:
    tables = [table for name, table in vars(known_fields).items() if name.isupper() and isinstance(table, dict)]
    assert len(tables) == 8
    assert all(field.sources for table in tables for field in table.values())
    assert MessagesRequest.known_fields == known_fields.BODY
    assert CountTokensRequest.known_fields == known_fields.COUNT


async def test_nested_fields_without_effect_are_named_by_their_places(api: Api) -> None:
    mark = {"cache_control": {"type": "ephemeral"}}
    whole = await message_of(
        api,
        messages=[{"role": "user", "content": [{"type": "text", "text": "hi"} | mark]}],
        system=[{"type": "text", "text": "Be kind."} | mark],
        thinking={"type": "disabled", "display": "omitted"},
        output_config={"task_budget": {"type": "tokens", "total": 5}},
        metadata={"user_id": "{}"},
        context_management={"edits": []},
        service_tier="auto",
    )
    places = [warning.split("`")[1] for warning in whole["warnings"]]
    assert set(places) == {
        "metadata",
        "context_management",
        "messages[].content[].cache_control",
        "system[].cache_control",
        "thinking.display",
        "output_config.task_budget",
    }
    assert len(places) == 6


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"max_tokens": -1}, "`max_tokens` is -1; it must be at least 0."),
        ({"max_tokens": None}, "`max_tokens` is null"),
        ({"messages": []}, "`messages` is []; it must have at least 1 items."),
        ({"messages": [{"role": "tool", "content": "a"}]}, "`messages[0].role`"),
        ({"messages": [{"role": "user", "content": 5}]}, "`messages[0].content` is 5; it must be a list."),
        ({"messages": [{"role": "user"}]}, "`messages[0].content` is missing"),
        ({"messages": [{"role": "user", "content": [{"type": "frob"}]}]}, "`messages[0].content[0]` is"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "`messages[0].content[0].text` is missing"),
        ({"messages": [{"role": "user", "content": "a", "contents": 1}]}, "Did you mean `content`?"),
        ({"system": 5}, "`system` is 5"),
        ({"system": [{"type": "image"}]}, "`system[0].type` is"),
        ({"temperature": 3}, "`temperature` is 3"),
        ({"temprature": 1}, "Did you mean `temperature`?"),
        ({"stop": "a", "stop_sequences": ["b"]}, "`stop` and `stop_sequences`"),
        ({"stop_sequences": [""]}, "`stop_sequences`"),
        ({"thinking": {"type": "on"}}, "`thinking.type`"),
        ({"thinking": {"type": "enabled", "budget_tokens": -1}}, "`thinking.budget_tokens` is -1"),
        ({"output_config": {"effort": "huge"}}, "`output_config.effort`"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "`output_config.format.schema` is missing"),
        ({"chat_template_kwargs": {"messages": 1}}, "`chat_template_kwargs`"),
        ({"min_tokens": 400}, "`min_tokens` is 400"),
        ({"logit_bias": {"9999": 1}}, "`logit_bias`"),
    ],
)
async def test_a_wrong_field_is_400_and_named(api: Api, fields: dict[str, Any], says: str) -> None:
    assert says in await refused(api, **fields)
    assert api.engine.submitted == []


async def test_numbers_may_be_written_as_floats_and_null_means_the_default(api: Api) -> None:
    await message_of(api, max_tokens=8.0, top_k=None, stop_sequences=None, system=None, tools=None, tool_choice=None)
    assert api.engine.submitted[0][1].max_tokens == 8
    assert api.prompt_text() == (await api.chat(**a_chat()), api.prompt_text())[1]
