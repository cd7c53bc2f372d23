"""caravan deploy."""

import os
import time
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
import yaml

from caravan.cli.fail import USAGE_ERROR, fail
from caravan.server.settings import WrongSettings, replica_settings

IMPORT_PATH = "caravan.server.ray_app:engines"
APPLICATIONS = "/api/serve/applications/"  # of the dashboard of Ray
POLL_SECONDS = 1.0
_END_STATES = ("RUNNING", "DEPLOY_FAILED", "UNHEALTHY")


def deploy(
    config: Annotated[Path, typer.Argument(help="YAML file of Ray Serve.", metavar="CONFIG")],
    address: Annotated[
        str, typer.Option(help="URL of the dashboard of Ray, whose variable is RAY_DASHBOARD_ADDRESS.", metavar="URL")
    ] = "",
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the replicas.", metavar="SECONDS")] = 600.0,
) -> None:
    """Start or change replicas on a running cluster of Ray.

    CONFIG is a file as `serve deploy` takes it. Its applications with the
    import path caravan.server.ray_app:engines have the options of an engine
    as args. The token of the cluster is in RAY_AUTH_TOKEN or in
    ~/.ray/auth_token. `caravan serve --engines ray://NAME` serves one.
    """
    body = _read(config)
    url = address or os.environ.get("RAY_DASHBOARD_ADDRESS") or "http://127.0.0.1:8265"
    try:
        with httpx.Client(base_url=url, headers=_authorization(), timeout=30.0) as http:
            response = http.put(APPLICATIONS, json=body)
            if response.status_code != 200:
                fail(f"Ray at {url} refused the file with status {response.status_code}: {response.text[:300]}")
            _wait(http, [one["name"] for one in body["applications"]], timeout)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        fail(f"Ray at {url} does not respond: {str(error) or type(error).__name__}. Check --address.")


def _read(config: Path) -> dict[str, Any]:
    """Return the content of a file whose applications of ours have valid arguments; exits with a message otherwise."""
    try:
        body = yaml.safe_load(config.read_text("utf-8"))
        applications = body["applications"]
        names = [str(one["name"]) for one in applications]
        for one in applications:
            if one["import_path"] == IMPORT_PATH:
                replica_settings(one.get("args") or {})
    except WrongSettings as error:
        fail(f"{config}: {error}", USAGE_ERROR)
    except (OSError, ValueError, yaml.YAMLError) as error:
        fail(f"Cannot read {config}: {error}")
    except (TypeError, KeyError, AttributeError):
        fail(f"{config} is no file of Ray Serve: it needs `applications`, a list with `name` and `import_path`.")
    assert names
    result: dict[str, Any] = body
    return result


def _authorization() -> dict[str, str]:
    """Return the header with the token of the cluster, if there is one."""
    token = os.environ.get("RAY_AUTH_TOKEN", "")
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if not token and file.is_file():
        token = file.read_text("utf-8").strip()
    return {"authorization": f"Bearer {token}"} if token else {}


def _wait(http: httpx.Client, names: list[str], timeout_seconds: float) -> None:
    """Print the state of each application when it changes, until all are running; exits with 1 if one fails."""
    shown: dict[str, str] = {}
    deadline = time.monotonic() + timeout_seconds
    while True:
        known = http.get(APPLICATIONS).raise_for_status().json()["applications"]
        states = {name: known.get(name, {}) for name in names}
        for name, state in states.items():
            status = str(state.get("status", "unknown"))
            if shown.get(name) != status:
                shown[name] = status
                typer.echo(f"{name}: {status}")
        if failed := [name for name in names if shown[name] in ("DEPLOY_FAILED", "UNHEALTHY")]:
            fail(f"{failed[0]}: {str(states[failed[0]].get('message', ''))[-500:]}")
        if all(shown[name] == "RUNNING" for name in names):
            return
        if time.monotonic() > deadline:
            fail(f"Not all replicas were ready within {timeout_seconds:g} seconds. Ray goes on starting them.")
        time.sleep(POLL_SECONDS)
