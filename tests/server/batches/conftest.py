"""Fixtures of the tests of batches."""

from tests.server.openai.conftest import chat_ml

__all__ = ["chat_ml"]
