"""Fetched models: which there are, by what names, and their removal."""

import errno
import os
from pathlib import Path

import pytest

from caravan.download.cached_models import CachedModel, cached_models, models_named, remove_models
from caravan.download.errors import ModelNotFound
from caravan.download.hub import fetch_from_hub
from caravan.download.resolve import ALIASES, DEFAULT_MODEL
from tests.cli.hub_cache import write_cached
from tests.download.wheels import CONTENT, files_in, ignore_progress
from tests.support.model_hub import running_hub

FOLDER = {"config.json": b"{}", "model.safetensors": b"weights", "tokenizer.json": b"{ }"}


def listed(cache: Path) -> list[CachedModel]:
    return cached_models({"XDG_CACHE_HOME": str(cache / "xdg")}, hub_cache=cache / "hub")


def remove(cache: Path, name: str) -> int:
    return remove_models(models_named(listed(cache), name), hub_cache=cache / "hub")


def write_default(cache: Path) -> Path:
    path = cache / "xdg/caravan/models" / Path(ALIASES[DEFAULT_MODEL].member).name
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    return path


class TestList:
    def test_without_caches_there_is_none(self, tmp_path: Path) -> None:
        assert listed(tmp_path) == []

    def test_a_model_from_a_wheel_has_the_name_of_its_alias(self, tmp_path: Path) -> None:
        path = write_default(tmp_path)
        os.utime(path, (1e9, 1e9))
        (model,) = listed(tmp_path)
        assert model == CachedModel(name=DEFAULT_MODEL, kind="GGUF", num_bytes=len(CONTENT), fetched_at=1e9, path=path)

    def test_what_the_hub_has_sent_is_listed_by_names_that_fetch_it_again(self, tmp_path: Path) -> None:
        hub = tmp_path / "hub"
        with running_hub() as (endpoint, _):
            for repo, choice in (("org/one", None), ("org/many", "Q8_0"), ("org/folder", None), ("org/split", "m")):
                fetch_from_hub(repo, choice, ignore_progress, endpoint=endpoint, cache=hub)
            models = listed(tmp_path)
            assert [(model.name, model.kind) for model in models] == [
                ("org/folder", "safetensors"),
                ("org/many:m-Q8_0", "GGUF"),
                ("org/one:one", "GGUF"),
                ("org/split:m", "GGUF"),
            ]
            for model in models:
                repo, _, name = model.name.partition(":")
                assert fetch_from_hub(repo, name or None, ignore_progress, endpoint=endpoint, cache=hub) == model.path

    def test_the_size_is_that_of_its_files(self, tmp_path: Path) -> None:
        write_cached(tmp_path / "hub", "org/split", {"m-00001-of-00002.gguf": b"123", "m-00002-of-00002.gguf": b"45"})
        write_cached(tmp_path / "hub", "org/folder", FOLDER)
        assert [model.num_bytes for model in listed(tmp_path)] == [12, 5]

    def test_a_revision_that_is_newer_is_the_same_model(self, tmp_path: Path) -> None:
        write_cached(tmp_path / "hub", "org/one", {"one.gguf": b"old"})
        write_cached(tmp_path / "hub", "org/one", {"one.gguf": b"newer"}, commit="f" * 40)
        (model,) = listed(tmp_path)
        assert (model.name, model.num_bytes) == ("org/one:one", 8)

    def test_what_is_no_model_for_caravan_is_not_listed(self, tmp_path: Path) -> None:
        write_cached(tmp_path / "hub", "org/tokenizer", {"tokenizer.json": b"{}"})
        write_cached(tmp_path / "hub", "org/torch", {"config.json": b"{}", "pytorch_model.bin": b"x"})
        write_cached(tmp_path / "hub", "org/data", {"data.gguf": b"x"}).parents[1].rename(
            tmp_path / "hub" / "datasets--org--data"
        )
        assert listed(tmp_path) == []


