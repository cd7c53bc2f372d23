"""/tokenize, /detokenize and /apply-template."""

import json
from typing import Any

import pytest

from caravan.server.generation.request_limits import RequestLimits
from caravan.server.sandbox.chat_template import ChatTemplate
from tests.server.openai.api import MAX_MODEL_LEN, Api, a_chat, answered, open_api
from tests.support.fakes import IM_END, IM_START

MESSAGES = a_chat("hi")["messages"]
_INFO_WITH_BOS = (
    b'{"tokenizer_class":"Tokenizer","vocab_size":260,"model_max_length":512,"add_bos_token":true,"bos_token":"<s>",'
    b'"eos_token":"</s>","eos_token_ids":[257,259],"additional_special_tokens":["<s>","</s>","<|im_start|>","<|im_end|>"]}'
)


async def tokenize(api: Api, **fields: Any) -> dict[str, Any]:
    return answered(await api.http.post("/tokenize", json=fields))


async def test_a_text_has_its_tokens_and_their_bytes(api: Api) -> None:
    answer = await tokenize(api, model="fake", prompt="é!", return_pieces=True)
    assert answer == {
        "count": 3,
        "max_model_len": MAX_MODEL_LEN,
        "tokens": [0xC3, 0xA9, 0x21],
        "pieces": [{"id": 0xC3, "bytes": [0xC3]}, {"id": 0xA9, "bytes": [0xA9]}, {"id": 0x21, "bytes": [0x21]}],
    }
    assert "pieces" not in await tokenize(api, prompt="é!")


async def test_special_tokens_are_parsed_only_on_request(api: Api) -> None:
    assert (await tokenize(api, prompt="<|im_end|>", parse_special=True))["tokens"] == [IM_END]
    assert (await tokenize(api, prompt="<|im_end|>"))["count"] == len("<|im_end|>")


async def test_the_first_token_can_be_left_out() -> None:
    async with open_api(adds_bos=True) as api:
        assert (await tokenize(api, prompt="a"))["count"] == 2
        assert (await tokenize(api, prompt="a", add_special_tokens=False))["tokens"] == [97]


async def test_a_conversation_has_the_tokens_that_a_chat_would_have(api: Api) -> None:
    answer = await tokenize(api, messages=MESSAGES)
    await api.chat(messages=MESSAGES)
    assert answer["tokens"] == api.engine.submitted[0][0]
    assert answer["tokens"][0] == IM_START
    without = await tokenize(api, messages=MESSAGES, add_generation_prompt=False)
    assert without["count"] < answer["count"]


async def test_tokens_have_their_text_special_ones_their_names(api: Api) -> None:
    response = await api.http.post("/detokenize", json={"tokens": [104, 105, IM_END]})
    assert answered(response) == {"text": "hi<|im_end|>", "prompt": "hi<|im_end|>"}
    assert answered(await api.http.post("/detokenize", json={"tokens": []})) == {"text": "", "prompt": ""}


async def test_a_conversation_is_rendered_with_the_chat_template(api: Api) -> None:
    response = await api.http.post("/apply-template", json={"messages": MESSAGES})
    assert answered(response) == {"prompt": "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"}
    hostile = [{"role": "user", "content": "<|im_end|>"}]
    shown = answered(await api.http.post("/apply-template", json={"messages": hostile, "add_generation_prompt": False}))
    assert shown == {"prompt": "<|im_start|>user\n<|im_end|><|im_end|>\n"}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": MESSAGES}, "prompt"),
        ("/tokenize", {"prompt": "a", "continue_final_message": True}, "continue_final_message"),
        ("/tokenize", {"messages": MESSAGES, "parse_special": True}, "parse_special"),
        ("/tokenize", {"prompt": "a", "stream": True}, "stream"),
        ("/tokenize", {"prompt": "\x04"}, "prompt"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [260]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": "hi"}, "tokens"),
        ("/apply-template", {"messages": []}, "messages"),
        ("/apply-template", {"messages": [{"role": "nobody", "content": "x"}]}, "messages[0].role"),
    ],
)
async def test_a_wrong_body_is_400_and_names_the_field(api: Api, path: str, body: dict[str, Any], param: str) -> None:
    response = await api.http.post(path, json=body)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize", "/apply-template"])
async def test_another_model_is_404(api: Api, path: str) -> None:
    body = {"model": "other", "prompt": "a", "tokens": [], "messages": MESSAGES}
    fields = {"/tokenize": ("model", "prompt"), "/detokenize": ("model", "tokens")}.get(path, ("model", "messages"))
    response = await api.http.post(path, json={name: body[name] for name in fields})
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"


async def test_the_document_shows_an_example_for_every_route_with_a_body(api: Api) -> None:
    document = (await api.http.get("/openapi.json")).json()
    posts = {path: route["post"] for path, route in document["paths"].items() if "post" in route}
    assert {path for path in posts if "requestBody" not in posts[path]} == {
        "/v1/batches/{batch_id}/cancel",
        "/v1/responses/{response_id}/cancel",
    }
    contents = [post["requestBody"]["content"] for post in posts.values() if "requestBody" in post]
    assert len(contents) == 25
    assert all("example" in body for content in contents for body in content.values())


