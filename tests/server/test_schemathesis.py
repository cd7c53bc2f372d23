"""Requests made from the published OpenAPI document: whatever they are, the answers are of that document, too.

OPENAPI_EXAMPLES says how many requests each operation gets in each phase beside those of the coverage phase, which are
about two thousand; 8 is for CI.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.running_server import running_server

pytestmark = pytest.mark.slow

ROUTES = ["/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/embeddings", "/tokenize", "/detokenize"]
EXAMPLES = os.environ.get("OPENAPI_EXAMPLES", "8")
# A document cannot say everything: a value may be refused that its schema allows, as a token id beyond the vocabulary.
NOT_DEMANDED = "positive_data_acceptance"


@pytest.mark.timeout(3600)
def test_responses_conform_to_the_openapi_document(tiny_model_path: Path, tmp_path: Path) -> None:
    with running_server(tiny_model_path, "--max-model-len", "128", "--kv-cache-memory", "1MiB") as running:
        command = [
            *[str(Path(sys.executable).with_name("schemathesis")), "run", f"{running.url}/openapi.json"],
            *["--phases", "examples,coverage,fuzzing,stateful", "--max-examples", EXAMPLES, "--seed", "1"],
            *["--checks", "all", "--exclude-checks", NOT_DEMANDED, "--continue-on-failure", "--workers", "2"],
        ]
        finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=3600, check=False)
        metrics = running.http.get("/metrics").text
        num_restarts = running.metric("engine_restarts_total")
    print(finished.stdout)
    found = re.search(r"(\d+) generated", finished.stdout)
    assert found
    assert int(found[1]) > 1000
    assert finished.returncode == 0
    assert num_restarts == 0
    for route in ROUTES:
        assert re.search(rf'^caravan_http_requests_total{{.*route="{route}",status="200"}} \d', metrics, re.MULTILINE)
