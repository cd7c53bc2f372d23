"""Extensions that people expect."""

import json

from tests.conformance.target import Body, Target, text_of


def sampling_has_more_ways(target: Target) -> None:
    """`top_k`, `min_p`, `repetition_penalty` are taken and checked."""
    greedy = target.complete()["choices"][0]["text"]
    assert target.complete(temperature=1, top_k=1)["choices"][0]["text"] == greedy
    assert target.complete(temperature=1, min_p=1.0)["choices"][0]["text"] == greedy
    target.complete(repetition_penalty=1.3)
    for fields in ({"top_k": -2}, {"min_p": 1.5}, {"repetition_penalty": 0}):
        target.refused("/v1/completions", {"prompt": "hi", **fields})


def least_lengths(target: Target) -> None:
    """`min_tokens` and `ignore_eos` keep a text from ending too soon."""
    assert target.chat(max_tokens=80, min_tokens=70)["usage"]["completion_tokens"] >= 70
    assert target.chat(max_tokens=80, ignore_eos=True)["usage"]["completion_tokens"] == 80
    target.refused_completion(min_tokens=5, max_tokens=4)


def token_ids_are_returned(target: Target) -> None:
    """`return_token_ids` adds those of the prompt and of each choice."""
    answer = target.complete(prompt=[10, 11], return_token_ids=True)
    assert answer["prompt_token_ids"] == [10, 11]
    assert len(answer["choices"][0]["token_ids"]) == 6


def stop_tokens_end_a_text(target: Target) -> None:
    """`stop_token_ids` end a text."""
    ids = target.complete(return_token_ids=True)["choices"][0]["token_ids"]
    answer = target.complete(stop_token_ids=[ids[3]])
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] <= 4


def stop_strings_may_be_shown(target: Target) -> None:
    """`include_stop_str_in_output` keeps the stop string."""
    text = target.complete()["choices"][0]["text"]
    stop = text[2:5]
    shown = target.complete(stop=stop, include_stop_str_in_output=True)["choices"][0]["text"]
    assert shown == text[: text.index(stop) + len(stop)]


def prompts_are_judged(target: Target) -> None:
    """`prompt_logprobs` has the log-probability of each token of the prompt."""
    (choice,) = target.complete(prompt=[10, 11, 12], prompt_logprobs=1)["choices"]
    assert choice["prompt_logprobs"][0] is None
    assert "12" in choice["prompt_logprobs"][2]


def regular_expressions_are_kept(target: Target) -> None:
    """`regex` is kept, and characters are never split in a stream."""
    fields: Body = {"regex": "(😀|é){3}!", "max_tokens": 40, "temperature": 1}
    text = target.complete(**fields)["choices"][0]["text"]
    assert len(text) == 4
    chunks = target.stream("/v1/completions", **fields)
    assert all("\ufffd" not in choice["text"] for chunk in chunks for choice in chunk["choices"])
    assert set(text_of(chunks)) <= set("😀é!")
    target.refused_completion(regex="(")


def split_characters_keep_their_bytes(target: Target) -> None:
    """The bytes in `logprobs` of the tokens of a split character are the character's."""
    (choice,) = target.chat(regex="😀🦜", max_tokens=40, logprobs=True)["choices"]
    content = choice["logprobs"]["content"]
    assert b"".join(bytes(entry["bytes"]) for entry in content) == "😀🦜".encode()


def grammars_are_kept(target: Target) -> None:
    """`grammar` in Lark's form is kept; a broken one is refused."""
    text = target.complete(grammar='start: ("yes" | "no") "."', max_tokens=10)["choices"][0]["text"]
    assert text in ("yes.", "no.")
    target.refused_completion(grammar="start: nothing")


def final_messages_go_on(target: Target) -> None:
    """`continue_final_message` lets the model go on with the last message."""
    messages = [{"role": "user", "content": "Count."}, {"role": "assistant", "content": "1, 2, 3,"}]
    shorter = target.chat(messages=messages, continue_final_message=True)["usage"]["prompt_tokens"]
    assert shorter < target.chat(messages=messages)["usage"]["prompt_tokens"]
    target.refused_chat(messages=messages, continue_final_message=True, add_generation_prompt=True)


def fields_without_effect_are_named(target: Target) -> None:
    """A field of OpenAI's that has no effect is named in `warnings`."""
    assert any("user" in warning for warning in target.chat(user="me")["warnings"])


def fields_of_other_servers_are_named(target: Target) -> None:
    """Fields that other servers know and this one does not have are taken and named, not ignored in silence."""
    for name, value in (("mirostat", 2), ("cache_prompt", False), ("provider", {"order": ["a"]}), ("rid", "a")):
        answer = target.complete(**{name: value})
        assert any(name in warning for warning in answer["warnings"]), name


def misspelt_fields_get_a_hint(target: Target) -> None:
    """An unknown field close to a known one is refused with that one's name."""
    assert "`max_tokens`" in target.refused_completion(max_token=5)["message"]


def priorities_and_salts_are_taken(target: Target) -> None:
    """`priority` and `cache_salt` are taken."""
    target.complete(priority=-1, cache_salt="mine")


def tokens_are_shown(target: Target) -> None:
    """`/tokenize` and `/detokenize` are each other's inverse; pieces have the bytes."""
    text = "Zürich 😀"
    shown = target.post("/tokenize", {"prompt": text, "return_pieces": True, "add_special_tokens": False}).json()
    assert shown["count"] == len(shown["tokens"])
    assert b"".join(bytes(piece["bytes"]) for piece in shown["pieces"]).decode() == text
    back = target.post("/detokenize", {"tokens": shown["tokens"]}).json()
    assert back["text"] == back["prompt"] == text


def tokenizers_are_described(target: Target) -> None:
    """`/tokenizer_info` names the end token and has the chat template."""
    info = target.http.get("/tokenizer_info").json()
    assert isinstance(info["eos_token"], str)
    assert info["chat_template"]


def prompts_are_shown(target: Target) -> None:
    """`/apply-template` shows the exact prompt, and `/tokenize` of the messages its tokens."""
    messages = [{"role": "user", "content": "hi"}]
    prompt = target.post("/apply-template", {"messages": messages}).json()["prompt"]
    assert "hi" in prompt
    count = target.post("/tokenize", {"messages": messages}).json()["count"]
    assert count == target.chat(messages=messages)["usage"]["prompt_tokens"]
    tools = [{"type": "function", "function": {"name": "look", "description": "Look around."}}]
    assert target.post("/tokenize", {"messages": messages, "tools": tools}).json()["count"] > count


def lengths_are_reported(target: Target) -> None:
    """Entries of `/v1/models` carry `max_model_len`."""
    assert target.http.get(f"/v1/models/{target.model}").json()["max_model_len"] > 0


def probes_answer(target: Target) -> None:
    """`/livez`, `/readyz`, `/version` and `/metrics` answer."""
    for path in ("/livez", "/readyz", "/version", "/metrics"):
        assert target.http.get(path).status_code == 200, path
    assert "# TYPE" in target.http.get("/metrics").text


def the_document_is_published(target: Target) -> None:
    """`/openapi.json` describes the routes, `/docs` shows them."""
    assert "/v1/chat/completions" in json.loads(target.http.get("/openapi.json").text)["paths"]
    assert target.http.get("/docs").status_code == 200
