"""What tests that drive the page with a browser share."""

import pytest

from tests.server.web.chromium import chromium_path

BROWSER = [
    pytest.mark.browser,
    pytest.mark.skipif(chromium_path() is None, reason="chromium is not installed"),
]
SLOW_BROWSER = [*BROWSER, pytest.mark.slow]
IN_BROWSER = [*BROWSER, pytest.mark.real_model]
