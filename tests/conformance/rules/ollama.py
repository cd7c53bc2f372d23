"""Ollama's API: lines of JSON, options, formats and model lists."""

import json
import math

from tests.conformance.target import Body, Target

CHAT, GENERATE = "/api/chat", "/api/generate"
SHORT = {"num_predict": 6, "temperature": 0}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def _whole(target: Target, path: str, **fields: object) -> Body:
    response = target.post(path, {"model": target.model, "stream": False, "options": SHORT} | _asked(path) | fields)
    assert response.status_code == 200, f"status {response.status_code}: {response.text[:200]}"
    answer: Body = response.json()
    return answer


def _lines(target: Target, path: str, **fields: object) -> list[Body]:
    response = target.post(path, {"model": target.model, "options": SHORT} | _asked(path) | fields)
    assert response.status_code == 200, f"status {response.status_code}: {response.text[:200]}"
    assert response.headers["content-type"].startswith("application/x-ndjson"), "not lines of JSON"
    assert response.text.endswith("\n"), "the last line does not end"
    return [json.loads(line) for line in response.text.splitlines()]


def _asked(path: str) -> Body:
    return {"messages": [{"role": "user", "content": "Say hello."}]} if path == CHAT else {"prompt": "Say hello."}


def _refused(target: Target, path: str, status: int = 400, **fields: object) -> str:
    response = target.post(path, {"model": target.model} | _asked(path) | fields)
    assert response.status_code == status, f"status {response.status_code} instead of {status}"
    error = response.json()["error"]
    assert isinstance(error, str), "the error is no text"
    return error


def the_server_is_running(target: Target) -> None:
    """/ says that Ollama is running to clients that do not want HTML; /api/version has a version in three parts."""
    response = target.http.get("/", headers={"accept": "application/json"})
    assert response.text == "Ollama is running"
    assert target.http.head("/").status_code == 200
    version = target.http.get("/api/version").json()["version"]
    assert len([int(part) for part in version.split(".")]) == 3


def models_are_listed(target: Target) -> None:
    """/api/tags lists models by names with a tag, each with a size, a digest and details."""
    entries = target.http.get("/api/tags").json()["models"]
    names = [entry["name"] for entry in entries]
    assert target.model in names or f"{target.model}:latest" in names
    for entry in entries:
        assert entry["model"] == entry["name"]
        assert ":" in entry["name"]
        assert entry["size"] > 0
        assert len(entry["digest"]) >= 12
        assert entry["details"]["family"]


def a_model_is_shown(target: Target) -> None:
    """/api/show has the context length under the name of the architecture, and says that the model completes."""
    shown = target.post("/api/show", {"model": target.model}).json()
    architecture = shown["model_info"]["general.architecture"]
    assert shown["model_info"][f"{architecture}.context_length"] > 0
    assert "completion" in shown["capabilities"]
    assert target.post("/api/show", {"model": "no-such-model"}).status_code == 404


def a_tag_is_optional(target: Target) -> None:
    """A model is found with and without the tag latest."""
    name = target.model.removesuffix(":latest")
    for spelled in (name, f"{name}:latest"):
        assert _whole(target, CHAT, model=spelled)["model"] == spelled


def a_running_model_is_listed(target: Target) -> None:
    """/api/ps lists the model that has just answered, with the time when it expires."""
    _whole(target, CHAT)
    entries = target.http.get("/api/ps").json()["models"]
    assert target.model.removesuffix(":latest") in [entry["name"].removesuffix(":latest") for entry in entries]
    assert all(entry["expires_at"] for entry in entries)


def streams_are_the_default(target: Target) -> None:
    """Without `stream` a chat is a stream of lines; only the last one is done, and joined they are the whole answer."""
    parts = _lines(target, CHAT)
    assert [part["done"] for part in parts] == [False] * (len(parts) - 1) + [True]
    assert all(part["message"]["role"] == "assistant" for part in parts)
    text = "".join(part["message"]["content"] for part in parts)
    assert text == _whole(target, CHAT)["message"]["content"] != ""


def prompts_stream_as_well(target: Target) -> None:
    """/api/generate streams parts of `response`, which are the whole answer."""
    parts = _lines(target, GENERATE)
    assert "".join(part["response"] for part in parts) == _whole(target, GENERATE)["response"] != ""
    assert parts[-1]["done"]


def the_last_line_counts(target: Target) -> None:
    """The last line has the reason, the numbers of tokens and durations in nanoseconds."""
    for answer in (_lines(target, CHAT)[-1], _whole(target, GENERATE, options=SHORT | {"num_predict": 3})):
        assert answer["done_reason"] in ("stop", "length")
        assert answer["prompt_eval_count"] > 0
        assert 0 < answer["eval_count"] <= 6
        assert answer["total_duration"] >= answer["eval_duration"] > 0
        assert answer["total_duration"] > 1e5, "not in nanoseconds"


