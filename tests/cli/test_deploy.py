"""caravan deploy against a dashboard of Ray that the test plays, and what is said without Ray."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from caravan.cli import deploy as module
from caravan.cli.main import make_app
from caravan.cli.missing_extra import missing_extra
from tests.support.http_server import QuietHandler, serving

CONFIG = """\
applications:
  - name: caravan
    import_path: caravan.server.ray_app:engines
    route_prefix: null
    args: {model: smollm2, kv_cache_memory: 512MiB}
  - name: other
    import_path: some.other:app
"""


class Dashboard:
    """What it was sent, and the states that it reports, one after the other."""

    def __init__(self, *states: dict[str, Any], status: int = 200) -> None:
        self.states = [*states]
        self.status = status
        self.body: Any = None
        self.headers: dict[str, str] = {}

    @contextmanager
    def serving(self) -> Iterator[str]:
        dashboard = self

        class Handler(QuietHandler):
            def do_PUT(self) -> None:
                dashboard.headers = dict(self.headers)
                dashboard.body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                self.reply(dashboard.status, {"error": "no"})

            def do_GET(self) -> None:
                states = dashboard.states.pop(0) if len(dashboard.states) > 1 else dashboard.states[0]
                self.reply(200, {"applications": states})

            def reply(self, status: int, body: Any) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        with serving(Handler) as url:
            yield url


def run(*words: str, **variables: str) -> Any:
    return CliRunner().invoke(make_app(), ["deploy", *words], env={"RAY_AUTH_TOKEN": "", **variables})


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(module, "POLL_SECONDS", 0.01)
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    return path


def of_all(status: str, **more: str) -> dict[str, Any]:
    return {name: {"status": status, **more} for name in ("caravan", "other")}


def test_states_are_printed_until_all_applications_run(config: Path) -> None:
    dashboard = Dashboard({}, of_all("DEPLOYING"), of_all("DEPLOYING"), of_all("RUNNING"))
    with dashboard.serving() as url:
        done = run(str(config), "--address", url)
    assert (done.exit_code, done.output.splitlines()) == (
        0,
        [f"{name}: {status}" for status in ("unknown", "DEPLOYING", "RUNNING") for name in ("caravan", "other")],
    )
    assert dashboard.body["applications"][0]["args"] == {"model": "smollm2", "kv_cache_memory": "512MiB"}
    assert "Authorization" not in {name.title() for name in dashboard.headers}


@pytest.mark.parametrize("is_file", [True, False])
def test_the_token_comes_from_the_variable_or_from_rays_file(config: Path, tmp_path: Path, is_file: bool) -> None:
    if is_file:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("secret\n")
    dashboard = Dashboard(of_all("RUNNING"))
    with dashboard.serving() as url:
        done = run(str(config), RAY_DASHBOARD_ADDRESS=url, RAY_AUTH_TOKEN="" if is_file else "secret")
    assert done.exit_code == 0, done.output
    assert {name.lower(): value for name, value in dashboard.headers.items()}["authorization"] == "Bearer secret"


def test_an_application_that_fails_ends_the_command_with_its_message(config: Path) -> None:
    with Dashboard(of_all("DEPLOY_FAILED", message="out of\nmemory")).serving() as url:
        done = run(str(config), "--address", url)
    assert done.exit_code == 1
    assert done.output.splitlines()[-1] == "caravan: out of memory"


def test_a_refused_file_and_a_long_wait_are_errors(config: Path) -> None:
    with Dashboard({}, status=401).serving() as url:
        done = run(str(config), "--address", url)
        assert (done.exit_code, done.output) == (
            1,
            f'Ray at {url} refused the file with status 401: {{"error": "no"}}\n',
        )
    with Dashboard(of_all("DEPLOYING")).serving() as url:
        done = run(str(config), "--address", url, "--timeout", "0")
        assert "Not all replicas were ready within 0 seconds." in done.output
        assert done.exit_code == 1


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        ("applications: 1", 1, "is no file of Ray Serve"),
        ("a: [", 1, "Cannot read"),
        (CONFIG.replace("512MiB", "much"), 2, "--kv-cache-memory"),
        (
            CONFIG.replace("model: smollm2", "port: 80"),
            2,
            "port is no option of a replica. Its options are block_size,",
        ),
        (CONFIG.replace("model: smollm2", "draft_model: x, speculation: off"), 2, "--draft-model needs --speculation"),
    ],
)
def test_a_wrong_file_is_an_error_before_anything_is_sent(config: Path, text: str, code: int, says: str) -> None:
    config.write_text(text)
    done = run(str(config), "--address", "http://127.0.0.1:9")
    assert (done.exit_code, says in done.output) == (code, True), done.output
    assert len(done.output.splitlines()) == 1


def test_a_missing_file_and_a_missing_cluster_are_errors(config: Path, tmp_path: Path) -> None:
    assert "Cannot read" in run(str(tmp_path / "none.yaml")).output
    done = run(str(config), "--address", "http://127.0.0.1:9")
    assert "Ray at http://127.0.0.1:9 does not respond" in done.output
    assert done.exit_code == 1


def test_a_server_of_replicas_without_ray_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "caravan.server.replicas.ray_cluster", raising=False)
    done = CliRunner().invoke(make_app(), ["serve", "--engines", "ray://caravan", "--port", "0"])
    assert done.exit_code == 1
    assert done.output == "Ray is not installed. Install it with: pip install 'caravan-llm[ray]'\n"
    with pytest.raises(ModuleNotFoundError):
        missing_extra(ModuleNotFoundError("x", name="something"))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--engines", "ray://head:10001"], "is not ray:// and the name of an application"),
        (["--engines", "caravan"], "is not ray:// and the name of an application"),
        (["--engines", "ray://a", "--kv-cache-memory", "1GiB"], "--kv-cache-memory cannot be combined with --engines"),
        (["--engines", "ray://a", "--sleep-after", "1m"], "--sleep-after cannot be combined with --engines"),
    ],
)
def test_options_of_engines_cannot_be_given_to_a_server_of_replicas(words: list[str], says: str) -> None:
    done = CliRunner().invoke(make_app(), ["serve", *words])
    assert (done.exit_code, says in done.output) == (2, True), done.output