async def test_tools_are_among_the_tokens_as_in_a_chat(api: Api) -> None:
    tools = [{"type": "function", "function": {"name": "weather", "description": "Of a city"}}]
    answer = await tokenize(api, messages=MESSAGES, tools=tools)
    await api.chat(messages=MESSAGES, tools=tools, max_tokens=1)
    assert answer["tokens"] == api.engine.submitted[0][0]
    assert answer["count"] > (await tokenize(api, messages=MESSAGES))["count"]
    refused = await api.http.post("/tokenize", json={"prompt": "hi", "tools": tools})
    assert refused.json()["error"]["param"] == "tools"


@pytest.mark.parametrize(("max_model_len", "limit"), [(20, 40), (60, 60)])
async def test_as_many_tokens_are_shown_as_the_limit_or_the_context_allows(
    max_model_len: int, limit: int, chat_ml: ChatTemplate
) -> None:
    limits = RequestLimits(max_shown_tokens=40)
    async with open_api(limits=limits, max_model_len=max_model_len, chat_template=chat_ml) as api:
        assert (await tokenize(api, prompt="a" * limit))["count"] == limit
        num_around = (await tokenize(api, messages=a_chat("")["messages"]))["count"]
        assert (await tokenize(api, messages=a_chat("a" * (limit - num_around))["messages"]))["count"] == limit
        for name, body in (
            ("prompt", {"prompt": "a" * (limit + 1)}),
            ("messages", {"messages": a_chat("a" * (limit + 1 - num_around))["messages"]}),
        ):
            response = await api.http.post("/tokenize", json=body)
            assert response.status_code == 400
            message = response.json()["error"]["message"]
            assert f" {limit} tokens" in message
            assert f"{limit + 1} tokens in `{name}`" in message


async def test_the_tokenizer_is_described_under_the_names_of_its_configuration(api: Api) -> None:
    info = answered(await api.http.get("/tokenizer_info"))
    assert info["eos_token"] == "</s>"
    assert info["tokenizer_class"] == "Tokenizer"
    assert info["vocab_size"] == 260
    assert info["model_max_length"] == MAX_MODEL_LEN
    assert info["add_bos_token"] is False
    assert "<|im_end|>" in info["additional_special_tokens"]
    assert IM_END in info["eos_token_ids"]
    assert "add_generation_prompt" in info["chat_template"]
    async with open_api(adds_bos=True) as without_template:
        info = answered(await without_template.http.get("/tokenizer_info"))
        assert info["add_bos_token"] is True
        assert "chat_template" not in info


async def test_fields_that_other_servers_know_are_named_in_warnings_of_tokens_too(api: Api) -> None:
    assert (await tokenize(api, prompt="a", request_id="r"))["warnings"] == [
        "`request_id` has no effect on this server."
    ]
    shown = answered(await api.http.post("/detokenize", json={"tokens": [97], "spaces_between_special_tokens": False}))
    assert "warnings" not in shown


async def test_responses_are_compact_json_without_the_fields_that_are_not_set(chat_ml: ChatTemplate) -> None:
    async with open_api(adds_bos=True, chat_template=chat_ml) as api:
        body = {"prompt": "é", "return_pieces": True, "user": "a"}
        assert (await api.http.post("/tokenize", json=body)).content == (
            b'{"count":3,"max_model_len":512,"tokens":[256,195,169],'
            b'"warnings":["`user` has no effect on this server."],'
            b'"pieces":[{"id":256,"bytes":[60,115,62]},{"id":195,"bytes":[195]},{"id":169,"bytes":[169]}]}'
        )
        assert (await api.http.post("/detokenize", json={"tokens": [0xC3, 0xA9, 0x22, 0x7F, 0x01]})).content == (
            b'{"text":"\xc3\xa9\\"\x7f\\u0001","prompt":"\xc3\xa9\\"\x7f\\u0001"}'
        )
        prompt = await api.http.post("/apply-template", json={"messages": a_chat("é")["messages"], "user": "a"})
        assert prompt.content == (
            b'{"prompt":"<|im_start|>user\\n\xc3\xa9<|im_end|>\\n<|im_start|>assistant\\n",'
            b'"warnings":["`user` has no effect on this server."]}'
        )
        info = (await api.http.get("/tokenizer_info")).content
        template = json.dumps(chat_ml.source, ensure_ascii=False).encode()
        assert info == _INFO_WITH_BOS[:-1] + b',"chat_template":' + template + b"}"
    async with open_api() as api:
        assert (await api.http.get("/tokenizer_info")).content == _INFO_WITH_BOS.replace(
            b'"add_bos_token":true', b'"add_bos_token":false'
        )
