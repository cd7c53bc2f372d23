"""OpenAI's client library, connected to an application in the process of the test."""

import httpx
import openai

from tests.server.openai.api import Api


def official(api: Api) -> openai.AsyncOpenAI:
    """Return a client of an application."""
    transport = httpx.ASGITransport(api.app)
    http = httpx.AsyncClient(transport=transport, base_url="http://test")
    return openai.AsyncOpenAI(base_url="http://test/v1", api_key="none", http_client=http, max_retries=0)  # type: ignore[arg-type]  # its httpx2 is the same
