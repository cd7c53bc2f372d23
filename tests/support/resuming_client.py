"""What a client does with a stream whose connection was cut."""

import itertools
import json
import re
from typing import Any

RESUME = {"x-caravan-resume": "1"}


def whole_events(text: str) -> list[tuple[int, str]]:
    """Return the events of which a client has every byte, as (id, the rest); what follows the last one is dropped."""
    found = re.findall(r"id: (\d+)\n(.*?)\n\n", re.sub(r"(?<![^\n]): keep-alive\n\n", "", text), re.DOTALL)
    return [(int(number), rest) for number, rest in found]


def payloads(events: list[tuple[int, str]]) -> list[Any]:
    """Return the JSON values of the events, which must be numbered from 1, and [DONE] as a string."""
    assert [number for number, _ in events] == [*itertools.islice(itertools.count(1), len(events))]
    texts = [rest.partition("data: ")[2] for _, rest in events]
    return [text if text == "[DONE]" else json.loads(text) for text in texts]


def text_of(events: list[tuple[int, str]]) -> str:
    """Return the text of completions, chats and responses."""
    text = ""
    for payload in payloads(events):
        if payload != "[DONE]" and payload.get("type") == "response.output_text.delta":
            text += payload["delta"]
        elif payload != "[DONE]":
            for choice in payload.get("choices", ()):
                text += choice["text"] if "text" in choice else choice["delta"].get("content") or ""
    return text
