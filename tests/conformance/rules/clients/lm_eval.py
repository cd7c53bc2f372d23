"""lm-eval."""

from tests.conformance.target import Body, Target

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def _likelihood(target: Target, prompts: list[list[int]]) -> list[Body]:
    request = {"prompt": prompts, "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}
    choices: list[Body] = target.answer_to(COMPLETIONS, request)["choices"]
    return sorted(choices, key=lambda choice: int(choice["index"]))


def _ids(target: Target, text: str) -> list[int]:
    found: list[int] = target.answer_to("/tokenize", {"prompt": text, "add_special_tokens": False})["tokens"]
    return found


def the_tokenizer_is_found(target: Target) -> None:
    """`tokenizer_backend=auto` asks for `/tokenizer_info` and reads the end token and the chat template."""
    info = target.http.get("/tokenizer_info").json()
    assert isinstance(info["eos_token"], str)
    assert isinstance(info["chat_template"], str)


def texts_survive_the_tokenizer(target: Target) -> None:
    """`/tokenize` without special tokens and `/detokenize` give a text back as `prompt`."""
    for text in ("The sea is calm.", " leading", "Zürich 😀\n\n"):
        assert target.answer_to("/detokenize", {"tokens": _ids(target, text)})["prompt"] == text


def contexts_and_continuations_add_up(target: Target) -> None:
    """The tokens of a context stand before those of its continuation, so their number separates both."""
    context = _ids(target, "The capital of France is")
    whole = _ids(target, "The capital of France is Paris.")
    assert whole[: len(context)] == context
    assert len(whole) > len(context)


def likelihoods_have_a_number_for_each_token(target: Target) -> None:
    """A likelihood has the log-probability of each token of the prompt but the first, and of one more."""
    prompts = [_ids(target, text) for text in ("The capital of France is Paris.", "The sea")]
    for prompt, choice in zip(prompts, _likelihood(target, prompts), strict=True):
        logprobs = choice["logprobs"]
        assert len(logprobs["token_logprobs"]) == len(logprobs["tokens"]) == len(prompt) + 1
        assert logprobs["token_logprobs"][0] is None
        assert all(value <= 0 for value in logprobs["token_logprobs"][1:])


def greedy_tokens_are_recognised(target: Target) -> None:
    """The most probable of the alternatives is the token that greedy decoding would have taken."""
    prompt = _ids(target, "The capital of France is")
    answer = target.answer_to(COMPLETIONS, {"prompt": prompt, "max_tokens": 3, "temperature": 0})
    text = answer["choices"][0]["text"]
    (choice,) = _likelihood(target, [prompt + _ids(target, text)])
    logprobs = choice["logprobs"]
    for place in range(len(prompt), len(prompt) + 3):
        top = logprobs["top_logprobs"][place]
        assert logprobs["tokens"][place] == max(top, key=top.get)


def likelihoods_do_not_depend_on_their_batch(target: Target) -> None:
    """A likelihood is the same number alone and beside others."""
    prompts = [_ids(target, text) for text in ("The capital of France is Paris.", "The sea is calm.", "One two")]
    together = _likelihood(target, prompts)
    for prompt, choice in zip(prompts, together, strict=True):
        (alone,) = _likelihood(target, [prompt])
        assert alone["logprobs"]["token_logprobs"] == choice["logprobs"]["token_logprobs"]


def better_continuations_are_likelier(target: Target) -> None:
    """Of two continuations of a context the likelier one has the greater sum."""
    context = _ids(target, "The capital of France is")
    choices = _likelihood(target, [context + _ids(target, end) for end in (" Paris.", " banana.")])
    sums = [sum(choice["logprobs"]["token_logprobs"][len(context) : -1]) for choice in choices]
    assert sums[0] > sums[1]


def texts_are_generated(target: Target) -> None:
    """A generation ends before its stop strings; prompts in a list are answered in order."""
    request = {"prompt": ["Q: 1+1?\nA:", "Q: 2+2?\nA:"], "max_tokens": 24, "temperature": 0, "seed": 1234}
    free = [choice["text"] for choice in target.answer_to(COMPLETIONS, request)["choices"]]
    stop = free[0].strip()[:3]
    ended = target.answer_to(COMPLETIONS, request | {"stop": [stop, "</s>", "\n\n\n"]})["choices"]
    assert [choice["index"] for choice in ended] == [0, 1]
    assert ended[0]["text"] == free[0][: free[0].index(stop)]


def chats_are_generated(target: Target) -> None:
    """A chat with four stop strings is answered with a text."""
    request = {
        "messages": [{"role": "user", "content": "1+1?"}],
        "max_tokens": 8,
        "temperature": 0,
        "stop": ["</s>", "Q:", "\n\n\n", "<|end|>"],
        "seed": 1234,
    }
    assert isinstance(target.answer_to(CHAT, request)["choices"][0]["message"]["content"], str)
