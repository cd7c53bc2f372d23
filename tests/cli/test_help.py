"""The help of every command at 80 columns, and what it costs to show it."""

import re
import resource
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from caravan import __version__
from caravan.cli.command_groups import GROUPS as COMMAND_GROUPS
from caravan.cli.main import make_app
from caravan.cli.serve_options import serve_options
from caravan.server.option_groups import GROUPS
from caravan.server.settings import Settings

pytestmark = pytest.mark.slow

ROOT: Any = get_command(make_app())
COMMANDS = [[], *([name] for name in ROOT.commands)]


def help_of(command: list[str]) -> str:
    shown = CliRunner().invoke(make_app(), [*command, "--help"], env={"COLUMNS": "80"}, prog_name="caravan")
    assert shown.exit_code == 0
    return shown.output


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command) or "caravan")
class TestHelp:
    def test_nothing_is_cut_off_at_80_columns(self, command: list[str]) -> None:
        text = help_of(command)
        assert "…" not in text
        assert "..." not in text.replace("COMMAND [ARGS]...", "")
        for line in text.splitlines():
            assert len(line) <= 80
            assert not re.search(r"--[a-z-]*-$", line), "an option is broken at its hyphen"

    def test_every_option_has_its_own_help(self, command: list[str]) -> None:
        text = help_of(command)
        parameters = (ROOT.commands[command[0]] if command else ROOT).params
        helps = [parameter.help for parameter in parameters if parameter.name != "model" or parameter.help]
        assert all(helps)
        assert len(set(helps)) == len(helps)
        for parameter in parameters:
            for name in parameter.opts if parameter.param_type_name == "option" else [parameter.metavar]:
                assert re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text), name

    def test_the_first_sentence_is_a_command(self, command: list[str]) -> None:
        sentence = help_of(command).split("\n\n")[1].strip()
        assert re.fullmatch(r"[A-Z][^.]*\.(?: [A-Z].*)?", sentence)


def test_the_options_of_serve_stand_in_groups() -> None:
    text = help_of(["serve"])
    groups = [str(group.__doc__).rstrip(".") for group in GROUPS]
    assert groups == [
        *("Model", "LoRA adapters", "Memory", "Limits", "Batches", "Resumable responses"),
        *("Network", "Security", "Logs and metrics"),
    ]
    assert re.findall(r"^(\w[\w ]*):$", text, re.MULTILINE) == ["Options", *groups]
    sections = dict(zip(["Options", *groups], re.split(r"^\w[\w ]*:$", text, flags=re.MULTILINE)[1:], strict=True))
    for option in serve_options():
        assert option.usage in sections[option.group], option
        assert re.search(rf"\[env:\s+{option.variable}[];]", sections[option.group])


def test_every_setting_is_in_one_group_and_described() -> None:
    grouped = [name for group in GROUPS for name in group.model_fields]
    assert sorted([*grouped, "config"]) == sorted(Settings.model_fields)
    for name, field in Settings.model_fields.items():
        assert re.fullmatch(r"[A-Z].*\.", str(field.description)), name


@pytest.mark.parametrize(
    ("name", "usage", "notes"),
    [
        ("port", "--port <int>", "env: CARAVAN_PORT; default: 8000; 0 to 65535"),
        ("max_wait", "--max-wait <float>", "env: CARAVAN_MAX_WAIT; more than 0"),
        ("drain_timeout", "--drain-timeout <float>", "env: CARAVAN_DRAIN_TIMEOUT; default: 30; at least 0"),
        ("kv_cache_memory", "--kv-cache-memory <size>", "env: CARAVAN_KV_CACHE_MEMORY; at least 1"),
        ("max_inter_token_latency", "--max-inter-token-latency <duration>", "env: CARAVAN_MAX_INTER_TOKEN_LATENCY"),
        ("device", "--device <auto|cpu|cuda>", "env: CARAVAN_DEVICE; default: auto"),
        ("speculation", "--speculation <auto|on|off>", "env: CARAVAN_SPECULATION; default: auto"),
        ("tls_key", "--tls-key <path>", "env: CARAVAN_TLS_KEY"),
        ("trusted_proxies", "--trusted-proxies <str>", "env: CARAVAN_TRUSTED_PROXIES"),
        ("insecure", "--insecure", "env: CARAVAN_INSECURE"),
        ("model", "[MODEL]", "env: CARAVAN_MODEL; default: smollm2"),
    ],
)
def test_an_option_shows_its_type_variable_default_and_bounds(name: str, usage: str, notes: str) -> None:
    (option,) = (option for option in serve_options() if option.name == name)
    assert (option.usage, option.notes) == (usage, notes)


def test_the_list_of_commands_repeats_the_first_sentence_of_each() -> None:
    summaries = {name: text for group in COMMAND_GROUPS.values() for name, text in group.items()}
    assert {name: ROOT.commands[name].get_short_help_str(100) for name in summaries} == summaries


def test_an_unknown_command_is_named_with_its_neighbour() -> None:
    done = CliRunner().invoke(make_app(), ["serv"], prog_name="caravan")
    assert done.exit_code == 2
    assert done.output.endswith("No such command 'serv'. Did you mean 'serve'?\n")


def test_the_version_is_an_option() -> None:
    assert CliRunner().invoke(make_app(), ["--version"]).output == f"caravan {__version__}\n"


@pytest.mark.parametrize(
    ("words", "variables"),
    [
        (["--version"], {}),
        (["--help"], {}),
        (["serve", "--help"], {}),
        ([], {"_CARAVAN_COMPLETE": "complete_bash", "COMP_WORDS": "caravan\nserve\n--d", "COMP_CWORD": "2"}),
        ([], {"_CARAVAN_COMPLETE": "complete_bash", "COMP_WORDS": "caravan\nserve\ns", "COMP_CWORD": "2"}),
    ],
)
class TestStart:
    def test_neither_torch_nor_the_web_framework_is_imported(
        self, words: list[str], variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        imported = run(words, variables, monkeypatch, "-X", "importtime").stderr
        names = {line.rpartition("|")[2].strip() for line in imported.splitlines()}
        assert "caravan.cli.main" in names
        assert not names & {"torch", "numpy", "fastapi", "uvicorn", "transformers"}
        assert ("caravan.server.settings" in names) == ("serve" in words or "COMP_WORDS" in variables)

    @pytest.mark.timing
    def test_it_takes_less_than_half_a_second_of_a_processor(
        self, words: list[str], variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Half a second where Python itself starts in 10 ms or less; slower processors have that much more time."""
        monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)  # as installed: compiled at the latest in run one

        def seconds(start: Callable[[], object]) -> float:
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            start()
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

        def start_python() -> None:
            subprocess.run([sys.executable, "-I", "-S", "-c", ""], check=True)

        python = min(seconds(start_python) for _ in range(5))
        assert min(seconds(lambda: run(words, variables, monkeypatch)) for _ in range(5)) < 0.5 * max(1, python / 0.01)


def run(
    words: list[str], variables: dict[str, str], monkeypatch: pytest.MonkeyPatch, *options: str
) -> "subprocess.CompletedProcess[str]":
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    command = [sys.executable, *options, "-m", "caravan", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout
    return done
