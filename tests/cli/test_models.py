"""`caravan list` and `caravan rm`: what they print, ask and leave alone."""

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from caravan.cli.main import make_app
from caravan.cli.sizes import readable_size
from caravan.download.cached_models import packed_weights
from caravan.download.resolve import ALIASES, DEFAULT_MODEL
from caravan.model.spill_file import SpillFile
from caravan.model.weights_header import WeightsHeader, WeightsKey, encode_header
from tests.support.spill_engines import KEY


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a fetched default model, alone in its caches."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.utils._cache_manager.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TZ", "UTC")
    path = tmp_path / "caravan/models" / Path(ALIASES[DEFAULT_MODEL].member).name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x" * 1500)
    os.utime(path, (0, 1e9))
    return path


def caravan(*words: str, typed: str = "") -> tuple[int, str, str]:
    done = CliRunner().invoke(make_app(), words, input=typed)
    return done.exit_code, done.stdout, done.stderr


class TestList:
    def test_models_stand_in_columns(self, model: Path) -> None:
        code, shown, _ = caravan("list")
        assert code == 0
        head, row = shown.splitlines()
        assert head.split() == ["NAME", "KIND", "SIZE", "FETCHED"]
        assert row.split()[:4] == ["smollm2", "GGUF", "1.5KB", "2001-09-09"]
        assert head.index("KIND") == row.index("GGUF")

    def test_as_json_they_have_all_numbers(self, model: Path) -> None:
        (found,) = json.loads(caravan("list", "--json")[1])
        assert found == {
            "name": "smollm2",
            "kind": "GGUF",
            "num_bytes": 1500,
            "fetched_at": 1e9,
            "path": str(model),
        }

    def test_without_one_nothing_is_on_standard_output(self, model: Path) -> None:
        model.unlink()
        assert caravan("list") == (0, "", "No model is fetched yet. Fetch one with `caravan pull MODEL`.\n")
        assert json.loads(caravan("list", "--json")[1]) == []

    def test_a_cache_that_cannot_be_read_is_one_line(self, model: Path, tmp_path: Path) -> None:
        (tmp_path / "hub").touch()
        for words in (["list"], ["rm", "--yes", "smollm2"]):
            code, shown, error = caravan(*words)
            assert (code, shown) == (1, "")
            assert error.startswith("Cannot read the cache: ")
            assert error.count("\n") == 1
        assert model.exists()


