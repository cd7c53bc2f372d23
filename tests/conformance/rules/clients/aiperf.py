"""aiperf and genai-perf."""

from tests.conformance.target import Body, Target, text_of

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
USAGE: Body = {"stream_options": {"include_usage": True}}


def prompts_are_lists(target: Target) -> None:
    """The one prompt of a completion is in a list, and means what it means alone."""
    request = {"prompt": ["The sea is"], "max_tokens": 6, "temperature": 0}
    chunks = target.chunks_of(COMPLETIONS, request | USAGE)
    assert text_of(chunks) == target.complete()["choices"][0]["text"]
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}


def lengths_are_fixed(target: Target) -> None:
    """`min_tokens` and `ignore_eos` beside the limit fix the length of an answer, under both names of the limit."""
    message: Body = {"messages": [{"role": "user", "content": "Say hello."}]}
    for limit in ("max_completion_tokens", "max_tokens"):
        request = message | {limit: 20, "min_tokens": 20, "ignore_eos": True}
        assert target.chunks_of(CHAT, request | USAGE)[-1]["usage"]["completion_tokens"] == 20


def usage_per_chunk(target: Target) -> None:
    """With `--per-chunk-usage` every chunk of a chat has the usage so far."""
    options = {"include_usage": True, "continuous_usage_stats": True}
    request = {"messages": [{"role": "user", "content": "Say hello."}], "max_completion_tokens": 12}
    chunks = target.chunks_of(CHAT, request | {"stream_options": options})
    assert all(chunk["usage"]["prompt_tokens"] > 0 for chunk in chunks)


def whole_answers_are_parsed(target: Target) -> None:
    """Without a stream the object's name says how to read an answer."""
    message: Body = {"messages": [{"role": "user", "content": "Say hello."}]}
    chat = target.answer_to(CHAT, message | {"max_completion_tokens": 4, "stream": False})
    assert chat["object"] == "chat.completion"
    assert chat["choices"][0]["message"]["content"] is not None
    text = target.answer_to(COMPLETIONS, {"prompt": ["The sea is"], "max_tokens": 4, "stream": False})
    assert text["object"] == "text_completion"
    assert text["usage"]["completion_tokens"] == 4


def other_inputs_are_taken(target: Target) -> None:
    """genai-perf sends `max_tokens` and whatever `--extra-inputs` names; a misspelt input is refused by name."""
    request: Body = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 6}
    assert target.chunks_of(CHAT, request | {"top_k": 1, "seed": 1})
    error = target.refused_chat(stream=True, ignore_eof=True)
    assert "`ignore_eos`" in error["message"]
