"""Fixtures of the tests of Anthropic's API."""

from tests.server.openai.conftest import api, chat_ml

__all__ = ["api", "chat_ml"]
