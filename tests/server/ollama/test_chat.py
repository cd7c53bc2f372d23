"""POST /api/chat: lines of JSON, or one object, with the same content."""

import json
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from caravan.server.generation.request_limits import RequestLimits
from caravan.server.openai.tool_calls.call_format import HERMES
from caravan.server.sandbox.chat_template import ChatTemplate
from tests.server.openai.api import CHAT_ML, Api, Body, open_api
from tests.server.openai.asgi import AsgiRequest
from tests.support.fakes import echoes, says
from tests.support.ollama_lines import CHAT, GENERATE, a_message, a_prompt, joined, lines, lines_in, stable, whole
from tests.support.thinking import QWEN_3
from tests.support.tools import TIME, WEATHER
from tests.support.waiting import until

SAID = "<think>\nHm.\n</think>\n\nEr… 🙂\u2028Yes."
ARGUMENTS = {"city": "Zürich"}
CALL = HERMES.written([("weather", json.dumps(ARGUMENTS)), ("time", "{}")])
TEXT_OF_TOOLS = "{% for tool in tools or [] %}[{{ tool.function.name }}]{% endfor %}" + CHAT_ML.replace(
    "{{ message.content }}",
    "{{ message.content }}{% for call in message.tool_calls or [] %}"
    "<tool_call>{{ call.function.name }} {{ call.function.arguments.city }} {{ call.id }}{% endfor %}"
    "{% if message.tool_call_id %}({{ message.tool_call_id }}){% endif %}",
)


@pytest.fixture(scope="module")
def qwen() -> Iterator[ChatTemplate]:
    template = ChatTemplate(QWEN_3, "<s>", "</s>")
    yield template
    template.close()


async def test_a_response_in_one_object_has_ollamas_fields(api: Api) -> None:
    answer = await whole(api, CHAT, a_message())
    assert answer["model"] == "fake"
    assert answer["message"] == {"role": "assistant", "content": "Hello!"}
    assert (answer["done"], answer["done_reason"]) == (True, "stop")
    assert answer["eval_count"] == len("Hello!") + 1
    assert answer["prompt_eval_count"] == len(api.engine.submitted[0][0])
    assert answer["total_duration"] >= answer["eval_duration"] > 0
    assert answer["prompt_eval_duration"] >= 0
    assert abs(datetime.fromisoformat(answer["created_at"]).timestamp() - datetime.now().timestamp()) < 60
    assert set(answer) == {
        *("model", "created_at", "message", "done", "done_reason", "total_duration", "load_duration"),
        *("prompt_eval_count", "prompt_eval_duration", "eval_count", "eval_duration"),
    }


async def test_a_stream_is_the_default_and_ends_with_a_line_of_counts(api: Api) -> None:
    parts = await lines(api, CHAT, a_message())
    assert len(parts) > 2
    assert all(set(part) == {"model", "created_at", "message", "done"} for part in parts[:-1])
    assert parts[-1]["message"] == {"role": "assistant", "content": ""}
    assert joined(parts) == stable(await whole(api, CHAT, a_message()))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"logprobs": True, "top_logprobs": 2},
        {"options": {"num_predict": 9}},
        {"options": {"num_predict": 24, "stop": ["Yes"]}},
        {"think": False, "keep_alive": 0},
    ],
)
@pytest.mark.parametrize(("path", "body"), [(CHAT, a_message()), (GENERATE, a_prompt())])
async def test_a_stream_of_bytes_equals_the_whole_response(
    qwen: ChatTemplate, fields: dict[str, Any], path: str, body: Body
) -> None:
    async with open_api(says(SAID), chat_template=qwen) as api:  # each token is a byte
        alone = await whole(api, path, body | fields)
        assert joined(await lines(api, path, body | fields)) == stable(alone)


