"""Fixtures of the tests of the HTTP interface."""

from collections.abc import AsyncIterator, Iterator

import pytest

from caravan.server.sandbox.chat_template import ChatTemplate
from tests.server.openai.api import CHAT_ML, Api, open_api


@pytest.fixture(scope="session")
def chat_ml() -> Iterator[ChatTemplate]:
    """A chat template; its worker serves all tests."""
    template = ChatTemplate(CHAT_ML, "<s>", "</s>")
    yield template
    template.close()


@pytest.fixture
async def api(chat_ml: ChatTemplate) -> AsyncIterator[Api]:
    """A front end whose engine says "Hello!"."""
    async with open_api(chat_template=chat_ml) as opened:
        yield opened
