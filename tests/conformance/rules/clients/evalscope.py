"""evalscope."""

from tests.conformance.target import Body, Target

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def prompts_are_token_ids(target: Target) -> None:
    """With `--tokenize-prompt` a prompt is a list of token ids, which the usage counts one by one."""
    request = {"prompt": [10, 11, 12, 13, 14], "max_tokens": 6, "min_tokens": 6, "temperature": 0}
    chunks = target.chunks_of(COMPLETIONS, request | {"stream_options": {"include_usage": True}})
    assert chunks[-1]["usage"]["prompt_tokens"] == 5
    assert chunks[-1]["usage"]["completion_tokens"] == 6


def its_parameters_are_taken_together(target: Target) -> None:
    """All parameters of its command line together are taken, and `n` choices come, each under its `index`."""
    request: Body = {
        "messages": [{"role": "user", "content": "Say hello."}],
        "max_tokens": 8,
        "min_tokens": 2,
        "frequency_penalty": 0.5,
        "repetition_penalty": 1.1,
        "logprobs": True,
        "n": 2,
        "seed": 7,
        "stop": ["\n\n\n"],
        "stop_token_ids": [5],
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 20,
        "stream_options": {"include_usage": True},
    }
    first, second = (target.chunks_of(CHAT, request) for _ in range(2))
    texts = []
    for chunks in (first, second):
        choices = [choice for chunk in chunks for choice in chunk["choices"]]
        texts.append(
            [
                "".join(choice["delta"].get("content") or "" for choice in choices if choice["index"] == index)
                for index in (0, 1)
            ]
        )
    assert texts[0] == texts[1]
    assert all(texts[0])
    assert 4 <= first[-1]["usage"]["completion_tokens"] <= 16


def counts_come_with_whole_answers(target: Target) -> None:
    """Without a stream it reads the counts of the usage."""
    usage = target.answer_to(CHAT, {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5})["usage"]
    assert usage["prompt_tokens"] > 0
    assert 0 < usage["completion_tokens"] <= 5
