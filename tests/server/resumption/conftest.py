"""Fixtures of the tests of responses that outlive connections."""

from tests.server.openai.conftest import api, chat_ml

__all__ = ["api", "chat_ml"]