def the_length_is_limited(target: Target) -> None:
    """`options.num_predict` ends a text with the reason length."""
    answer = _whole(target, GENERATE, options={"num_predict": 2, "temperature": 0})
    assert (answer["done_reason"], answer["eval_count"]) == ("length", 2)


def options_have_an_effect(target: Target) -> None:
    """`options.stop` ends a text, and `options.seed` makes a drawn one repeatable."""
    text = _whole(target, GENERATE)["response"]
    stop = text.strip()[1:3]
    assert _whole(target, GENERATE, options=SHORT | {"stop": [stop]})["response"] == text.partition(stop)[0]
    drawn = {"num_predict": 8, "temperature": 1.5, "seed": 3}
    assert _whole(target, GENERATE, options=drawn)["response"] == _whole(target, GENERATE, options=drawn)["response"]


def options_without_effect_are_accepted(target: Target) -> None:
    """Options of the runtime and unknown ones do not end a request; numbers out of range do."""
    more = {"num_ctx": 1024, "num_gpu": 1, "use_mmap": True, "no_such_option": 1}
    assert _whole(target, CHAT, options=SHORT | more)["done"]
    _refused(target, CHAT, options={"top_p": -3})
    _refused(target, CHAT, options={"temperature": "hot"})


def a_format_is_a_schema(target: Target) -> None:
    """`format` json gives an object, a schema gives JSON of that schema."""
    schema = {
        "type": "object",
        "properties": {"hot": {"type": "boolean"}},
        "required": ["hot"],
        "additionalProperties": False,
    }
    options = {"num_predict": 60, "temperature": 0}
    answer = json.loads(_whole(target, CHAT, format=schema, options=options)["message"]["content"])
    assert set(answer) == {"hot"}
    assert isinstance(answer["hot"], bool)
    text = _whole(target, GENERATE, format="json", options=options)["response"]
    assert text.lstrip().startswith("{")
    _refused(target, CHAT, format="xml")


def a_raw_prompt_is_shorter(target: Target) -> None:
    """`raw` leaves the template out: the prompt has fewer tokens."""
    counts = [_whole(target, GENERATE, raw=raw)["prompt_eval_count"] for raw in (True, False)]
    assert 0 < counts[0] < counts[1]


def a_conversation_has_tools(target: Target) -> None:
    """Tools are described to the model; calls with objects and results with the names of tools are taken back."""
    plain = _whole(target, CHAT)["prompt_eval_count"]
    assert _whole(target, CHAT, tools=[WEATHER])["prompt_eval_count"] > plain
    call = {"function": {"name": "weather", "arguments": {"city": "Paris"}}}
    history = [
        {"role": "user", "content": "Weather in Paris?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "Rain.", "tool_name": "weather"},
    ]
    assert _whole(target, CHAT, messages=history, tools=[WEATHER])["done"]


def logprobs_add_up(target: Target) -> None:
    """`logprobs` has an entry for each token with the requested alternatives; their texts join to the answer."""
    answer = _whole(target, GENERATE, logprobs=True, top_logprobs=2)
    assert "".join(entry["token"] for entry in answer["logprobs"]).startswith(answer["response"])
    assert all(entry["logprob"] <= 0 and len(entry["top_logprobs"]) == 2 for entry in answer["logprobs"])


def an_empty_prompt_loads(target: Target) -> None:
    """A request without a prompt, or without messages, answers with the reason load."""
    assert _whole(target, GENERATE, prompt="")["done_reason"] == "load"
    assert _whole(target, CHAT, messages=[])["done_reason"] == "load"


def texts_have_vectors(target: Target) -> None:
    """/api/embed returns a vector of length 1 for each text, /api/embeddings one vector."""
    answer = target.post("/api/embed", {"model": target.model, "input": ["calm sea", "rough sea"]}).json()
    assert len(answer["embeddings"]) == 2
    assert answer["prompt_eval_count"] > 0
    for vector in answer["embeddings"]:
        assert abs(math.fsum(number * number for number in vector) - 1) < 1e-3
    one = target.post("/api/embeddings", {"model": target.model, "prompt": "calm sea"}).json()["embedding"]
    assert len(one) == len(answer["embeddings"][0])


def errors_are_one_text(target: Target) -> None:
    """Errors are an object with one text: unknown models and routes, images, broken bodies."""
    _refused(target, CHAT, status=404, model="no-such-model")
    _refused(target, CHAT, messages=[{"role": "user", "content": "What is this?", "images": ["aGVsbG8="]}])
    _refused(target, GENERATE, options=[1])
    assert isinstance(target.post("/api/no-such-route", {}).json()["error"], str)
    response = target.http.post(CHAT, content=b"{", headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert isinstance(response.json()["error"], str)
