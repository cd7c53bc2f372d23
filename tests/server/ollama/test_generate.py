"""POST /api/generate: a prompt through the chat template, or as it is."""

from typing import Any

import pytest

from caravan.server.sandbox.chat_template import ChatTemplate
from tests.server.openai.api import Api, Body, open_api
from tests.support.fakes import says
from tests.support.ollama_lines import GENERATE, a_prompt, joined, lines, stable, whole


async def test_a_prompt_is_the_users_message_after_the_system_message(api: Api) -> None:
    answer = await whole(api, GENERATE, a_prompt(system="Be kind."))
    assert answer["response"] == "Hello!"
    assert (answer["done"], answer["done_reason"]) == (True, "stop")
    assert api.prompt_text() == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )


async def test_a_raw_prompt_has_no_template(api: Api) -> None:
    fields = {"raw": True, "logprobs": True, "top_logprobs": 1, "options": {"num_predict": 3}}
    answer = await whole(api, GENERATE, a_prompt(**fields))
    assert api.prompt_text() == "hi"
    assert (answer["response"], answer["done_reason"]) == ("Hel", "length")
    assert [entry["token"] for entry in answer["logprobs"]] == [*"Hel"]
    assert all(len(entry["top_logprobs"]) == 1 for entry in answer["logprobs"])
    assert joined(await lines(api, GENERATE, a_prompt(**fields))) == stable(answer)


async def test_a_raw_text_is_as_long_as_the_context_by_default(api: Api) -> None:
    await whole(api, GENERATE, a_prompt(raw=True))
    assert api.engine.submitted[0][1].max_tokens == 512 - len("hi")


async def test_a_model_without_a_template_completes_prompts() -> None:
    async with open_api(says("there")) as api:
        assert (await whole(api, GENERATE, a_prompt()))["response"] == "there"
        assert api.prompt_text() == "hi"
        response = await api.http.post(GENERATE, json=a_prompt(system="Be kind."))
        assert response.status_code == 400
        assert response.json() == {"error": "This model has no chat template, which `system` needs."}
        response = await api.http.post(
            "/api/chat", json={"model": "fake", "messages": [{"role": "user", "content": "x"}]}
        )
        assert response.status_code == 400


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"suffix": "return x"}, "`suffix` is"),
        ({"template": "{{ .Prompt }}"}, "`template` is"),
        ({"context": [1, 2]}, "`context` is"),
        ({"images": ["aGk="]}, "`images` is"),
        ({"width": 64}, "`width` is"),
        ({"raw": True, "system": "x"}, "`raw` and `system` cannot be combined"),
        ({"prompt": "x" * 2000}, "maximum context length"),
        ({"prompt": "x" * 505}, "maximum context length"),
        ({"prompt": "\x04"}, "`prompt` cannot be encoded"),
        ({"prompt": "\x04", "raw": True}, "`prompt` cannot be encoded"),
        ({"prompt": 7}, "`prompt` is 7"),
        ({"format": {"type": "strange"}}, "`format"),
    ],
)
async def test_bad_requests_are_refused(api: Api, fields: Body, says: str) -> None:
    response = await api.http.post(GENERATE, json=a_prompt(**fields))
    assert response.status_code == 400, response.text
    assert says in response.json()["error"]


@pytest.mark.parametrize(
    "fields", [{"suffix": ""}, {"template": ""}, {"context": []}, {"images": []}, {"images": None}, {"raw": False}]
)
async def test_empty_values_of_refused_fields_are_accepted(api: Api, fields: dict[str, Any]) -> None:
    assert "warnings" not in await whole(api, GENERATE, a_prompt(**fields))


async def test_thinking_has_no_effect_on_a_raw_prompt(api: Api) -> None:
    answer = await whole(api, GENERATE, a_prompt(raw=True, think=True))
    assert answer["warnings"] == ["`think` has no effect on this server."]


async def test_an_empty_prompt_loads_the_model(api: Api) -> None:
    assert (await whole(api, GENERATE, {"model": "fake", "keep_alive": "5m"}))["done_reason"] == "load"
    response = await api.http.post(GENERATE, json={"model": "fake", "keep_alive": 0})
    assert response.status_code == 400
    assert "unload" in response.json()["error"]


async def test_a_grammar_that_the_engine_refuses_is_named_format(chat_ml: ChatTemplate) -> None:
    async with open_api(chat_template=chat_ml) as api:
        api.engine.refuses_grammar, api.engine.fails_after = True, 0
        response = await api.http.post(GENERATE, json=a_prompt(format="json", stream=False))
        assert (response.status_code, response.json()["error"]) == (400, "`format` cannot be used: it is too complex.")


async def test_alternatives_need_log_probabilities(api: Api) -> None:
    refused = await api.http.post(GENERATE, json=a_prompt(top_logprobs=2))
    assert (refused.status_code, refused.json()["error"]) == (400, "`top_logprobs` requires `logprobs`.")


async def test_fields_without_effect_beside_an_empty_prompt_are_warnings(api: Api) -> None:
    answer = await whole(api, GENERATE, a_prompt(prompt="", system="Be kind.", format="json"))
    assert answer["done_reason"] == "load"
    assert answer["warnings"] == [
        "`system` has no effect without a prompt.",
        "`format` has no effect without a prompt.",
    ]
