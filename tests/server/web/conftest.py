"""A browser for the tests of the page."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from tests.server.web.chromium import chromium


@pytest.fixture
def browser() -> Iterator[Browser]:
    """A browser for one test: beside it no other event loop may run in this thread."""
    with chromium() as browser:
        yield browser