async def test_calls_are_whole_objects_and_equal_in_both_forms(chat_ml: ChatTemplate) -> None:
    async with open_api(says(f"Let me see.\n{CALL}"), chat_template=chat_ml, max_model_len=4096) as api:
        body = a_message(tools=[WEATHER, TIME])
        alone = await whole(api, CHAT, body)
        assert alone["message"]["content"] == "Let me see.\n"
        weather, time = alone["message"]["tool_calls"]
        assert weather["function"] == {"name": "weather", "arguments": ARGUMENTS}
        assert time["function"] == {"name": "time", "arguments": {}}
        assert weather["id"] != time["id"]
        assert alone["done_reason"] == "stop"
        parts = await lines(api, CHAT, body)
        assert joined(parts) == stable(alone)
        assert [len(part["message"].get("tool_calls", [])) for part in parts if "tool_calls" in part["message"]] == [
            1,
            1,
        ]


async def test_a_call_that_is_cut_off_is_content(chat_ml: ChatTemplate) -> None:
    async with open_api(says(CALL), chat_template=chat_ml, max_model_len=4096) as api:
        length = CALL.index("rich")
        body = a_message(tools=[WEATHER], options={"num_predict": len(CALL[:length].encode())})
        alone = await whole(api, CHAT, body)
        assert alone["done_reason"] == "length"
        assert "tool_calls" not in alone["message"]
        assert '"weather"' in alone["message"]["content"]
        assert joined(await lines(api, CHAT, body)) == stable(alone)


async def test_results_belong_to_the_calls_of_their_tools() -> None:
    template = ChatTemplate(TEXT_OF_TOOLS, "<s>", "</s>")
    try:
        async with open_api(chat_template=template, max_model_len=4096) as api:
            calls = [{"function": {"name": name, "arguments": ARGUMENTS}} for name in ("weather", "time")]
            answer = await whole(
                api,
                CHAT,
                a_message(
                    messages=[
                        {"role": "user", "content": "hi"},
                        {"role": "assistant", "content": "", "tool_calls": calls},
                        {"role": "tool", "content": "noon", "tool_name": "time"},
                        {"role": "tool", "content": "rain"},
                        {"role": "assistant", "tool_calls": [{"id": "mine", **calls[0]}]},
                        {"role": "tool", "content": "sun", "tool_call_id": "mine"},
                        {"role": "tool", "content": "alone"},
                    ],
                ),
            )
        assert "warnings" not in answer
        prompt = api.prompt_text()
        assert "<tool_call>weather Zürich call_1" in prompt
        assert "noon(call_2)" in prompt
        assert "rain(call_1)" in prompt
        assert "sun(mine)" in prompt
        assert "alone<|im_end|>" in prompt
    finally:
        template.close()


async def test_a_thought_is_beside_the_content_and_is_taken_back(qwen: ChatTemplate) -> None:
    async with open_api(says(SAID), chat_template=qwen) as api:
        message = (await whole(api, CHAT, a_message()))["message"]
        assert (message["thinking"], message["content"]) == ("Hm.", "Er… 🙂\u2028Yes.")
        history = [{"role": "user", "content": "hi"}, message, {"role": "user", "content": "Sure?"}]
        await whole(api, CHAT, a_message(messages=history, think=False))
        assert "<think>\nHm.\n</think>\n\nEr" in api.prompt_text()
        assert api.prompt_text().endswith("<think>\n\n</think>\n\n")


async def test_a_thought_has_no_place_in_a_template_without_one(api: Api) -> None:
    history = [{"role": "assistant", "content": "a", "thinking": "b"}, {"role": "user", "content": "c"}]
    answer = await whole(api, CHAT, a_message(messages=history, think="high"))
    assert answer["warnings"] == [
        "`messages[].thinking` has no effect with the chat template of this model.",
        "`think` has no effect with the chat template of this model.",
    ]


@pytest.mark.parametrize(
    ("form", "schema"),
    [("json", {"type": "object"}), ({"type": "boolean"}, {"type": "boolean"}), ("", None), (None, None)],
)
async def test_the_format_is_enforced(api: Api, form: Any, schema: Body | None) -> None:
    await whole(api, CHAT, a_message(format=form))
    of_ours = {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}
    await api.chat(**of_ours, **({} if schema is None else {"json_schema": schema}))
    assert api.engine.grammars[0] == api.engine.grammars[1]
    assert bool(api.engine.grammars[0]) == (schema is not None)


