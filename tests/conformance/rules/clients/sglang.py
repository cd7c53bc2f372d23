"""SGLang's fields."""

import json

from tests.conformance.rules.structure import PERSON
from tests.conformance.target import Body, Target

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def its_constraints_are_kept(target: Target) -> None:
    """`regex`, `ebnf` and `json_schema` constrain a text; two of them together are refused."""
    request: Body = {"prompt": "Answer:", "max_tokens": 60, "temperature": 1}
    found = {}
    for name, value in (("regex", "[ab]{3}"), ("ebnf", 'start: "yes" | "no"'), ("json_schema", PERSON)):
        found[name] = target.answer_to(COMPLETIONS, request | {name: value})["choices"][0]["text"]
    assert set(found["regex"]) <= set("ab")
    assert len(found["regex"]) == 3
    assert found["ebnf"] in ("yes", "no")
    assert set(json.loads(found["json_schema"])) == {"name", "age"}
    target.refused_completion(regex="a", ebnf='start: "a"')


def thinking_has_two_spellings(target: Target) -> None:
    """`reasoning` with an effort and `custom_params` with a budget are taken; contradictions are refused."""
    for fields in ({"reasoning": {"effort": "low", "enabled": True}}, {"custom_params": {"thinking_budget": 8}}):
        assert target.answer_to(CHAT, target.a_chat() | fields)["choices"]
    target.refused_chat(reasoning={"effort": "low"}, reasoning_effort="high")


def reports_of_its_own_are_named(target: Target) -> None:
    """Its routing and reports are named in `warnings`, and what asks for another kind of answer is refused."""
    request = {"prompt": "Hi", "max_tokens": 1, "rid": "a", "return_routed_experts": True}
    warnings = " ".join(target.answer_to(COMPLETIONS, request)["warnings"])
    assert "rid" in warnings
    assert "return_routed_experts" in warnings
    for fields in ({"return_hidden_states": True}, {"lora_path": "x"}, {"input_ids": [1]}):
        (name,) = fields
        assert name in target.refused_completion(**fields)["message"]
