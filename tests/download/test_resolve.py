"""From the MODEL argument to a path: what is on disk, aliases, which file of several."""

import hashlib
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from caravan.download.errors import ModelNotFound, ModelUnavailable
from caravan.download.hub import choose_gguf
from caravan.download.resolve import (
    ALIASES,
    DEFAULT_MODEL,
    find_on_disk,
    is_path_looking,
    models_folder,
    resolve_model,
)
from tests.download.wheels import ignore_progress


class TestOnDisk:
    def test_of_a_folder_its_one_gguf_file_is_taken(self, tmp_path: Path) -> None:
        for name in ("a.gguf", "tokenizer.model"):
            (tmp_path / name).touch()
        assert resolve_model(str(tmp_path), ignore_progress) == tmp_path / "a.gguf"

    def test_a_folder_without_a_gguf_file_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ModelNotFound, match=r"holds no model: no \.gguf file"):
            resolve_model(str(tmp_path), ignore_progress)

    @pytest.mark.parametrize("files", [("config.json", "model.safetensors"), ("params.json", "consolidated.00.pth")])
    def test_a_folder_that_is_a_model_is_taken_itself(self, tmp_path: Path, files: tuple[str, ...]) -> None:
        for name in files:
            (tmp_path / name).touch()
        assert resolve_model(str(tmp_path), ignore_progress) == tmp_path

    def test_of_a_model_in_several_gguf_files_the_first_is_taken(self, tmp_path: Path) -> None:
        for number in (1, 2, 3):
            (tmp_path / f"m-{number:05}-of-00003.gguf").touch()
        assert resolve_model(str(tmp_path), ignore_progress) == tmp_path / "m-00001-of-00003.gguf"

    def test_a_llama2c_file_is_taken_as_it_is(self, tmp_path: Path) -> None:
        (tmp_path / "stories15M.bin").touch()
        assert resolve_model(str(tmp_path / "stories15M.bin"), ignore_progress) == tmp_path / "stories15M.bin"

    def test_a_folder_with_several_gguf_files_is_refused_with_their_names(self, tmp_path: Path) -> None:
        for name in ("a.gguf", "b.gguf"):
            (tmp_path / name).touch()
        with pytest.raises(ModelNotFound, match="Name one: a.gguf, b.gguf"):
            resolve_model(str(tmp_path), ignore_progress)

    @pytest.mark.parametrize("name", ["a.gguf", "A.GGUF"])
    def test_a_gguf_file_is_taken_as_it_is(self, tmp_path: Path, name: str) -> None:
        path = tmp_path / name
        path.touch()
        assert resolve_model(str(path), ignore_progress) == path

    def test_a_relative_path_stays_relative(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        Path("org").mkdir()
        Path("org/name").mkdir()
        Path("org/name/a.gguf").touch()
        assert resolve_model("org/name", ignore_progress) == Path("org/name/a.gguf")

    def test_a_tilde_is_the_home_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        (tmp_path / "a.gguf").touch()
        assert resolve_model("~/a.gguf", ignore_progress) == tmp_path / "a.gguf"

    @pytest.mark.parametrize("model", ["./a", "/no/such", "~/no-such", "a.gguf", "a/b.gguf", "a/b/c", "../x", "A.GGUF"])
    def test_a_path_that_is_not_there_is_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ModelNotFound, match=re.escape(str(Path(model).expanduser()))):
            resolve_model(model, ignore_progress)

    def test_a_file_of_another_kind_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "model.onnx"
        path.touch()
        with pytest.raises(ModelNotFound, match=r"neither a folder nor a .gguf or llama2.c .bin file"):
            resolve_model(str(path), ignore_progress)

    def test_a_home_of_nobody_is_not_found(self) -> None:
        with pytest.raises(ModelNotFound, match="Cannot open ~no-such-user-here/a"):
            resolve_model("~no-such-user-here/a", ignore_progress)

    def test_a_name_too_long_for_the_disk_is_not_found(self) -> None:
        with pytest.raises(ModelNotFound, match="Cannot open"):
            resolve_model("/" + "a" * 300, ignore_progress)

    @pytest.mark.parametrize("model", ["org/name", "org/name:Q4_K_M", "org/name:file.gguf", "smollm2", "word"])
    def test_an_id_does_not_look_like_a_path(self, model: str) -> None:
        assert not is_path_looking(model)
        assert find_on_disk(model) is None

    @pytest.mark.parametrize("model", ["", "word", "org/", "a b/c", "org/name:"])
    def test_what_is_no_model_says_what_would_be(self, model: str) -> None:
        with pytest.raises(ModelNotFound, match="Give smollm2, a .gguf file, a folder, or a Hugging Face id"):
            resolve_model(model, ignore_progress)


