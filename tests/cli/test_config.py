"""`caravan config` and `caravan serve --print-config`: files that --config accepts, and the unit of a service."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from caravan.cli.main import make_app
from caravan.cli.service_unit import PACKAGED_COMMAND
from caravan.server.settings import Settings, load_settings

ROOT = Path(__file__).parents[2]


def printed(*words: str, **variables: str) -> str:
    shown = CliRunner().invoke(make_app(), [*words], env=variables, prog_name="caravan")
    assert shown.exit_code == 0, shown.output
    return shown.stdout


def test_the_example_has_every_option_and_its_default(tmp_path: Path) -> None:
    text = printed("config", "--example")
    assert yaml.safe_load(text) is None, "all options are commented out"
    file = tmp_path / "caravan.yaml"
    file.write_text(re.sub(r"^#(?=\w)", "", text, flags=re.MULTILINE))
    assert set(yaml.safe_load(file.read_text())) == set(Settings.model_fields) - {"config"}
    settings = load_settings({"config": str(file)}, {})
    assert settings.model_dump(exclude={"config"}) == load_settings({}, {}).model_dump(exclude={"config"})
    assert max(map(len, text.splitlines())) <= 100


def test_options_in_force_have_their_origin_and_give_the_same_settings_again(tmp_path: Path) -> None:
    file = tmp_path / "first.yaml"
    file.write_text("max-num-seqs: 3\nkv_cache_memory: 1234567\nport: 1\n")
    variables = {"CARAVAN_CONFIG": str(file), "CARAVAN_DTYPE": "float32", "CARAVAN_PORT": "2"}
    text = printed("serve", "some.gguf", "--port", "3", "--standby", "--print-config", **variables)
    for line in (
        "model: some.gguf  # MODEL",
        "port: 3  # --port",
        "standby: true  # --standby",
        "dtype: float32  # CARAVAN_DTYPE",
        f"max_num_seqs: 3  # {file}, line 1",
        f"kv_cache_memory: 1234567  # {file}, line 2",
        "#block_size: 16",
        "#weights_cache_size: 16GiB",
    ):
        assert f"\n{line}\n" in text
    again = tmp_path / "again.yaml"
    again.write_text(text)
    settings = load_settings({"config": str(again)}, {})
    expected = (3, "float32", 3, 1234567, True, "some.gguf")
    fields = ("port", "dtype", "max_num_seqs", "kv_cache_memory", "standby", "model")
    assert tuple(getattr(settings, name) for name in fields) == expected


def test_a_key_is_never_printed() -> None:
    text = printed("config", CARAVAN_API_KEY="top-secret-key")
    assert "top-secret-key" not in text
    assert "\n#api_key:  # CARAVAN_API_KEY, not shown\n" in text


def test_wrong_options_are_one_line() -> None:
    both = CliRunner().invoke(make_app(), ["config", "--example", "--systemd"])
    assert (both.exit_code, both.stderr.count("\n")) == (2, 1)
    wrong = CliRunner().invoke(make_app(), ["config"], env={"CARAVAN_PORT": "x"})
    assert (wrong.exit_code, wrong.stderr.count("\n")) == (2, 1)
    assert "--port (CARAVAN_PORT)" in wrong.stderr


def test_the_unit_has_the_command_of_this_installation() -> None:
    command = re.search(
        r"^ExecStart=(\S+(?: -m caravan)?) serve --config ", printed("config", "--systemd"), re.MULTILINE
    )
    assert command
    assert command[1] in (str(Path(sys.executable).with_name("caravan")), f"{sys.executable} -m caravan")


def test_the_unit_in_the_documents_is_the_packaged_one() -> None:
    packaged = (ROOT / "caravan/cli/caravan.service").read_text()
    assert f"```ini\n{packaged}```" in (ROOT / "docs/operations.md").read_text()
    assert packaged.count(PACKAGED_COMMAND) == 1
    seconds = re.search(r"^TimeoutStopSec=(\d+)$", packaged, re.MULTILINE)
    assert seconds
    assert int(seconds[1]) > Settings.model_fields["drain_timeout"].default


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_finds_nothing_wrong_in_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / "caravan.service"
    for text, is_right in ((printed("config", "--systemd"), True), ("[Service]\nExecStart=/no/such/file\n", False)):
        unit.write_text(text)
        command = ["systemd-analyze", "verify", "--man=no", str(unit)]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (found.returncode == 0) == is_right, found.stderr
        ours = [line for line in found.stderr.splitlines() if "caravan.service" in line]
        assert (not ours) == is_right, ours
