"""A hook of schemathesis: random requests about a stored response are about one that is there.

SCHEMATHESIS_HOOKS names this module. Without it they would have random ids, and the status 404. Those that follow
other requests, of the phase `stateful`, keep their ids.
"""

from typing import Any

import httpx
import schemathesis
from schemathesis import Case, HookContext
from schemathesis.generation.meta import TestPhase

PATHS = ("/v1/requests/{name}", "/v1/responses/{response_id}")
BODY = {"input": "Hello", "background": True, "max_output_tokens": 16}


@schemathesis.hook
def before_call(_: HookContext, case: Case[Any], **__: Any) -> None:
    """Put the id of a new background response into the path."""
    phase = case.meta.phase.name if case.meta else None
    if case.operation.path.startswith(PATHS) and phase != TestPhase.STATEFUL:
        base_url = case.operation.schema.get_base_url().rstrip("/")
        with httpx.Client(base_url=base_url, timeout=60, trust_env=False) as http:
            body = BODY | {"model": http.get("/v1/models").json()["data"][0]["id"]}
            response_id = http.post("/v1/responses", json=body).raise_for_status().json()["id"]
        case.path_parameters = dict.fromkeys(case.path_parameters, response_id)
