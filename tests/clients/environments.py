"""The virtual environments of the client libraries, made by `make test`, and the variables that they get."""

import os
import sys
from pathlib import Path

CLIENTS = Path(sys.prefix) / "clients/bin/python"
NEWER_CLIENTS = Path(sys.prefix) / "newer_clients/bin/python"  # of version 3 of the openai package
# No telemetry and no downloads; what would leave this machine all the same runs into a closed port.
_VARIABLES = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LANGSMITH_TRACING": "false",
    "ANONYMIZED_TELEMETRY": "false",
    "HF_HUB_OFFLINE": "1",
    "http_proxy": "http://127.0.0.1:9",
    "https_proxy": "http://127.0.0.1:9",
    "no_proxy": "127.0.0.1",
}


def client_variables() -> dict[str, str]:
    """Return the variables of a process with a client."""
    return {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")} | _VARIABLES
