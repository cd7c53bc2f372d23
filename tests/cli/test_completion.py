"""Completion in bash: commands, options, their choices and the names of fetched models."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from caravan.download.resolve import ALIASES, DEFAULT_MODEL
from tests.cli.hub_cache import write_cached

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the command `caravan`, and caches that hold the default model and two others."""
    command = tmp_path / "bin" / "caravan"
    command.parent.mkdir()
    command.write_text(f"#!{sys.executable}\nfrom caravan.cli.main import main\nmain()\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:/usr/bin:/bin")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    write_cached(tmp_path / "hub", "org/one", {"one.gguf": b"1"})
    write_cached(tmp_path / "hub", "org/two", {"config.json": b"{}", "model.safetensors": b"2"})
    path = tmp_path / "cache/caravan/models" / Path(ALIASES[DEFAULT_MODEL].member).name
    path.parent.mkdir(parents=True)
    path.touch()
    return tmp_path


def complete(*words: str) -> list[str]:
    """Return what bash offers for the last of the words of a `caravan` command line."""
    line = " ".join(f"'{word}'" for word in ("caravan", *words))
    script = f"""
        eval "$(caravan --show-completion bash)" || exit 1
        COMP_WORDS=({line}); COMP_CWORD={len(words)}
        _caravan_completion caravan; printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    return bash(script).split()


def bash(script: str) -> str:
    return subprocess.run(["bash", "--norc", "-c", script], capture_output=True, text=True, check=True).stdout


@pytest.mark.usefixtures("folder")
class TestBash:
    def test_commands_are_completed(self) -> None:
        assert complete("s") == ["serve"]
        assert {"serve", "pull", "list", "rm", "chat"} <= set(complete(""))

    def test_options_are_completed(self) -> None:
        assert complete("serve", "--max-n") == ["--max-num-seqs"]
        assert "--kv-cache-memory" in complete("plan", "--kv")

    def test_choices_are_completed(self) -> None:
        assert complete("serve", "--device", "c") == ["cpu", "cuda"]
        assert complete("plan", "--quantization", "int") == ["int8", "int4"]

    @pytest.mark.parametrize("words", [("serve",), ("pull",), ("inspect",), ("plan",), ("rm",), ("chat", "--model")])
    def test_names_of_fetched_models_are_completed(self, words: tuple[str, ...]) -> None:
        assert complete(*words, "org/") == ["org/one:one", "org/two"]
        assert complete(*words, "smol") == [DEFAULT_MODEL]

    def test_a_model_that_is_not_fetched_is_offered_where_it_would_be_fetched(self, folder: Path) -> None:
        shutil.rmtree(folder / "cache")
        assert complete("serve", "smol") == [DEFAULT_MODEL]
        assert complete("rm", "smol") == []

    def test_a_cache_that_cannot_be_read_completes_nothing(self, folder: Path) -> None:
        shutil.rmtree(folder / "hub")
        (folder / "hub").touch()
        assert complete("rm", "org") == []


def test_completion_is_installed_for_the_current_shell(folder: Path) -> None:
    (folder / ".bashrc").write_text("# mine\n")
    assert "completion installed" in bash("caravan --install-completion; true")
    assert (folder / ".bashrc").read_text().startswith("# mine\n")
    script = "source ~/.bashrc; complete -p caravan"
    assert "_caravan_completion" in bash(script)
