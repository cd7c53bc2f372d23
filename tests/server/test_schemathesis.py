"""Requests made from the published OpenAPI document: whatever they are, the answers are of that document, too.

OPENAPI_EXAMPLES says how many random requests each operation gets; 8 is for CI. The coverage phase, which tries each
field at its limits, makes seven thousand more: `make test EXTENT=full`.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.extent import extent, is_full
from tests.support.running_server import running_server

pytestmark = pytest.mark.slow

ROUTES = [
    *("/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/embeddings"),
    *("/v1/messages", "/v1/messages/count_tokens"),
    *("/v1/decisions", "/v1/systemone", "/v1/score", "/v1/rerank", "/tokenize", "/detokenize"),
    *("/api/chat", "/api/generate", "/api/embed", "/api/embeddings", "/api/show", "/api/tags", "/api/ps"),
    *("/v1/requests/{name}/stream", "/v1/responses/{response_id}", "/v1/responses/{response_id}/cancel"),
]
ROOT = Path(__file__).parents[2]
HOOKS = "tests.support.stored_responses"  # not imported: that takes seconds
EXAMPLES = os.environ.get("OPENAPI_EXAMPLES", "8")
KILLS = "/v1/learn/kill_engine"  # on purpose: tests/server/learn/test_kill.py has its requests
# A document cannot say everything: a value may be refused that its schema allows, as a token id beyond the vocabulary.
NOT_DEMANDED = "positive_data_acceptance"


@pytest.mark.timeout(3600)
def test_responses_conform_to_the_openapi_document(tiny_model_path: Path, tmp_path: Path) -> None:
    with running_server(tiny_model_path, "--max-model-len", "512", "--kv-cache-memory", "1MiB") as running:
        phases = f"examples,{'coverage,' if is_full() else ''}fuzzing,stateful"
        command = [
            *[str(Path(sys.executable).with_name("schemathesis")), "run", f"{running.url}/openapi.json"],
            *["--phases", phases, "--max-examples", EXAMPLES, "--seed", "1"],
            *["--checks", "all", "--exclude-checks", NOT_DEMANDED, "--continue-on-failure", "--workers", "2"],
            *["--exclude-path", KILLS],
        ]
        environ = {**os.environ, "SCHEMATHESIS_HOOKS": HOOKS, "PYTHONPATH": str(ROOT)}
        finished = subprocess.run(
            command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=3600, check=False
        )
        metrics = running.http.get("/metrics").text
        num_restarts = running.metric("engine_restarts_total")
    print(finished.stdout)
    found = re.search(r"(\d+) generated", finished.stdout)
    assert found
    assert int(found[1]) > extent(1000, 100)
    assert finished.returncode == 0
    assert num_restarts == 0
    for route, status in [*((route, 200) for route in ROUTES), ("/v1/requests/{name}", 204)]:
        assert f'route="{route}",status="{status}"}} ' in metrics, route