async def test_warnings_are_in_the_last_line_only(api: Api) -> None:
    body = a_message(
        keep_alive="5m", options={"num_ctx": 2048, "colour": "red"}, format={"title": "T", "$comment": "x"}
    )
    parts = await lines(api, CHAT, body)
    assert not any("warnings" in part for part in parts[:-1])
    assert parts[-1]["warnings"][:3] == [
        "`keep_alive` has no effect on this server.",
        "`options.num_ctx` has no effect on this server.",
        '`options` has the unknown name "colour", which has no effect.',
    ]
    assert api.sample("ignored_fields_total", field="options.num_ctx") == 1
    assert "colour" not in api.metrics.exposition().decode()


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"messages": [{"role": "user", "content": "x", "images": ["aGk="]}]}, "`messages[0].images` is"),
        ({"messages": [{"role": "user", "tool_calls": [{"function": {"name": "a"}}]}]}, "role assistant"),
        ({"messages": [{"role": "king", "content": "x"}]}, "`messages[0].role`"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "`messages[0].content`"),
        ({"messages": [{"role": "user", "content": "x" * 600}]}, "maximum context length is 512 tokens"),
        ({"messages": [{"role": "user", "content": "\x04"}]}, "cannot be encoded"),
        ({"format": "xml"}, '`format` is "xml"; it must be json or a JSON schema.'),
        ({"format": {"type": "strange"}}, "`format"),
        ({"template": "{{ .Prompt }}"}, "`template`"),
        ({"system": "Be kind."}, "use `messages`"),
        ({"modle": "fake"}, "Did you mean `model`?"),
        ({"model": "fake:7b"}, "does not exist"),
        ({"tools": [{"function": {"name": "a b"}}]}, "`tools[0].function.name`"),
        ({"tools": [7]}, "`tools[0]`"),
        ({"tools": [{"type": "web", "function": {"name": "a"}}]}, "`tools[0].type`"),
        ({"top_logprobs": 21}, "`top_logprobs` is 21; it must be at most 20."),
        ({"think": "loudly"}, "`think`"),
        ({"options": 5}, "`options` is 5; it must be an object."),
        ({"options": {"temperature": 2.5}}, "`options.temperature` is 2.5; it must be at most 2."),
        ({"options": {"num_predict": -3}}, "`options.num_predict` is -3; it must be -1 or -2"),
    ],
)
async def test_bad_requests_are_refused_with_one_message(api: Api, fields: Body, says: str) -> None:
    response = await api.http.post(CHAT, json=a_message(**fields))
    assert response.status_code == (404 if "model" in fields else 400), response.text
    assert set(response.json()) == {"error"}
    assert says in response.json()["error"]
    assert api.engine.submitted == []


async def test_a_key_is_needed_and_errors_before_the_route_have_the_same_form(api: Api) -> None:
    api.engine.is_ready = False
    response = await api.http.post(CHAT, json=a_message())
    assert (response.status_code, response.headers["retry-after"]) == (503, "5")
    assert isinstance(response.json()["error"], str)
    for method, path, status in (("PUT", CHAT, 405), ("POST", "/api/pull", 404), ("POST", "/api/tags", 405)):
        response = await api.http.request(method, path, json={})
        assert response.status_code == status
        assert isinstance(response.json()["error"], str)
    assert response.headers["allow"] == "GET, HEAD"


async def test_a_stream_that_fails_ends_with_an_error(chat_ml: ChatTemplate) -> None:
    async with open_api(echoes(), chat_template=chat_ml) as api:
        api.engine.dies_after = 4
        api.engine.seconds_per_token = 0.001
        parts = await lines(api, CHAT, a_message())
        assert len("".join(part["message"]["content"] for part in parts[:-1])) == 3  # the first token has no text
        assert parts[-1] == {"error": "The engine stopped before the response was complete. Try again later."}


async def test_a_client_that_leaves_aborts_its_request(chat_ml: ChatTemplate) -> None:
    async with open_api(echoes(), chat_template=chat_ml) as api:
        api.engine.seconds_per_token = 0.001
        request = AsgiRequest(api.app, CHAT, a_message())
        await until(lambda: request.body.count("\n") > 3)
        request.leave()
        await request.end()
        assert api.engine.num_running == 0
        assert not request.is_complete


