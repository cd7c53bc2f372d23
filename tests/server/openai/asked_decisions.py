"""A text, three questions about it, and a request for its decisions."""

from typing import Any

from tests.server.openai.api import Api, Body, answered

PATH = "/v1/decisions"
PREDICATE = {"type": "predicate", "name": "late", "instructions": "The parcel arrived late."}
CHOICE = {
    "type": "choice",
    "instructions": "Who handles it?",
    "choices": [{"value": "carrier", "description": "transport damage"}, {"value": False}, {"value": "false"}],
}
SCORE = {
    "type": "score",
    "name": "anger",
    "instructions": [{"type": "input_text", "text": "How angry?"}, {"type": "input_json", "data": {"of": ["10"]}}],
    "levels": [{"label": "calm"}, {"label": "angry", "description": "insults"}, {"label": "furious"}],
}
TEXT = "The parcel came late and open.\n"


def a_decision(**fields: Any) -> Body:
    return {"model": "fake", "input": TEXT, "questions": [PREDICATE, CHOICE, SCORE]} | fields


async def decide(api: Api, **fields: Any) -> Body:
    return answered(await api.http.post(PATH, json=a_decision(**fields)))
