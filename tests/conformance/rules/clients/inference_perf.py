"""inference-perf."""

from tests.conformance.target import Body, Target

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def special_tokens_can_be_left_out(target: Target) -> None:
    """`add_special_tokens` false counts the tokens of the text alone, as its own tokenizer does."""
    text = "The sea is calm and the sky is blue."
    request = {"prompt": text, "max_tokens": 4, "ignore_eos": True, "add_special_tokens": False, "stream": False}
    usage = target.answer_to(COMPLETIONS, request)["usage"]
    alone = target.answer_to("/tokenize", {"prompt": text, "add_special_tokens": False})
    assert usage["prompt_tokens"] == alone["count"]
    assert usage["completion_tokens"] == 4


def the_server_counts(target: Target) -> None:
    """The counts of a stream come in its last chunk, for a completion and a chat."""
    common: Body = {"max_tokens": 10, "ignore_eos": True, "stream_options": {"include_usage": True}}
    message: Body = {"messages": [{"role": "user", "content": "Say hello."}]}
    for path, fields in ((COMPLETIONS, {"prompt": "The sea is"}), (CHAT, message)):
        chunks = target.chunks_of(path, fields | common)
        assert chunks[-1]["usage"]["completion_tokens"] == 10
        assert chunks[-1]["usage"]["prompt_tokens"] > 0


def requests_have_ids_of_their_own(target: Target) -> None:
    """Each answer has an id of its own, the same in all chunks."""
    request: Body = {"prompt": "The sea is", "max_tokens": 2, "ignore_eos": False}
    ids = []
    for _ in range(2):
        (one,) = {chunk["id"] for chunk in target.chunks_of(COMPLETIONS, request)}
        ids.append(one)
    assert ids[0] != ids[1]