class TestPackedWeights:
    @pytest.fixture
    def packed(self, model: Path, tmp_path: Path) -> Path:
        """The packed weights of the fetched model, beside those of a file that is gone and a damaged file."""
        path = write_packed(tmp_path, model, 3000)
        write_packed(tmp_path, tmp_path / "own.gguf", 5000)
        (path.parent / "damaged.weights").write_bytes(b"x")
        return path

    def test_they_are_listed_after_the_models_under_their_names_or_paths(self, packed: Path, tmp_path: Path) -> None:
        head, *rows = (line.split()[:3] for line in caravan("list")[1].splitlines())
        assert head == ["NAME", "KIND", "SIZE"]
        assert rows[0] == ["smollm2", "GGUF", "1.5KB"]
        assert sorted(row[:2] for row in rows[1:]) == sorted(
            [["smollm2", "packed"], [str(tmp_path / "own.gguf"), "packed"]]
        )
        found = {
            entry["name"]: entry for entry in json.loads(caravan("list", "--json")[1]) if entry["kind"] == "packed"
        }
        assert found["smollm2"]["path"] == str(packed)
        assert found["smollm2"]["num_bytes"] == packed.stat().st_size
        assert found["smollm2"]["fetched_at"] == packed.stat().st_mtime

    def test_they_are_removed_with_their_model(self, packed: Path, model: Path) -> None:
        sizes = [readable_size(num_bytes) for num_bytes in (packed.stat().st_size, 1500 + packed.stat().st_size)]
        code, shown, asked = caravan("rm", "smollm2", typed="y\n")
        assert (code, shown.splitlines()[-1]) == (0, f"Removed smollm2, which frees {sizes[1]}.")
        assert f"smollm2  {sizes[0]}  {packed}\n" in asked
        assert not packed.exists()
        assert not model.exists()
        assert len(list(packed.parent.glob("*.weights"))) == 2

    def test_those_of_a_path_are_removed_and_the_file_itself_stays(
        self, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        own = tmp_path / "own.gguf"
        own.touch()
        code, shown, _ = caravan("rm", "--yes", "./own.gguf")
        assert code == 0
        assert shown.startswith("Removed the packed weights of ./own.gguf, which frees ")
        assert own.exists()
        assert packed.exists()
        assert caravan("rm", "--yes", "./own.gguf")[0] == 1

    def test_without_a_home_there_are_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def no_home() -> Path:
            raise RuntimeError

        monkeypatch.setattr(Path, "home", no_home)
        assert packed_weights(None, {}) == []

    def test_cached_blocks_are_listed_and_removed_with_them(
        self, packed: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (folder := packed.parent.parent / "kv").mkdir()
        for path in (model, tmp_path / "own.gguf"):
            SpillFile(folder / f"{path.stem}.blocks", KEY, str(path), 1000, 65_536).close()
        rows = [line.split()[:3] for line in caravan("list")[1].splitlines()]
        assert ["smollm2", "kv", "blocks"] in rows
        assert [str(tmp_path / "own.gguf"), "kv", "blocks"] in rows
        assert caravan("rm", "--yes", "smollm2")[1].startswith("Removed smollm2, which frees ")
        assert [path.name for path in folder.iterdir()] == ["own.blocks"]
        monkeypatch.chdir(tmp_path)
        removed = "Removed the packed weights and cached blocks of ./own.gguf, which frees "
        assert caravan("rm", "--yes", "./own.gguf")[1].startswith(removed)
        assert not [*folder.iterdir()]


def write_packed(cache: Path, model: Path, num_bytes: int) -> Path:
    """Write a file of packed weights for a model and return its path."""
    key = WeightsKey(
        files=[], tensors="", quantization="none", dtype="bfloat16", code=str(model), libraries={}, features={}
    )
    header = WeightsHeader(key=key, model_path=str(model.resolve()), num_data_bytes=num_bytes, tensors=[], samples="")
    path = cache / "caravan/weights" / key.file_name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(encode_header(header) + bytes(num_bytes))
    path.chmod(0o600)
    return path


class TestRm:
    @pytest.mark.parametrize("typed", ["y\n", "yes\n"])
    def test_after_a_yes_it_is_removed(self, model: Path, typed: str) -> None:
        code, shown, asked = caravan("rm", "smollm2", typed=typed)
        assert (code, shown.splitlines()[-1]) == (0, "Removed smollm2, which frees 1.5KB.")
        assert f"smollm2  1.5KB  {model}\nRemove? [y/N]" in asked
        assert not model.exists()

    @pytest.mark.parametrize("typed", ["n\n", "\n", ""])
    def test_after_anything_else_it_stays(self, model: Path, typed: str) -> None:
        code, shown, asked = caravan("rm", "smollm2", typed=typed)
        assert code == 1
        assert "Removed" not in shown
        assert asked.endswith("Nothing was removed.\n")
        assert model.exists()

    @pytest.mark.parametrize("option", ["--yes", "-y"])
    def test_it_need_not_ask(self, model: Path, option: str) -> None:
        assert caravan("rm", option, "smollm2") == (0, "Removed smollm2, which frees 1.5KB.\n", "")
        assert not model.exists()

    def test_a_name_that_is_not_fetched_is_one_line(self, model: Path) -> None:
        error = "org/none is not a fetched model. `caravan list` shows the fetched models.\n"
        assert caravan("rm", "--yes", "org/none") == (1, "", error)
        assert model.exists()

    def test_what_cannot_be_deleted_is_one_line(self, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def unlink(self: Path, missing_ok: bool = False) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "unlink", unlink)
        error = "Cannot remove smollm2: [Errno 13] Permission denied\n"
        assert caravan("rm", "--yes", "smollm2") == (1, "", error)

    def test_a_path_is_never_removed(self, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        own = tmp_path / "mine.gguf"
        own.touch()
        (tmp_path / "smollm2").mkdir()
        for path in (own, Path("mine.gguf"), Path("./mine.gguf"), model, tmp_path / "smollm2"):
            code, shown, error = caravan("rm", "--yes", str(path))
            assert (code, shown) == (1, "")
            assert (
                error == f"{path} is a path. `caravan rm` removes fetched models, by the names `caravan list` shows.\n"
            )
        assert own.exists()
        assert model.exists()
        assert caravan("rm", "--yes", "smollm2")[0] == 0
        assert (tmp_path / "smollm2").is_dir()
