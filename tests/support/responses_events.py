"""The events of a streamed response."""

import json
from typing import Any

from tests.server.openai.api import Api

RESPONSES = "/v1/responses"


async def events_of(api: Api, **fields: Any) -> list[dict[str, Any]]:
    response = await api.http.post(RESPONSES, json={"model": "fake", "input": "hi", "stream": True} | fields)
    assert response.status_code == 200, response.text
    events = []
    for number, text in enumerate(response.text.removesuffix("\n\n").split("\n\n")):
        name, payload = text.split("\n")
        event = json.loads(payload.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        assert event["sequence_number"] == number
        events.append(event)
    return events
