"""/v1/completions: the shapes of its answers, streamed and whole, and what its fields do."""

import re

import pytest

from caravan.model.sampling.generation_defaults import GenerationDefaults
from caravan.model.sampling.sampling_params import SamplingParams
from caravan.server.openai.sampling_params import choice_seed
from tests.server.openai.api import COMPLETIONS, Api, open_api, text_of
from tests.support.fakes import BOS, EOS, IM_END, echoes, says

SPLIT = "a😀b"  # seven tokens; the emoji is four of them


def params_of(api: Api) -> list[SamplingParams]:
    return [params for _, params, _ in api.engine.submitted]


async def test_a_whole_response_has_the_fields_of_openai(api: Api) -> None:
    answer = await api.complete()
    assert re.fullmatch(r"cmpl-[0-9a-f]{32}", answer.pop("id"))
    assert isinstance(answer.pop("created"), int)
    assert answer == {
        "object": "text_completion",
        "model": "fake",
        "system_fingerprint": "fp_fake",
        "choices": [{"index": 0, "text": "Hello!", "logprobs": None, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": 2,
            "completion_tokens": 7,  # the token that ended it is one of them
            "total_tokens": 9,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
    }


async def test_all_chunks_of_a_stream_have_the_same_fields(api: Api) -> None:
    chunks = await api.stream(COMPLETIONS)
    assert {(chunk["id"], chunk["created"], chunk["object"], chunk["model"]) for chunk in chunks} == {
        (chunks[0]["id"], chunks[0]["created"], "text_completion", "fake")
    }
    assert all(set(chunk) == {"id", "created", "object", "model", "system_fingerprint", "choices"} for chunk in chunks)
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert all(set(choice) == {"index", "text", "logprobs", "finish_reason"} for choice in choices)
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["stop"]
    assert text_of(chunks) == "Hello!"


async def test_usage_follows_the_choices_of_a_stream_when_it_is_wanted(api: Api) -> None:
    chunks = await api.stream(COMPLETIONS, stream_options={"include_usage": True}, n=2)
    assert [chunk["choices"] for chunk in chunks if "usage" in chunk] == [[]]
    assert chunks[-1]["usage"]["prompt_tokens"] == 2
    assert chunks[-1]["usage"]["completion_tokens"] == 14


async def test_cached_tokens_are_reported() -> None:
    async with open_api(num_cached_tokens=2) as api:
        answer = await api.complete(prompt=["abc", "def"], n=2)
        assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 4}


@pytest.mark.parametrize("prompt", ["hi", ["hi"], list(b"hi"), [list(b"hi")]])
async def test_a_prompt_may_have_four_forms(api: Api, prompt: object) -> None:
    await api.complete(prompt=prompt)
    assert [tokens for tokens, _, _ in api.engine.submitted] == [list(b"hi")]


async def test_text_gets_a_bos_token_and_token_ids_do_not() -> None:
    async with open_api(adds_bos=True) as api:
        await api.complete(prompt="hi")
        await api.complete(prompt=[104, 105])
        assert [tokens for tokens, _, _ in api.engine.submitted] == [[BOS, 104, 105], [104, 105]]


async def test_add_special_tokens_false_leaves_the_bos_token_out_without_a_warning() -> None:
    async with open_api(adds_bos=True) as api:
        answers = [
            await api.complete(prompt=["hi", "ho"], add_special_tokens=False, echo=True, max_tokens=1),
            await api.complete(prompt="hi", add_special_tokens=True),
            await api.complete(prompt="hi", add_special_tokens=None),
            await api.complete(prompt=[BOS, 104, 105], add_special_tokens=False),
        ]
        assert [tokens for tokens, _, _ in api.engine.submitted] == [
            list(b"hi"),
            list(b"ho"),
            *[[BOS, 104, 105]] * 3,
        ]
        assert not any("warnings" in answer for answer in answers)
        response = await api.http.post(COMPLETIONS, json={"model": "fake", "prompt": "", "add_special_tokens": False})
        assert response.json()["error"]["message"] == "`prompt` is empty; it must have at least one token."


async def test_the_text_of_a_special_token_in_a_prompt_is_text(api: Api) -> None:
    await api.complete(prompt="</s>")
    assert api.engine.submitted[0][0] == list(b"</s>")


async def test_choices_are_numbered_by_prompt_and_then_by_choice() -> None:
    async with open_api(echoes()) as api:
        answer = await api.complete(prompt=["ab", "xy"], n=2, max_tokens=4)
        assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
        assert [choice["text"] for choice in answer["choices"]] == ["abab", "abab", "xyxy", "xyxy"]
        chunks = await api.stream(COMPLETIONS, prompt=["ab", "xy"], n=2, max_tokens=4)
        assert [text_of(chunks, index) for index in range(4)] == ["abab", "abab", "xyxy", "xyxy"]
        assert answer["usage"]["prompt_tokens"] == 4
        assert answer["usage"]["completion_tokens"] == 16


async def test_max_tokens_of_a_completion_is_16_by_default() -> None:
    async with open_api(echoes()) as api:
        assert (await api.complete())["choices"][0] == {
            "index": 0,
            "text": "hi" * 8,
            "logprobs": None,
            "finish_reason": "length",
        }
        assert (await api.complete(prompt=[65] * 510))["usage"]["completion_tokens"] == 2
        assert (await api.complete(max_tokens=3))["choices"][0]["text"] == "hih"


async def test_every_sampling_field_reaches_the_engine(api: Api) -> None:
    fields = {
        "temperature": 0.5,
        "top_k": 7,
        "top_p": 0.25,
        "min_p": 0.125,
        "presence_penalty": -1,
        "frequency_penalty": 1.5,
        "repetition_penalty": 1.25,
        "min_tokens": 2,
        "max_tokens": 9,
    }
    await api.complete(**fields, logit_bias={"65": -100, "66": 5}, stop_token_ids=[10], logprobs=3, cache_salt="mine")
    [(_, params, cache_salt)] = api.engine.submitted
    assert {name: getattr(params, name) for name in fields} == fields
    assert params.logit_bias == {65: -100.0, 66: 5.0}
    assert params.stop_token_ids == (10, EOS, IM_END)
    assert params.num_logprobs == 3
    assert cache_salt == "\nmine"


async def test_fields_that_are_left_out_have_the_models_defaults() -> None:
    async with open_api(defaults=GenerationDefaults(temperature=0.6, top_p=0.9, top_k=40)) as api:
        await api.complete(top_p=1, temperature=None)
        params = params_of(api)[0]
        assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0.6, 1.0, 40, 0.0)


