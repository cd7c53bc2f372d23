"""Completions."""

from tests.conformance.target import Target


def answers_have_their_shape(target: Target) -> None:
    """A whole answer has id, object, created, model, choices and usage."""
    answer = target.complete()
    assert answer["id"].startswith("cmpl-"), answer["id"]
    assert answer["object"] == "text_completion"
    assert isinstance(answer["created"], int)
    (choice,) = answer["choices"]
    assert (choice["index"], choice["logprobs"], choice["finish_reason"]) == (0, None, "length")
    assert isinstance(choice["text"], str)


def usage_adds_up(target: Target) -> None:
    """Usage counts prompt, completion and both, and the tokens found in the cache."""
    usage = target.complete(prompt="One two three four five")["usage"]
    assert usage["completion_tokens"] == 6
    assert usage["total_tokens"] == usage["prompt_tokens"] + 6
    assert usage["prompt_tokens_details"]["cached_tokens"] >= 0


def sixteen_tokens_by_default(target: Target) -> None:
    """`max_tokens` is 16 if it is left out."""
    answer = target.complete(max_tokens=None, prompt="1, 2, 3, 4, 5, 6, 7, 8, 9,")
    assert answer["usage"]["completion_tokens"] == 16


def prompts_may_be_token_ids(target: Target) -> None:
    """A prompt may be a list of token ids, which count as they are."""
    assert target.complete(prompt=[10, 11, 12])["usage"]["prompt_tokens"] == 3


def prompts_may_be_several(target: Target) -> None:
    """Several prompts, strings or token ids, have a choice each, in order."""
    alone = [target.complete(prompt=prompt)["choices"][0]["text"] for prompt in ("The sea is", "Once upon a")]
    together = target.complete(prompt=["The sea is", "Once upon a"])["choices"]
    assert [choice["text"] for choice in together] == alone
    assert [choice["index"] for choice in together] == [0, 1]
    assert len(target.complete(prompt=[[10, 11], [12]])["choices"]) == 2


def choices_of_a_prompt_stand_together(target: Target) -> None:
    """With `n` the index is the prompt's times n plus the choice's."""
    answer = target.complete(prompt=["One", "Two"], n=2, temperature=1, seed=4)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]


def echo_repeats_the_prompt(target: Target) -> None:
    """`echo` puts the prompt before the text."""
    assert target.complete(echo=True)["choices"][0]["text"] == "The sea is" + target.complete()["choices"][0]["text"]


def echo_alone(target: Target) -> None:
    """`echo` with `max_tokens` 0 returns the prompt alone, with its log-probabilities."""
    answer = target.complete(echo=True, max_tokens=0, logprobs=1)
    (choice,) = answer["choices"]
    assert choice["text"] == "The sea is"
    assert answer["usage"]["completion_tokens"] == 0
    assert choice["logprobs"]["token_logprobs"][0] is None
    assert all(logprob <= 0 for logprob in choice["logprobs"]["token_logprobs"][1:])


def logprobs_are_parallel_lists(target: Target) -> None:
    """`logprobs` are four lists of one length; up to N + 1 alternatives; offsets into the text."""
    (choice,) = target.complete(logprobs=2)["choices"]
    logprobs = choice["logprobs"]
    assert {len(logprobs[name]) for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")} == {6}
    assert all(2 <= len(top) <= 3 for top in logprobs["top_logprobs"])
    assert "".join(logprobs["tokens"]) == choice["text"]
    for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
        assert choice["text"][offset : offset + len(token)] == token


def offsets_continue_across_chunks(target: Target) -> None:
    """The log-probabilities of a stream, joined, are those of the whole answer."""
    whole = target.complete(logprobs=1)["choices"][0]["logprobs"]
    chunks = target.stream("/v1/completions", logprobs=1)
    parts = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    assert [offset for part in parts if part for offset in part["text_offset"]] == whole["text_offset"]
    assert [one for part in parts if part for one in part["token_logprobs"]] == whole["token_logprobs"]


def too_many_logprobs(target: Target) -> None:
    """More than 20 alternatives, or fewer than 0, are refused."""
    target.refused_completion(logprobs=21)
    target.refused_completion(logprobs=-1)


def best_of_is_not_streamed(target: Target) -> None:
    """`best_of` returns the n best; it is refused in streams and below n."""
    assert len(target.complete(best_of=3, n=1, temperature=1)["choices"]) == 1
    target.refused_completion(best_of=2, stream=True)
    target.refused_completion(best_of=1, n=2)


def no_suffix(target: Target) -> None:
    """`suffix` is refused, not ignored."""
    target.refused_completion(suffix="the end")


def stop_strings_end_a_text(target: Target) -> None:
    """A text ends before a stop string, streamed and not, with finish_reason stop."""
    text = target.complete(max_tokens=12)["choices"][0]["text"]
    stop = text[len(text) // 2 :][:4]
    (choice,) = target.complete(max_tokens=12, stop=stop)["choices"]
    assert choice["text"] == text[: text.index(stop)]
    assert choice["finish_reason"] == "stop"
    chunks = target.stream("/v1/completions", max_tokens=12, stop=[stop, "never so"])
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == choice["text"]


def up_to_sixteen_stop_strings(target: Target) -> None:
    """Sixteen stop strings are taken, seventeen and an empty one are refused."""
    target.complete(stop=[f"never {i}" for i in range(16)])
    target.refused_completion(stop=["x"] * 17)
    target.refused_completion(stop=[""])


def a_seed_repeats(target: Target) -> None:
    """A seed makes a request repeatable; choices of one seed differ from each other."""
    one, other = (target.complete(seed=7, n=3, temperature=1, max_tokens=12)["choices"] for _ in range(2))
    assert [choice["text"] for choice in one] == [choice["text"] for choice in other]
    assert len({choice["text"] for choice in one}) > 1


def zero_temperature_repeats(target: Target) -> None:
    """Temperature 0 gives the same text each time."""
    assert len({target.complete()["choices"][0]["text"] for _ in range(3)}) == 1


def biases_steer(target: Target) -> None:
    """`logit_bias` of 100 makes a token certain."""
    text = target.complete(logit_bias={"10": 100}, max_tokens=3)["choices"][0]["text"]
    assert text == target.complete(prompt=[10], logit_bias={"10": 100}, max_tokens=3)["choices"][0]["text"]


def ranges_are_kept(target: Target) -> None:
    """Sampling parameters out of range are refused."""
    for field, value in (
        ("temperature", 2.1),
        ("temperature", -0.1),
        ("top_p", 1.1),
        ("presence_penalty", 2.1),
        ("frequency_penalty", -2.1),
        ("n", 0),
        ("max_tokens", -1),
        ("logit_bias", {"5": 101}),
    ):
        target.refused("/v1/completions", {"prompt": "hi", field: value})


def penalties_are_taken(target: Target) -> None:
    """Penalties, `top_p` and `user` are taken."""
    target.complete(presence_penalty=1, frequency_penalty=1, top_p=0.5, temperature=1, user="me")


def the_client_reads_completions(target: Target) -> None:
    """The official client reads a completion with log-probabilities."""
    answer = target.client.completions.create(
        model=target.model, prompt="The sea is", max_tokens=3, temperature=0, logprobs=2
    )
    assert answer.choices[0].logprobs is not None
    assert len(answer.choices[0].logprobs.tokens or []) == 3
