"""vLLM's fields."""

import json
import re

from tests.conformance.rules.structure import PERSON
from tests.conformance.target import Body, Target

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
GRAMMAR = 'start: ("yes" | "no") "."'
FREE: Body = {"prompt": "Answer:", "max_tokens": 60, "temperature": 1, "seed": 3}


def _warnings(answer: Body) -> str:
    return " ".join(answer.get("warnings", []))


def _holds(kind: str, text: str) -> bool:
    match kind:
        case "json":
            return set(json.loads(text)) == {"name", "age"}
        case "json_object":
            return text.lstrip().startswith("{")
        case "regex":
            return re.fullmatch("[ab]{4}", text) is not None
        case "choice":
            return text in ("red", "green")
        case _:
            return text in ("yes.", "no.")


VALUES: Body = {"json": PERSON, "json_object": True, "regex": "[ab]{4}", "choice": ["red", "green"], "grammar": GRAMMAR}


def structured_outputs_are_kept(target: Target) -> None:
    """`structured_outputs` of each kind is kept, in completions and chats."""
    for kind, value in VALUES.items():
        fields = {"structured_outputs": {kind: value}}
        text = target.answer_to(COMPLETIONS, FREE | fields)["choices"][0]["text"]
        assert _holds(kind, text), (kind, text)
    chat = target.a_chat() | {"structured_outputs": {"choice": VALUES["choice"]}}
    assert _holds("choice", target.answer_to(CHAT, chat)["choices"][0]["message"]["content"])


def one_constraint_at_a_time(target: Target) -> None:
    """Two constraints, none, and one that is not known are refused by name."""
    values: list[Body] = [{"regex": "a", "choice": ["b"]}, {}, {"structural_tag": "{}"}, {"choice": []}, {"json": 5}]
    for broken in values:
        error = target.refused("/v1/completions", {"prompt": "hi", "structured_outputs": broken})
        assert "structured_outputs" in error["message"]
        assert str(error["param"]).startswith("structured_outputs")


def guided_fields_are_kept_with_a_warning(target: Target) -> None:
    """The older `guided_*` fields still constrain, with a warning that names the new form; never in silence."""
    for kind, value in VALUES.items():
        if kind != "json_object":
            answer = target.answer_to(COMPLETIONS, FREE | {f"guided_{kind}": value})
            assert _holds(kind, answer["choices"][0]["text"]), kind
            assert f"structured_outputs.{kind}" in _warnings(answer)


def schemas_may_be_text(target: Target) -> None:
    """A schema may be given as its text, as older clients did; a text that is none is refused."""
    text = target.answer_to(COMPLETIONS, FREE | {"structured_outputs": {"json": json.dumps(PERSON)}})
    assert _holds("json", text["choices"][0]["text"])
    target.refused("/v1/completions", {"prompt": "hi", "structured_outputs": {"json": "{"}})


def special_tokens_are_a_choice(target: Target) -> None:
    """`add_special_tokens` decides about completions; in a chat, where the template does, it is named."""
    for wanted in (True, False):
        request = {"prompt": "The sea is", "max_tokens": 1, "add_special_tokens": wanted}
        counted = target.answer_to("/tokenize", {"prompt": "The sea is", "add_special_tokens": wanted})["count"]
        assert target.answer_to(COMPLETIONS, request)["usage"]["prompt_tokens"] == counted
    assert "add_special_tokens" in _warnings(target.answer_to(CHAT, target.a_chat() | {"add_special_tokens": False}))


def templates_get_their_variables(target: Target) -> None:
    """`chat_template_kwargs` are taken; those that the server decides are refused by name."""
    fields = {"chat_template_kwargs": {"enable_thinking": False, "date_string": "1 May 2026"}}
    assert target.answer_to(CHAT, target.a_chat() | fields)["choices"]
    error = target.refused_chat(chat_template_kwargs={"tools": []})
    assert "tools" in error["message"]


def thinking_fields_are_taken(target: Target) -> None:
    """`thinking_token_budget` and `include_reasoning` are taken beside each other."""
    fields = {"thinking_token_budget": 16, "include_reasoning": False}
    message = target.answer_to(CHAT, target.a_chat() | fields)["choices"][0]["message"]
    assert not message.get("reasoning")
    assert message["content"] is not None


def reports_of_its_own_are_named(target: Target) -> None:
    """Reports and options that only its server has are named in `warnings`; those that ask for nothing are not."""
    for name, value in (("return_tokens_as_token_ids", True), ("vllm_xargs", {"a": 1}), ("kv_transfer_params", {})):
        assert name in _warnings(target.answer_to(COMPLETIONS, FREE | {"max_tokens": 1, name: value})), name
    harmless = {"use_beam_search": False, "length_penalty": 1.0, "spaces_between_special_tokens": True}
    assert "warnings" not in target.answer_to(COMPLETIONS, FREE | {"max_tokens": 1} | harmless)
    assert "use_beam_search" in target.refused_completion(use_beam_search=True)["message"]


def prompts_report_their_logprobs(target: Target) -> None:
    """`prompt_logprobs` has entries by token id, each with its log-probability and text."""
    request = {"prompt": [10, 11, 12], "max_tokens": 1, "prompt_logprobs": 2}
    (choice,) = target.answer_to(COMPLETIONS, request)["choices"]
    for token_id, entries in zip((11, 12), choice["prompt_logprobs"][1:], strict=True):
        entry = entries[str(token_id)]
        assert entry["logprob"] <= 0
        assert isinstance(entry["decoded_token"], str)
        assert len(entries) in (2, 3)