class TestCacheFolder:
    def test_it_follows_xdg_cache_home(self) -> None:
        assert models_folder({"XDG_CACHE_HOME": "/var/cache"}) == Path("/var/cache/caravan/models")

    @pytest.mark.parametrize("environ", [{}, {"XDG_CACHE_HOME": ""}, {"XDG_CACHE_HOME": "relative"}])
    def test_without_an_absolute_one_it_is_in_the_home_folder(
        self, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HOME", "/home/someone")
        assert models_folder(environ) == Path("/home/someone/.cache/caravan/models")

    def test_a_user_without_a_home_is_pointed_to_xdg_cache_home(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def unknown() -> Path:
            raise RuntimeError

        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setattr(Path, "home", unknown)
        with pytest.raises(ModelUnavailable, match=r"no home folder\. Set XDG_CACHE_HOME"):
            resolve_model(DEFAULT_MODEL, ignore_progress)


class TestAlias:
    @pytest.mark.timing
    def test_a_complete_file_in_the_cache_is_used_at_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        path = tmp_path / "caravan/models/SmolLM2-135M-Instruct.Q4_1.gguf"
        path.parent.mkdir(parents=True)
        with path.open("wb") as file:
            file.truncate(ALIASES[DEFAULT_MODEL].num_bytes)  # sparse
        started_at = time.monotonic()
        assert resolve_model(DEFAULT_MODEL, ignore_progress) == path
        assert time.monotonic() - started_at < 0.05

    def test_a_folder_of_its_name_does_not_hide_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / DEFAULT_MODEL).mkdir()
        cached = tmp_path / "caravan/models/SmolLM2-135M-Instruct.Q4_1.gguf"
        cached.parent.mkdir(parents=True)
        with cached.open("wb") as file:
            file.truncate(ALIASES[DEFAULT_MODEL].num_bytes)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert resolve_model(DEFAULT_MODEL, ignore_progress) == cached
        Path(DEFAULT_MODEL, "other.gguf").touch()
        assert resolve_model(f"./{DEFAULT_MODEL}", ignore_progress) == Path(DEFAULT_MODEL, "other.gguf")


class TestChoiceOfGguf:
    FILES = (
        "README.md",
        "m-BF16.gguf",
        "m-F16.gguf",
        "m-IQ4_0.gguf",
        "m-Q4_0.gguf",
        "m-Q4_K_M.gguf",
        "sub/m.Q4_K_S.GGUF",
    )

    def test_the_only_one_needs_no_choice(self) -> None:
        assert choose_gguf("o/n", ["config.json", "m.gguf"], None) == "m.gguf"

    @pytest.mark.parametrize(
        ("choice", "name"),
        [
            ("Q4_K_M", "m-Q4_K_M.gguf"),
            ("q4_k_s", "sub/m.Q4_K_S.GGUF"),
            ("F16", "m-F16.gguf"),
            ("Q4_0", "m-Q4_0.gguf"),
            ("m-bf16.gguf", "m-BF16.gguf"),
        ],
    )
    def test_the_end_of_a_name_chooses(self, choice: str, name: str) -> None:
        assert choose_gguf("o/n", list(self.FILES), choice) == name

    def test_a_whole_name_wins_over_the_end_of_another(self) -> None:
        assert choose_gguf("o/n", ["big-m.gguf", "m.gguf"], "m") == "m.gguf"

    def test_several_without_a_choice_are_listed(self) -> None:
        with pytest.raises(ModelNotFound, match=r"o/n has 2 .gguf files. .* Available: a.gguf, b.gguf"):
            choose_gguf("o/n", ["b.gguf", "a.gguf"], None)

    @pytest.mark.parametrize("choice", ["Q8_0", "Q4_K", "4_0"])
    def test_a_choice_that_fits_none_lists_what_there_is(self, choice: str) -> None:
        with pytest.raises(ModelNotFound, match=rf"o/n has no .gguf file that ends in {choice}. .*m-Q4_0.gguf"):
            choose_gguf("o/n", list(self.FILES), choice)

    def test_a_choice_that_fits_several_lists_what_there_is(self) -> None:
        with pytest.raises(ModelNotFound, match="o/n has 2 .gguf files"):
            choose_gguf("o/n", ["a/m-Q4_0.gguf", "b/m-Q4_0.gguf"], "Q4_0")

    def test_a_repository_without_one_is_refused(self) -> None:
        with pytest.raises(ModelNotFound, match=r"o/n has no .gguf file. Look for"):
            choose_gguf("o/n", ["model.safetensors"], None)


def test_importing_the_module_does_not_import_the_hub_client() -> None:
    check = "import sys, caravan.download.resolve; sys.exit('huggingface_hub' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


@pytest.mark.real_model
def test_the_default_model_has_its_pinned_checksum() -> None:
    path = resolve_model(DEFAULT_MODEL, ignore_progress)
    with path.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == ALIASES[DEFAULT_MODEL].sha256
