"""Errors."""

from tests.conformance.target import Body, Target

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def errors_have_their_shape(target: Target) -> None:
    """An error is an object with message, type, param and code; the param names the field."""
    error = target.refused_completion(temperature="hot")
    assert set(error) == {"message", "type", "param", "code"}, set(error)
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", "temperature", None)


def unknown_fields_are_named(target: Target) -> None:
    """An unknown field is refused and named."""
    for error in (target.refused_completion(nonsense=1), target.refused_chat(nonsense=1)):
        assert error["param"] == "nonsense"


def missing_fields_are_named(target: Target) -> None:
    """A missing field is named."""
    assert target.refused(COMPLETIONS, {})["param"] == "prompt"
    assert target.refused(CHAT, {})["param"] == "messages"


def unknown_models(target: Target) -> None:
    """An unknown model is 404 model_not_found with OpenAI's words."""
    error = target.refused_completion(status=404, model="no-such")
    assert (error["type"], error["code"]) == ("invalid_request_error", "model_not_found")
    assert "The model `no-such` does not exist" in error["message"], error["message"]


def prompts_too_long(target: Target) -> None:
    """A prompt too long is context_length_exceeded with OpenAI's words, also with the tokens to come."""
    for fields in ({"prompt": [10] * 200_000}, {"max_tokens": 10_000_000}):
        error = target.refused_completion(**fields)
        assert error["message"].startswith("This model's maximum context length is "), error["message"]
        assert error["code"] == "context_length_exceeded"


def _post(target: Target, content: bytes, content_type: str = "application/json") -> tuple[int, Body]:
    response = target.http.post(COMPLETIONS, content=content, headers={"content-type": content_type})
    error: Body = response.json()["error"]
    return response.status_code, error


def broken_json(target: Target) -> None:
    """Broken JSON, broken UTF-8, NaN and a lone surrogate are 400."""
    for content in (
        b"{",
        b"",
        b"null",
        b"[]",
        b'{"model": "\xff"}',
        b'{"model": "m", "prompt": "a", "temperature": NaN}',
        b'{"model": "m", "prompt": "a", "temperature": 1e999}',
        b'{"model": "m", "prompt": "\\ud800"}',
        b'{"model": "m", "model": "n", "prompt": "a"}',
        b'{"model": ' + b"[" * 100_000,
    ):
        status, error = _post(target, content)
        assert status == 400, (content[:40], status)
        assert error["type"] == "invalid_request_error"


def other_content_types(target: Target) -> None:
    """A body that is not declared as JSON is 415."""
    status, error = _post(target, b'{"model": "m", "prompt": "a"}', "text/plain")
    assert (status, error["type"]) == (415, "invalid_request_error")


def bodies_too_large(target: Target) -> None:
    """A body of 64 MiB is 413."""
    status, error = _post(target, b'{"prompt": "' + b"a" * 2**26 + b'"}')
    assert (status, error["type"]) == (413, "invalid_request_error")


def messages_are_ascii(target: Target) -> None:
    """The bytes of an error are ASCII."""
    response = target.post(COMPLETIONS, {"model": "höhle 😀", "prompt": "hi"})
    assert response.status_code == 404
    assert response.content.isascii()


def wrong_types_are_refused(target: Target) -> None:
    """Wrong types are refused, never converted in silence."""
    for field, value in (
        ("max_tokens", "4"),
        ("max_tokens", 4.5),
        ("n", True),
        ("stream", "yes"),
        ("stop", 5),
        ("seed", 1.5),
        ("logit_bias", []),
        ("logprobs", "2"),
        ("prompt", {"a": 1}),
        ("prompt", [1, "a"]),
        ("model", 5),
    ):
        error = target.refused(COMPLETIONS, {"prompt": "hi", field: value})
        assert error["param"] == field, (field, error["param"])


def numbers_without_a_fraction_are_integers(target: Target) -> None:
    """A number without a fraction is an integer, as in JSON Schema; one with a fraction is not."""
    whole = target.complete(max_tokens=6, n=1, seed=1)
    assert whole["usage"]["completion_tokens"] == 6
    for written in (b"6.0", b"0.6e1"):
        body = b'{"model": "%s", "prompt": "The sea is", "temperature": 0, "seed": 1.0, "max_tokens": %s}'
        content = body % (target.model.encode(), written)
        response = target.http.post(COMPLETIONS, content=content, headers={"content-type": "application/json"})
        assert response.json()["choices"][0]["text"] == whole["choices"][0]["text"]
    target.refused_completion(max_tokens=6.5)


def values_that_mean_none_are_taken(target: Target) -> None:
    """`stop` as an empty text and `top_logprobs` 0 without `logprobs` mean none; so do null and an empty list."""
    plain = target.chat()["choices"]
    settings: list[Body] = [
        {"stop": ""},
        {"stop": None},
        {"stop": []},
        {"top_logprobs": 0},
        {"tools": [], "logit_bias": {}},
    ]
    for fields in settings:
        assert target.chat(**fields)["choices"] == plain, fields


def token_ids_are_checked(target: Target) -> None:
    """Token ids that the vocabulary lacks are refused."""
    for ids in ([-1], [2**31], [2**63], [10**30]):
        target.refused_completion(prompt=ids)
    target.refused_completion(logit_bias={str(2**40): 1})