class TestRemove:
    def test_the_file_of_a_wheel_is_removed_alone(self, tmp_path: Path) -> None:
        path = write_default(tmp_path)
        (path.parent / "mine.gguf").touch()
        assert remove(tmp_path, DEFAULT_MODEL) == len(CONTENT)
        assert files_in(path.parent) == ["mine.gguf"]

    def test_the_alias_of_a_wheel_takes_a_choice_as_a_repository_does(self, tmp_path: Path) -> None:
        path = write_default(tmp_path)
        assert remove(tmp_path, f"{DEFAULT_MODEL}:Q4_1") == len(CONTENT)
        assert not path.exists()

    @pytest.mark.parametrize("name", ["org/many:m-Q8_0", "org/many:q8_0"])
    def test_one_of_two_models_leaves_the_other_and_the_shared_files(self, tmp_path: Path, name: str) -> None:
        files = {"m-Q4_0.gguf": b"q4", "m-Q8_0.gguf": b"q8 q8", "tokenizer.model": b"pieces"}
        snapshot = write_cached(tmp_path / "hub", "org/many", files)
        assert remove(tmp_path, name) == 5
        assert files_in(snapshot) == ["m-Q4_0.gguf", "tokenizer.model"]
        assert len(list((snapshot.parents[1] / "blobs").iterdir())) == 2

    @pytest.mark.parametrize("name", ["org/one", "org/one:one"])
    def test_the_last_model_takes_its_repository_along(self, tmp_path: Path, name: str) -> None:
        write_cached(tmp_path / "hub", "org/one", {"one.gguf": b"one", "tokenizer.model": b"pieces"})
        write_cached(tmp_path / "hub", "org/one", {"one.gguf": b"newer"}, commit="f" * 40)
        write_cached(tmp_path / "hub", "org/other", FOLDER)
        assert remove(tmp_path, name) == len(b"one" + b"newer" + b"pieces")
        assert [path.name for path in (tmp_path / "hub").iterdir()] == ["models--org--other"]

    def test_files_that_others_put_into_the_repository_stay(self, tmp_path: Path) -> None:
        files = {"one.gguf": b"one", "config.json": b"{}", "pytorch_model.bin": b"theirs"}
        snapshot = write_cached(tmp_path / "hub", "org/one", files)
        assert remove(tmp_path, "org/one") == 3
        assert files_in(snapshot) == ["config.json", "pytorch_model.bin"]
        snapshot = write_cached(tmp_path / "hub", "org/both", FOLDER | {"pytorch_model.bin": b"theirs"})
        assert remove(tmp_path, "org/both") == len(b"weights" + b"{}" + b"{ }")
        assert files_in(snapshot) == ["pytorch_model.bin"]

    def test_a_download_in_progress_goes_on(self, tmp_path: Path) -> None:
        snapshot = write_cached(tmp_path / "hub", "org/one", {"one.gguf": b"one"})
        incomplete = snapshot.parents[1] / "blobs" / "0123.incomplete"
        incomplete.write_bytes(b"half")
        assert remove(tmp_path, "org/one") == 3
        assert incomplete.read_bytes() == b"half"

    def test_files_of_the_same_name_in_two_folders_are_two_models(self, tmp_path: Path) -> None:
        snapshot = write_cached(tmp_path / "hub", "org/two", {"fp16/m.gguf": b"fp16", "q4/m.gguf": b"q4"})
        assert [model.name for model in listed(tmp_path)] == ["org/two:fp16/m", "org/two:q4/m"]
        for model in listed(tmp_path):
            if model.name == "org/two:q4/m":
                assert remove_models([model], hub_cache=tmp_path / "hub") == 2
        assert [path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*.gguf")] == ["fp16/m.gguf"]

    def test_a_fork_with_the_same_revision_stays(self, tmp_path: Path) -> None:
        for repo in ("fork/one", "org/one", "zoo/one"):
            write_cached(tmp_path / "hub", repo, {"one.gguf": b"one"})
        assert remove(tmp_path, "org/one") == 3
        assert [model.name for model in listed(tmp_path)] == ["fork/one:one", "zoo/one:one"]

    def test_all_parts_of_a_model_are_removed(self, tmp_path: Path) -> None:
        parts = {f"m-0000{number}-of-00002.gguf": bytes([number]) for number in (1, 2)}
        snapshot = write_cached(tmp_path / "hub", "org/split", {**parts, "other.gguf": b"no"})
        assert remove(tmp_path, "org/split:m") == 2
        assert files_in(snapshot) == ["other.gguf"]

    def test_a_repository_stands_for_all_its_models(self, tmp_path: Path) -> None:
        write_cached(tmp_path / "hub", "org/many", {"m-Q4_0.gguf": b"q4", "m-Q8_0.gguf": b"q8"})
        assert remove(tmp_path, "org/many") == 4
        assert list((tmp_path / "hub").iterdir()) == []

    def test_a_folder_of_safetensors_is_removed(self, tmp_path: Path) -> None:
        write_cached(tmp_path / "hub", "org/folder", FOLDER)
        assert remove(tmp_path, "org/folder") == 12
        assert list((tmp_path / "hub").iterdir()) == []

    @pytest.mark.parametrize("name", ["org/none", "smollm2", "org/one:Q4_0", "org/folder:Q4_0", "./one.gguf", ""])
    def test_a_name_that_is_not_fetched_removes_nothing(self, tmp_path: Path, name: str) -> None:
        write_cached(tmp_path / "hub", "org/one", {"one.gguf": b"one"})
        write_cached(tmp_path / "hub", "org/folder", FOLDER)
        before = files_in(tmp_path)
        with pytest.raises(ModelNotFound, match=r"is not a fetched model|no \.gguf file"):
            remove(tmp_path, name)
        assert files_in(tmp_path) == before

    @pytest.mark.parametrize("name", ["org/one", DEFAULT_MODEL])
    def test_what_cannot_be_deleted_is_an_error(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        def unlink(self: Path, missing_ok: bool = False) -> None:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

        write_cached(tmp_path / "hub", "org/one", {"one.gguf": b"one"})
        write_default(tmp_path)
        before = files_in(tmp_path)
        monkeypatch.setattr(Path, "unlink", unlink)
        with pytest.raises(PermissionError):
            remove(tmp_path, name)
        assert files_in(tmp_path) == before

    def test_what_the_hub_s_client_leaves_in_place_is_an_error(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_cached(tmp_path / "hub", "org/one", {"one.gguf": b"one"})
        monkeypatch.setattr("huggingface_hub.utils._cache_manager.DeleteCacheStrategy.execute", lambda _: None)
        with pytest.raises(PermissionError, match=r"one\.gguf cannot be deleted"):
            remove(tmp_path, "org/one")
