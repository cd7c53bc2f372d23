"""llama.cpp's fields."""

import json

from tests.conformance.rules.structure import PERSON
from tests.conformance.target import Body, Target

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def _warnings(answer: Body) -> str:
    return " ".join(answer.get("warnings", []))


def schemas_stand_beside_the_type(target: Target) -> None:
    """A schema beside `json_object`, or alone as `json_schema`, is kept."""
    form = {"response_format": {"type": "json_object", "schema": PERSON}}
    for fields in (form, {"json_schema": PERSON}):
        request = target.a_chat() | {"max_tokens": 100} | fields
        (choice,) = target.answer_to(CHAT, request)["choices"]
        assert set(json.loads(choice["message"]["content"])) == {"name", "age"}


def its_grammars_are_not_misread(target: Target) -> None:
    """A GBNF grammar is refused with the form that is read here, not read as something else."""
    error = target.refused_completion(grammar='root ::= "yes" | "no"')
    assert "Lark" in error["message"]
    assert error["param"] == "grammar"


def defaults_that_its_clients_send_are_silent(target: Target) -> None:
    """The defaults that its clients always send give no warning."""
    defaults: Body = {
        "cache_prompt": True,
        "id_slot": -1,
        "n_predict": -1,
        "n_probs": 0,
        "mirostat": 0,
        "repeat_penalty": 1.0,
        "typical_p": 1.0,
        "dry_multiplier": 0.0,
        "xtc_probability": 0.0,
        "dynatemp_range": 0.0,
        "timings_per_token": False,
        "reasoning_format": "none",
        "thinking_budget_tokens": -1,
        "top_k": 40,
        "min_p": 0.05,
    }
    answer = target.answer_to(CHAT, target.a_chat() | defaults)
    assert answer["choices"]
    assert "warnings" not in answer, answer["warnings"]


def its_samplers_are_named(target: Target) -> None:
    """Samplers that only its server has are named in `warnings`, with the field to use where there is one."""
    for name, value in (("repeat_penalty", 1.2), ("mirostat", 2), ("dry_multiplier", 0.8), ("samplers", ["top_k"])):
        assert name in _warnings(target.answer_to(CHAT, target.a_chat() | {name: value})), name
    assert "repetition_penalty" in _warnings(target.answer_to(CHAT, target.a_chat() | {"repeat_penalty": 1.2}))


def lengths_have_another_name(target: Target) -> None:
    """`n_predict` is refused with the name of the limit here."""
    assert "max_tokens" in target.refused_completion(n_predict=8)["message"]


def texts_have_another_name(target: Target) -> None:
    """`/tokenize` refuses `content` with the name that is read here."""
    assert "prompt" in target.refused("/tokenize", {"content": "hi"})["message"]
    ids = target.answer_to("/tokenize", {"prompt": "hi"})["tokens"]
    assert "hi" in target.answer_to("/detokenize", {"tokens": ids})["prompt"]


def thinking_is_switched_off(target: Target) -> None:
    """`reasoning_effort` none, and `chat_template_kwargs` that mean the same, are taken together."""
    fields = {"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": False}}
    message = target.answer_to(CHAT, target.a_chat() | fields)["choices"][0]["message"]
    assert not message.get("reasoning_content")
    assert message["content"] is not None