async def test_null_means_the_default(api: Api) -> None:
    nulls = dict.fromkeys(("n", "temperature", "top_p", "stop", "seed", "max_tokens", "logit_bias", "stream", "user"))
    answer = await api.complete(**nulls)
    assert answer["choices"][0]["text"] == "Hello!"
    assert "warnings" not in answer
    assert params_of(api)[0].temperature == 1.0


async def test_the_ends_of_top_k_and_top_p_mean_all_and_one(api: Api) -> None:
    await api.complete(top_k=-1, top_p=0)
    assert params_of(api)[0].top_k == 0
    assert 0 < params_of(api)[0].top_p < 1e-6


async def test_ignore_eos_leaves_only_the_callers_stop_tokens() -> None:
    async with open_api(lambda prompt, params: [IM_END, EOS, 7, 8]) as api:
        answer = await api.complete(ignore_eos=True, stop_token_ids=[7])
        assert params_of(api)[0].stop_token_ids == (7,)
        assert answer["usage"]["completion_tokens"] == 3


async def test_a_seed_makes_each_choice_repeatable_and_different(api: Api) -> None:
    for _ in range(2):
        await api.complete(prompt=["a", "b"], n=3, seed=5)
    seeds = [params.seed for params in params_of(api)]
    assert seeds == [choice_seed(5, index) for index in range(3)] * 4  # no prompt's answer depends on those beside it
    assert len(set(seeds)) == 3


