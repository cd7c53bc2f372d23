"""Rules about tokens and thoughts."""

from tests.conformance.target import Target


def efforts_and_switches_are_taken(target: Target) -> None:
    """`reasoning_effort`, `enable_thinking` and `chat_template_kwargs` are taken, and wrong values refused."""
    target.chat(reasoning_effort="low")
    target.chat(chat_template_kwargs={"enable_thinking": False})
    target.chat(chat_template_kwargs={})
    target.refused_chat(reasoning_effort="a lot")
    target.refused_chat(chat_template_kwargs={"messages": []})
    target.refused_chat(chat_template_kwargs={"tone": {"nested": True}})


def budgets_are_taken(target: Target) -> None:
    """`thinking_token_budget` is taken with any number from -1 on, and refused with others."""
    for budget in (-1, 0, 5):
        target.chat(thinking_token_budget=budget)
    target.refused_chat(thinking_token_budget=-2)
    target.refused_chat(thinking_token_budget=5, thinking={"type": "enabled", "budget_tokens": 6})


def earlier_thoughts_are_taken(target: Target) -> None:
    """Earlier messages may have `reasoning` and `reasoning_content`."""
    for name in ("reasoning", "reasoning_content"):
        earlier = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello.", name: "A greeting."}]
        target.chat(messages=[*earlier, {"role": "user", "content": "And now?"}])


def allowed_tokens_are_the_only_ones(target: Target) -> None:
    """`allowed_token_ids` are the only tokens of a text, at any temperature."""
    for temperature in (0, 1.5):
        answer = target.complete(allowed_token_ids=[40, 50, 60], temperature=temperature, return_token_ids=True)
        assert set(answer["choices"][0]["token_ids"]) <= {40, 50, 60}
    target.refused_completion(allowed_token_ids=[])
    target.refused_completion(allowed_token_ids=[10**7])


def bad_words_never_come(target: Target) -> None:
    """`bad_words` keep a text from having a word, and change nothing before it."""
    text = target.complete(max_tokens=12)["choices"][0]["text"]
    word = text.split()[2].strip(".,")
    other = target.complete(max_tokens=12, bad_words=[word])["choices"][0]["text"]
    assert word not in other.split()
    assert other.startswith(text[: text.index(word)].rstrip())
    target.refused_completion(bad_words=[""])


def prompts_can_be_cut(target: Target) -> None:
    """`truncate_prompt_tokens` keeps the end of a prompt."""
    whole = target.complete(prompt=[20, 21, 22])["choices"][0]["text"]
    answer = target.complete(prompt=[10, 11, 12, 20, 21, 22], truncate_prompt_tokens=3)
    assert answer["choices"][0]["text"] == whole
    assert answer["usage"]["prompt_tokens"] == 3
    target.refused_completion(truncate_prompt_tokens=0)


def repetitions_end_a_text(target: Target) -> None:
    """`repetition_detection` ends a text that repeats itself, with a reason."""
    rule = {"max_pattern_size": 4, "min_count": 3}
    answer = target.complete(allowed_token_ids=[40], max_tokens=20, repetition_detection=rule)
    (choice,) = answer["choices"]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", "repetition")
    assert answer["usage"]["completion_tokens"] == 3
    target.refused_completion(repetition_detection={"max_pattern_size": 4, "min_count": 1})


def special_tokens_are_hidden_by_default(target: Target) -> None:
    """`skip_special_tokens: false` shows the names of special tokens; by default they are left out."""
    fields = {"allowed_token_ids": [1], "max_tokens": 2, "ignore_eos": True}
    assert target.complete(**fields)["choices"][0]["text"] == ""
    assert target.complete(**fields, skip_special_tokens=False)["choices"][0]["text"] != ""


def timings_come_on_wish(target: Target) -> None:
    """`timings` adds times to the usage, whole and streamed."""
    assert "timings" not in target.complete()["usage"]
    whole = target.complete(timings=True)["usage"]["timings"]
    streamed = target.stream("/v1/completions", timings=True, stream_options={"include_usage": True})
    for timings in (whole, streamed[-1]["usage"]["timings"]):
        assert timings["queue_ms"] >= 0
        assert timings["prefill_ms"] > 0
        assert timings["decode_ms"] > 0
        assert timings["tokens_per_second"] > 0


def fingerprints_stay(target: Target) -> None:
    """`system_fingerprint` is a text, the same in all answers and chunks of a model."""
    found = {target.complete()["system_fingerprint"], target.chat()["system_fingerprint"]}
    found |= {chunk["system_fingerprint"] for chunk in target.stream("/v1/completions")}
    (fingerprint,) = found
    assert isinstance(fingerprint, str)
    assert fingerprint