async def test_a_silent_stream_is_kept_open_by_lines_without_text(chat_ml: ChatTemplate) -> None:
    async with open_api(chat_template=chat_ml, limits=RequestLimits(keep_alive_seconds=0.02)) as api:
        api.engine.released.clear()
        request = AsgiRequest(api.app, CHAT, a_message())
        await until(lambda: request.body.count("\n") > 1)
        api.engine.released.set()
        await request.end()
        parts = lines_in(request.body)
        assert parts[0]["message"] == {"role": "assistant", "content": ""}
        assert joined(parts)["message"]["content"] == "Hello!"


async def test_a_number_of_tokens_that_does_not_fit_is_reduced(api: Api) -> None:
    answer = await whole(api, CHAT, a_message(options={"num_predict": 5000}))
    room = api.engine.submitted[0][1].max_tokens
    assert room == 512 - len(api.engine.submitted[0][0])
    assert answer["warnings"] == [f"`options.num_predict` is 5000; the model's context leaves room for {room} tokens."]


async def test_the_options_of_a_request_are_those_of_the_engine(api: Api) -> None:
    options = {
        **{"num_predict": 7, "temperature": 0.5, "top_k": 3, "top_p": 0.25, "min_p": 0.125, "seed": 11, "stop": "zz"},
        **{"repeat_penalty": 1.5, "presence_penalty": 0.5, "frequency_penalty": -0.5, "typical_p": 1.0, "numa": None},
    }
    answer = await whole(api, CHAT, a_message(options=options))
    params = api.engine.submitted[0][1]
    assert (params.max_tokens, params.temperature, params.top_k) == (7, 0.5, 3)
    assert (params.top_p, params.min_p, params.repetition_penalty) == (0.25, 0.125, 1.5)
    assert (params.presence_penalty, params.frequency_penalty) == (0.5, -0.5)
    assert "warnings" not in answer
    again = await whole(api, CHAT, a_message(options=options))
    assert api.engine.submitted[1][1].seed == params.seed
    assert stable(again) == stable(answer)


async def test_many_unknown_options_make_few_warnings(api: Api) -> None:
    answer = await whole(api, CHAT, a_message(options={f"option{number}": 1 for number in range(30)}))
    assert len(answer["warnings"]) == 9
    assert answer["warnings"][-1] == "`options` has 22 more unknown names."


async def test_extensions_are_those_of_other_endpoints(api: Api) -> None:
    answer = await whole(api, CHAT, a_message(explain=True, priority=3, cache_salt="s"))
    assert answer["explanation"]["id"].startswith("ollama-")
    assert api.engine.requests[0].priority == 3
    assert api.engine.requests[0].cache_salt.endswith("s")


async def test_without_messages_the_model_is_loaded(api: Api) -> None:
    for body in ({"model": "fake"}, {"model": "fake", "messages": []}):
        answer = await whole(api, CHAT, body)
        assert (answer["done"], answer["done_reason"]) == (True, "load")
        assert "eval_count" not in answer
        assert [part["done_reason"] for part in await lines(api, CHAT, body)] == ["load"]
    assert [params.max_tokens for _, params, _ in api.engine.submitted] == [0] * 4


@pytest.mark.parametrize("keep_alive", [0, "0", "0s", 0.0])
async def test_a_client_cannot_unload_a_model(api: Api, keep_alive: Any) -> None:
    response = await api.http.post(CHAT, json={"model": "fake", "keep_alive": keep_alive})
    assert response.status_code == 400
    assert "--sleep-after" in response.json()["error"]


@pytest.mark.parametrize("name", ["tool_name", "tool_call_id"])
async def test_fields_of_results_belong_to_messages_of_tools(api: Api, name: str) -> None:
    body = a_message() | {"messages": [{"role": "user", "content": "hi", name: "weather"}]}
    refused = await api.http.post(CHAT, json=body)
    assert refused.status_code == 400
    assert refused.json()["error"] == f"`messages[0].{name}` belongs to messages of the role tool."
