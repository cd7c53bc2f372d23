"""SamplingParams: how tokens are chosen and what ends a text, under the names that requests over HTTP have."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from pydantic import ValidationError

from caravan.server.http.errors import ApiError
from caravan.server.openai.protocol.completions import CompletionRequest
from caravan.server.openai.protocol.validation import first_problem


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """The choices of one prompt, checked like the fields of a completion.

    None leaves it to the model: its generation_config.json, else OpenAI's defaults (temperature 1, top_p 1).
    Raises ValueError, which names the parameter.
    """

    n: int = 1  # choices of the prompt
    temperature: float | None = None  # 0 to 2; 0 takes the most probable token
    top_p: float | None = None
    top_k: int | None = None  # 0: all tokens
    min_p: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float | None = None
    logit_bias: Mapping[int, float] | None = None  # added to the logits of these tokens, -100 to 100
    seed: int | None = None  # makes the answer repeatable, whatever else runs; None: another one each time
    max_tokens: int | None = None  # None: 16 for a prompt, as many as fit for a chat; 0 with prompt_logprobs only
    min_tokens: int = 0  # before this many nothing but max_tokens ends a choice
    stop: str | Sequence[str] = ()  # strings that end a choice; the text ends before them
    stop_token_ids: Sequence[int] = ()  # beside the model's own end tokens
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    logprobs: int | None = None  # how many alternatives to report for each token, 0 to 20; None: no log-probabilities
    prompt_logprobs: int | None = None  # the same for the tokens of the prompt

    def __post_init__(self) -> None:
        _ = self.request  # raises ValueError

    @cached_property
    def request(self) -> CompletionRequest:
        """The HTTP request for a completion with these parameters; its prompt is a placeholder."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        body: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        for name in ("stop", "stop_token_ids"):
            if isinstance(body.get(name), Sequence) and not isinstance(body[name], str):
                body[name] = list(body[name])
        if isinstance(self.logit_bias, Mapping):
            body["logit_bias"] = {str(token_id): bias for token_id, bias in self.logit_bias.items()}
        try:
            return CompletionRequest.model_validate({"model": "", "prompt": "x"} | body)
        except ApiError as error:
            raise ValueError(error.message) from None
        except ValidationError as error:
            raise ValueError(problem_of(error, body).message) from None


def problem_of(error: ValidationError, body: dict[str, Any]) -> ApiError:
    """Return the first problem in `error`, also for values that JSON cannot represent."""
    try:
        return first_problem(error, body)
    except TypeError:
        problem = error.errors(include_url=False)[0]
        place = ".".join(map(str, problem["loc"]))
        return ApiError(400, f"`{place}` is {problem['input']!r:.60}; it has the wrong type.")
