"""Server-sent events."""

from tests.conformance.target import Target, text_of

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def streams_end_with_done(target: Target) -> None:
    """A stream is `data:` events, each with a blank line, and ends with [DONE]."""
    assert target.stream(CHAT)
    assert target.stream(COMPLETIONS)


def events_have_no_id(target: Target) -> None:
    """No event has an `id:` line."""
    body = {"model": target.model, "stream": True} | target.a_chat()
    text = "\n" + target.post(CHAT, body).text
    assert "\ndata:" in text, "there are no events"
    assert "\nid:" not in text


def chunks_name_their_answer(target: Target) -> None:
    """`id`, `created`, `model` and `object` are the same in every chunk."""
    for path, kind, prefix in ((CHAT, "chat.completion.chunk", "chatcmpl-"), (COMPLETIONS, "text_completion", "cmpl-")):
        chunks = target.stream(path)
        heads = {(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in chunks}
        assert len(heads) == 1, heads
        assert chunks[0]["object"] == kind, chunks[0]["object"]
        assert chunks[0]["id"].startswith(prefix), chunks[0]["id"]


def the_role_comes_first_and_once(target: Target) -> None:
    """The first chunk of each chat choice has the role and an empty content; the role comes never again."""
    chunks = target.stream(CHAT, n=2, temperature=1)
    for index in (0, 1):
        deltas = [c["delta"] for chunk in chunks for c in chunk["choices"] if c["index"] == index]
        assert deltas[0] == {"role": "assistant", "content": ""}, deltas[0]
        assert not any("role" in delta for delta in deltas[1:])


def nulls_are_written(target: Target) -> None:
    """`finish_reason` and `logprobs` are null on every chunk that has none, and `usage` is absent."""
    for path in (CHAT, COMPLETIONS):
        chunks = target.stream(path)
        for chunk in chunks:
            assert "usage" not in chunk, "usage"
            (choice,) = chunk["choices"]
            assert choice["logprobs"] is None
            assert choice["finish_reason"] is None or chunk is chunks[-1]
        assert chunks[-1]["choices"][0]["finish_reason"] == "length"


def usage_comes_last(target: Target) -> None:
    """With `include_usage` one more chunk follows all choices: no choices, and the usage."""
    for path in (CHAT, COMPLETIONS):
        chunks = target.stream(path, stream_options={"include_usage": True})
        assert chunks[-1]["choices"] == []
        usage = chunks[-1]["usage"]
        assert usage["prompt_tokens"] + usage["completion_tokens"] == usage["total_tokens"]
        assert usage["completion_tokens"] == 6
        assert all(not chunk.get("usage") for chunk in chunks[:-1])


def usage_comes_with_every_chunk(target: Target) -> None:
    """With `continuous_usage_stats` every chunk has the usage so far, and the last one all of it."""
    for path in (CHAT, COMPLETIONS):
        options = {"include_usage": True, "continuous_usage_stats": True}
        chunks = target.stream(path, stream_options=options, max_tokens=48)  # more than one chunk holds
        counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
        assert counts == sorted(counts), counts
        assert min(counts) < counts[-1] <= 48, counts
        assert chunks[-1]["choices"] == []


def stream_options_need_a_stream(target: Target) -> None:
    """`stream_options` without `stream` is refused."""
    target.refused_chat(stream_options={"include_usage": True})


def errors_come_before_the_stream(target: Target) -> None:
    """An error before the first token is a plain HTTP error, also of a stream."""
    target.refused_chat(stream=True, model="no-such-model", status=404)
    target.refused_completion(stream=True, temperature=5)


def streams_say_the_same(target: Target) -> None:
    """A streamed text is the text of the whole answer."""
    assert text_of(target.stream(CHAT)) == target.chat()["choices"][0]["message"]["content"]
    assert text_of(target.stream(COMPLETIONS)) == target.complete()["choices"][0]["text"]


def indices_count_choices(target: Target) -> None:
    """The index of a streamed choice is its prompt's times n plus its own."""
    chunks = target.stream(COMPLETIONS, prompt=["One", "Two"], n=2, temperature=1, seed=1)
    assert {choice["index"] for chunk in chunks for choice in chunk["choices"]} == {0, 1, 2, 3}


def the_client_reads_streams(target: Target) -> None:
    """The official client reads a stream to its end."""
    stream = target.client.chat.completions.create(
        model=target.model,
        messages=[{"role": "user", "content": "Say hello."}],
        max_tokens=6,
        temperature=0,
        stream=True,
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert text == target.chat()["choices"][0]["message"]["content"]
