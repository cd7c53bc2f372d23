"""What tests that drive the page with a browser share."""

import pytest

from tests.server.web.chromium import chromium_path

IN_BROWSER = [
    pytest.mark.browser,
    pytest.mark.real_model,
    pytest.mark.skipif(chromium_path() is None, reason="chromium is not installed"),
]


FRAMES_A_SECOND = (
    "() => new Promise(done => { let n = 0; const began = performance.now(); const count = () => {"
    " n++; performance.now() - began < 2000 ? requestAnimationFrame(count) : done(n / 2) };"
    " requestAnimationFrame(count) })"
)
