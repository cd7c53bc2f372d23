"""docs/api.md names endpoints, fields and errors that the code has."""

import re
from pathlib import Path

from pydantic import BaseModel

from caravan.server.messages.protocol.request import MessagesRequest
from caravan.server.openai.protocol.chat import ChatRequest
from caravan.server.openai.protocol.completions import CompletionRequest
from caravan.server.openai.protocol.decisions import DecisionRequest
from caravan.server.openai.protocol.embeddings import EmbeddingRequest
from caravan.server.openai.protocol.generation_request import StreamOptions
from caravan.server.openai.protocol.responses import ResponsesRequest
from caravan.server.openai.protocol.scores import RerankRequest, ScoreRequest
from caravan.server.openai.protocol.system_one import SystemOneRequest
from caravan.server.openai.protocol.tokenize import TokenizeRequest
from tests.server.openai.api import open_api

TEXT = (Path(__file__).parents[2] / "docs" / "api.md").read_text("utf-8")
GENERATION: list[type[BaseModel]] = [CompletionRequest, ChatRequest, ResponsesRequest, MessagesRequest]
MODELS: dict[str, list[type[BaseModel]]] = {
    "generation": GENERATION,
    "completions": [CompletionRequest],
    "chat": [ChatRequest],
    "responses": [ResponsesRequest],
    "embeddings": [EmbeddingRequest],
    "questions": [DecisionRequest, SystemOneRequest, ScoreRequest, RerankRequest],
    "`/tokenize`": [TokenizeRequest],
}


def rows(title: str) -> list[list[str]]:
    """Return the cells of the first table below a heading, without its head."""
    section = TEXT.partition(f"## {title}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_every_extension_is_a_field_of_its_endpoints() -> None:
    table = rows("Extensions")
    assert len(table) > 10
    for fields, endpoints, *_ in table:
        for name in re.findall(r"`([\w.*]+)`", fields):
            for endpoint in endpoints.split(", "):
                for model in MODELS[endpoint]:
                    known = {*model.model_fields, *(f"stream_options.{one}" for one in StreamOptions.model_fields)}
                    pattern = re.escape(name).replace(r"\*", ".*")
                    assert any(re.fullmatch(pattern, one) for one in known), (name, model.__name__)


async def test_every_endpoint_is_a_route_of_the_application() -> None:
    async with open_api() as api:
        routes = {*api.app.openapi()["paths"], "/", "/docs", "/openapi.json"}
    named = {path for endpoints, _ in rows("Endpoints") for path in re.findall(r"`(?:\w+ )?(/[\w/{}.-]*)`", endpoints)}
    assert named == routes
