"""A browser and a server for the tests of the page."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from tests.server.web.chromium import chromium
from tests.server.web.fake_server import FakeServer, fake_server

PATIENCE_MS = 60_000  # other tests run beside these


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser for a file of tests: beside it no other event loop may run in this thread."""
    expect.set_options(timeout=PATIENCE_MS)
    with chromium() as browser:
        yield browser


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    """A server that answers as the test says."""
    with fake_server() as fake:
        yield fake
