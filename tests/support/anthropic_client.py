"""Anthropic's client library, connected to an application in the process of the test."""

import anthropic
import httpx2

from tests.server.openai.api import Api


def anthropic_client(api: Api) -> anthropic.AsyncAnthropic:
    """Return a client of an application."""
    http = httpx2.AsyncClient(transport=httpx2.ASGITransport(api.app), base_url="http://test")
    return anthropic.AsyncAnthropic(base_url="http://test", api_key="none", http_client=http, max_retries=0)