async def test_without_a_seed_no_two_choices_share_one(api: Api) -> None:
    for _ in range(3):
        await api.complete(n=4)
    assert len({params.seed for params in params_of(api)}) == 12


async def test_logprobs_are_parallel_lists_with_the_chosen_token_among_the_top() -> None:
    async with open_api(says("AB")) as api:
        choice = (await api.complete(logprobs=2))["choices"][0]
        assert choice["logprobs"] == {
            "tokens": ["A", "B"],
            "token_logprobs": [-5.0, -5.0],
            "top_logprobs": [{"B": -0.5, "C": -1.0, "A": -5.0}, {"C": -0.5, "D": -1.0, "B": -5.0}],
            "text_offset": [0, 1],
        }
        assert (await api.complete(logprobs=0))["choices"][0]["logprobs"]["top_logprobs"] == [{"A": -5.0}, {"B": -5.0}]


async def test_logprobs_of_a_split_character_are_its_bytes_and_offsets_go_on_across_chunks() -> None:
    async with open_api(says(SPLIT)) as api:
        whole = (await api.complete(logprobs=0))["choices"][0]["logprobs"]
        assert whole["tokens"] == ["a", r"bytes:\xf0", r"bytes:\x9f", r"bytes:\x98", r"bytes:\x80", "b"]
        assert whole["text_offset"] == [0, 1, 1, 1, 1, 2]
        chunks = [chunk["choices"][0] for chunk in await api.stream(COMPLETIONS, logprobs=0)]
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            assert [value for chunk in chunks for value in chunk["logprobs"][name]] == whole[name]


async def test_half_a_character_is_never_streamed() -> None:
    async with open_api(says(SPLIT)) as api:
        api.engine.seconds_per_token = 0.005  # else a chunk may have several tokens
        texts = [chunk["choices"][0]["text"] for chunk in await api.stream(COMPLETIONS)]
        assert [text for text in texts if text] == ["a", "😀", "b"]
        assert (await api.complete(max_tokens=3))["choices"][0]["text"] == "a\ufffd"
        assert text_of(await api.stream(COMPLETIONS, max_tokens=3)) == "a\ufffd"


@pytest.mark.parametrize("stop", ["lo", ["zzz", "lo"], ["lo!", "lo"]])
async def test_a_stop_string_ends_the_text_before_it_and_the_engines_work(stop: object) -> None:
    async with open_api(says("Hello, world")) as api:
        answer = await api.complete(stop=stop)
        assert answer["choices"][0]["text"] == "Hel"
        assert answer["choices"][0]["finish_reason"] == "stop"
        assert answer["usage"]["completion_tokens"] == 5
        chunks = await api.stream(COMPLETIONS, stop=stop)
        assert text_of(chunks) == "Hel"
        assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
        assert api.engine.aborted == [1, 2]
        assert api.sample("request_success_total", finished_reason="stop") == 2


async def test_a_stop_string_may_be_kept_in_the_text() -> None:
    async with open_api(says("Hello, world")) as api:
        fields = {"stop": ["lo"], "include_stop_str_in_output": True}
        assert (await api.complete(**fields))["choices"][0]["text"] == "Hello"
        assert text_of(await api.stream(COMPLETIONS, **fields)) == "Hello"


async def test_what_might_become_a_stop_string_is_held_back_and_not_lost() -> None:
    async with open_api(says("Hel-Hell")) as api:
        api.engine.seconds_per_token = 0.005
        chunks = await api.stream(COMPLETIONS, stop="Hello")
        texts = [chunk["choices"][0]["text"] for chunk in chunks]
        assert [text for text in texts if text] == ["Hel-", "Hell"]
        assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


async def test_a_stop_string_before_min_tokens_is_text() -> None:
    async with open_api(says("stop it, stop")) as api:
        assert (await api.complete(stop="stop", min_tokens=5))["choices"][0]["text"] == "stop it, "


