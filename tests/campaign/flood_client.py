"""`python -m tests.campaign.flood_client URL KEY NAME NUM_CLIENTS`: requests that take long to check or to tokenize.

It is a process of its own, which lets others go first: on a machine of its own it would take no time from the server
and from who measures. It writes `ready` before it sends, and then a line with each status: 0 for a connection that the
server has closed.
"""

import asyncio
import json
import os
import random
import sys
from collections.abc import Callable
from typing import Any

import httpx

CHARACTERS = "".join(map(chr, range(0x4E00, 0x9FFF)))  # several tokens each

Request = tuple[str, dict[str, Any]]  # its route and its fields


def long_texts() -> list[Request]:
    """Return requests whose texts take long to tokenize."""
    dice = random.Random(1)
    text = "".join(dice.choices(CHARACTERS, k=200_000))  # 600 KB
    pieces = [text[start : start + 1300] for start in range(0, 195_000, 100)]
    return [
        ("/v1/completions", {"prompt": text}),
        ("/v1/completions", {"prompt": text * 13}),  # 8 MB
        ("/v1/embeddings", {"input": pieces}),
        ("/v1/embeddings", {"input": ["plain words of English " * 80 for _ in range(2048)]}),  # these fit
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": text}]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "<|im_" * 100_000}]}),
        ("/tokenize", {"prompt": text[:50_000], "return_pieces": True}),
        ("/detokenize", {"tokens": [dice.randrange(40_000) for _ in range(2**16)]}),
    ]


def slow_grammars() -> list[Request]:
    """Return requests with schemas of 6,000 words each, which take some tenths of a second to check."""
    requests: list[Request] = []
    for number in range(16):
        words = [f"{number} {word} abcdefgh" for word in range(6000)]
        schema = {"type": "object", "properties": {"a": {"enum": words}}, "required": ["a"]}
        named = {"type": "json_schema", "json_schema": {"name": "words", "schema": schema}}
        requests.append(("/v1/completions", {"prompt": "a", "max_tokens": 1, "response_format": named}))
    return requests


FLOODS: dict[str, Callable[[], list[Request]]] = {"long texts": long_texts, "slow grammars": slow_grammars}


async def flood(url: str, key: str, name: str, num_clients: int) -> None:
    """Send the requests of a flood over and over."""
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    requests = [
        (path, json.dumps({"model": "smollm2"} | fields, ensure_ascii=False).encode())
        for path, fields in FLOODS[name]()
    ]
    print("ready", flush=True)
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=120, trust_env=False) as http:

        async def one(number: int) -> None:
            while True:
                path, body = requests[number % len(requests)]
                number += 1
                try:
                    status = (await http.post(path, content=body)).status_code
                except httpx.TransportError:
                    status = 0
                print(status, flush=True)

        await asyncio.gather(*map(one, range(num_clients)), asyncio.Event().wait())


if __name__ == "__main__":
    os.nice(19)
    asyncio.run(flood(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))