async def test_a_choice_that_stopped_leaves_the_others_running() -> None:
    async with open_api(says("one.two", "three.four")) as api:
        answer = await api.complete(n=2, stop="e.")
        assert [choice["text"] for choice in answer["choices"]] == ["on", "thre"]


async def test_token_ids_are_returned_on_request(api: Api) -> None:
    answer = await api.complete(return_token_ids=True)
    assert answer["prompt_token_ids"] == list(b"hi")
    assert answer["choices"][0]["token_ids"] == [*b"Hello!", EOS]
    chunks = await api.stream(COMPLETIONS, return_token_ids=True, prompt=["a", "b"])
    assert chunks[0]["prompt_token_ids"] == [[97], [98]]
    assert all("prompt_token_ids" not in chunk for chunk in chunks[1:])
    first = [chunk["choices"][0]["token_ids"] for chunk in chunks if chunk["choices"][0]["index"] == 0]
    assert [token_id for token_ids in first for token_id in token_ids] == [*b"Hello!", EOS]


async def test_a_field_without_effect_is_named_in_a_warning(api: Api) -> None:
    fields = {"user": "me", "metadata": {"a": "b"}, "store": True}
    expected = [f"`{name}` has no effect on this server." for name in ("user", "metadata", "store")]
    assert (await api.complete(**fields))["warnings"] == expected
    options = {"include_obfuscation": True}
    chunks = await api.stream(COMPLETIONS, **fields, stream_options=options)
    expected.append("`stream_options.include_obfuscation` has no effect on this server.")
    assert chunks[0]["warnings"] == expected
    assert all("warnings" not in chunk for chunk in chunks[1:])


async def test_harmless_values_of_unsupported_fields_are_accepted(api: Api) -> None:
    answer = await api.complete(echo=False, suffix="", best_of=2, n=2, prompt_logprobs=None, priority=0, store=False)
    assert "warnings" not in answer


async def test_the_model_answers_to_its_aliases(api: Api) -> None:
    assert (await api.complete(model="org/fake-7b"))["model"] == "org/fake-7b"


async def test_line_separators_in_a_text_do_not_break_its_event() -> None:
    text = "a\u2028b\u2029c\u0085d\r\ne"
    async with open_api(says(text)) as api:
        body = {"model": "fake", "prompt": "hi", "stream": True, "max_tokens": 40}
        response = await api.http.post(COMPLETIONS, json=body)
        assert all(line.startswith("data: ") for line in response.text.splitlines() if line)
        assert text_of(await api.stream(COMPLETIONS, max_tokens=40)) == text


async def test_the_request_id_of_a_client_is_echoed_if_it_is_harmless(api: Api) -> None:
    body = {"model": "fake", "prompt": "hi"}
    for sent in ("abc-DEF_123", "x" * 64):
        response = await api.http.post(COMPLETIONS, json=body, headers={"x-request-id": sent})
        assert response.headers.get_list("x-request-id") == [sent]
    for sent in ("x" * 65, "a b", "a\x7f", ""):
        response = await api.http.post(COMPLETIONS, json=body, headers={"x-request-id": sent})
        assert re.fullmatch("[0-9a-f]{32}", response.headers["x-request-id"])


async def test_best_of_returns_the_most_probable_of_several_choices() -> None:
    async with open_api(says("seldom", "often", "never")) as api:
        api.engine.logprob_of = {ord(text[0]): logprob for text, logprob in (("s", -9.0), ("o", -1.0), ("n", -5.0))}
        answer = await api.complete(best_of=3, n=2)
        assert [choice["text"] for choice in answer["choices"]] == ["often", "never"]
        assert [choice["index"] for choice in answer["choices"]] == [0, 1]
        assert all(choice["logprobs"] is None for choice in answer["choices"])
        assert answer["usage"]["completion_tokens"] == sum(len(text) + 1 for text in ("seldom", "often", "never"))
